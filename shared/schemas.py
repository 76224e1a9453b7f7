"""JSON that crosses the wire: request bodies, checked strictly, and answers, as the reference page shows them."""

import json
import re
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import InputError

INT64_MAX = 2**63 - 1
KEY_PATTERN = re.compile(rb'"([^"]*)"\s*:')

Name = Annotated[str, Field(max_length=160)]
Row = Annotated[int, Field(ge=-INT64_MAX, le=INT64_MAX)]


class StrictModel(BaseModel):
    """No coercion, no unknown fields: ``true``, ``1.0`` and ``"1"`` are not integers."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Model = TypeVar("Model", bound=StrictModel)


class LogitsRequest(StrictModel):
    """Body of ``POST /v1/logits``."""

    dataset: Name = Field(description="NAME/SPLIT of a data set that the server serves", examples=["digits/train"])
    rows: list[Row] = Field(description="rows of the data set, in any order", examples=[[0, 7]])
    view: Row = Field(default=0, description="which deterministic rendering; 0 is the evaluation view")
    outputs: list[Name] = Field(default=["logits"], min_length=1, max_length=64, description="what to return")
    run: Name | None = Field(
        default=None, description="who pays for teacher calls; without one the first run of the key, else default"
    )


class BudgetRequest(StrictModel):
    """Body of ``PUT /v1/runs/{name}``."""

    budget: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = Field(description="most teacher calls; null = no limit")


class LogitsAnswer(BaseModel):
    """Answers in request order; floats are the shortest decimals of the float32 value of what is kept.

    Other outputs that the cache keeps and the request names, such as ``maps.1``, stand beside: nested lists [B, ...].
    """

    model_config = ConfigDict(extra="allow")

    teacher: str
    dataset: str
    rows: list[int]
    view: int
    logits: list[list[float]] | None = None
    features: list[list[float]] | None = None
    cached: list[bool] = Field(description="whether the answer was there before this request")
    teacher_calls: int = Field(description="calls that this request caused")


class ImagesAnswer(LogitsAnswer):
    """The same for images sent by the caller; rows are places in the request."""

    keys: list[str] = Field(description="SHA-256 of the decoded pixels, hex")


class RunCounts(BaseModel):
    """One run's use of the teacher."""

    budget: int | None
    remaining: int | None
    attempts: int
    teacher_calls: int
    charged: int


class OwnerCounts(RunCounts):
    """What the owner of a key used, under all runs."""

    hits: int
    joined: int


class LedgerCounts(BaseModel):
    """Everything that was asked of the teacher."""

    budget: int | None = Field(description="most teacher calls of all runs together; null = no limit")
    remaining: int | None
    attempts: int
    teacher_calls: int
    hits: int
    joined: int
    reserved: int
    runs: dict[str, RunCounts]
    owners: dict[str, OwnerCounts] = Field(description="by the owner of the key that asked; local = without a key")


class ErrorBody(BaseModel):
    """Every error of every route."""

    error: str = Field(description="what was wrong, what would work")
    code: str = Field(description="stable snake_case name")
    request_id: str
    needed: int | None = Field(default=None, description="402 only: calls that the request needs")
    remaining: int | None = Field(default=None, description="402 only: calls that the budget still allows")


def parse_body(body: bytes, *, model: type[Model]) -> Model:
    """The model in a JSON body; raises `InputError` that names the first wrong field."""
    try:
        checked = model.model_validate_json(body)
    except ValidationError as invalid:
        first = invalid.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the body"
        fields = ", ".join(model.model_fields)
        raise InputError(f"{place[:100]}: {first['msg'][:200]}; a JSON object with {fields} would work") from invalid
    # Pydantic takes the last of two; looked for only where a name is written twice, or an escape may hide one.
    names = KEY_PATTERN.findall(body)
    if b"\\" in body or len(set(names)) < len(names):
        json.loads(body, object_pairs_hook=_check_keys)
    return checked


def _check_keys(pairs: list[tuple[str, object]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice[:100]!r} is given {names.count(twice)} times in one JSON object; give it once")
