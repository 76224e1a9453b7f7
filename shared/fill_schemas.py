"""Long fills as JSON: what is asked for, and how far one has come."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from shared.schemas import Name, Row, StrictModel

MAX_FILL_BYTES = 16 * 2**20
"""Of one request for a fill: two million numbers of rows."""
FillState = Literal["queued", "running", "done", "cancelled", "failed", "stopped"]
ENDED = frozenset({"done", "cancelled", "failed", "stopped"})


class FillRequest(StrictModel):
    """Body of ``POST /v1/fills``."""

    model_config = ConfigDict(
        json_schema_extra={
            # Both would choose rows.
            "not": {
                "properties": {"sample": {"type": "integer"}, "rows": {"type": "array"}},
                "required": ["sample", "rows"],
            }
        }
    )

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = Field(
        default=None,
        description="random, made by who asks: sent again, it begins no second fill but tells of the first",
    )
    dataset: Name = Field(description="NAME/SPLIT of a data set that the server serves", examples=["digits/train"])
    sample: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="how many rows to draw; smaller samples nest in larger ones"
    )
    seed: Row = Field(default=0, description="which sample to draw")
    rows: list[Row] | None = Field(
        default=None, min_length=1, description="which rows; with neither rows nor sample: all"
    )
    views: str = Field(
        default="0",
        max_length=1000,
        description="views such as 0 or 0,5 or 1-162",
        # Said, not checked: the error of what is no view is better than a pattern's.
        json_schema_extra={"pattern": r"^[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*$"},
    )
    run: Name | None = Field(
        default=None, description="who pays for teacher calls; without one the first run of the key, else default"
    )


class FillError(BaseModel):
    """Why a fill ended early."""

    error: str = Field(description="what was wrong, what would work")
    code: str = Field(description="stable snake_case name, as of any error")
    needed: int | None = Field(default=None, description="budget_exhausted only: calls that the next batch needs")
    remaining: int | None = Field(default=None, description="budget_exhausted only: calls that the budget still allows")


class FillStatus(BaseModel):
    """How far a fill has come."""

    id: str
    dataset: str
    views: str
    run: str
    owner: str = Field(description="of the key that asked; local = without a key")
    state: FillState = Field(description="stopped: the server ended first; submitted again, it goes on where it was")
    total: int = Field(description="answers asked for: rows times views")
    done: int = Field(description="answers that are committed now")
    cached: int = Field(description="of these, answers that cost no call")
    teacher_calls: int = Field(description="calls that this fill caused")
    images_per_s: float = Field(description="in the last seconds; at the end: in all")
    seconds: float = Field(description="since the fill began, without its time in the queue")
    eta_s: float | None = Field(description="seconds left at this speed; null before the first answers")
    error: FillError | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ENDED


class FillList(BaseModel):
    """The last fills of this server process, the newest first."""

    fills: list[FillStatus]
