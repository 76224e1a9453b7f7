"""What a recipe may say: the grid of one table or figure, and how each of its students is trained."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from shared.outputs import ALWAYS, CONSTANTS, INPUT_GRAD, map_number
from student_trainer.config import Missing, Precision, Schedule, StudentViews, as_json

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,23}$")]
Label = Annotated[str, Field(min_length=1, max_length=60)]
AtLeast1 = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Section(BaseModel):
    """A mapping of the recipe; a key that it does not have is an error that names those it has."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        known = {field.alias or name for name, field in cls.model_fields.items()}
        for key in given:
            if key not in known:
                close = get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}"
                raise ValueError(f"unknown key {key!r}; {hint}")
        return given


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _counted(value: Any) -> Any:
    """``5`` means the seeds 0 to 4."""
    return list(range(value)) if isinstance(value, int) and not isinstance(value, bool) else value


class TrainEntry(Section):
    """How students are trained; what is left out is as in `student-trainer train`."""

    epochs: AtLeast1 | None = None
    """Passes over the rows; in its place `steps`."""
    steps: AtLeast1 | None = None
    """Optimizer steps, the same for every budget, rounded up to whole epochs."""
    batch: int | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None
    schedule: Schedule | None = None
    milestones: tuple[float, ...] | None = None
    gamma: float | None = None
    patience: AtLeast1 | None = None
    patience_steps: AtLeast1 | None = None
    """`patience` in optimizer steps, rounded up to whole epochs."""
    stages: int | None = None
    precision: Precision | None = None
    compile: bool | None = None
    image_size: int | None = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        for one, other in (("epochs", "steps"), ("patience", "patience_steps")):
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} exclude each other; give one of them")
        return self

    def options(self, *, rows: int) -> dict[str, Any]:
        """Fields of `TrainConfig` for a training on ``rows`` rows."""
        given = self.model_dump(exclude_none=True, exclude={"steps", "patience_steps"})
        steps_per_epoch = -(-rows // (self.batch or 64))
        for name, steps in (("epochs", self.steps), ("patience", self.patience_steps)):
            if steps is not None:
                given[name] = -(-steps // steps_per_epoch)
        return given


class TeacherTrainEntry(TrainEntry):
    """How the teacher is trained, by cross-entropy on all labels."""

    lr: Rate | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class TeacherEntry(Section):
    """Who answers: a teacher that the sweep serves, a running server, or a cache that is only read."""

    spec: str | None = None
    weights: Path | None = None
    train: TeacherTrainEntry | None = None
    threads: AtLeast1 = 1
    """CPU threads: one by default, so that the bits do not depend on the machine's cores."""
    precision: Precision = "float32"
    server: str | None = None
    api_key_file: Path | None = None
    cache: Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("spec", "server", "cache") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"gives {' and '.join(given) or 'nothing'}; give one of spec (a teacher that is served here),"
                " server (http://HOST:PORT) and cache (a folder)"
            )
        if self.spec is None and (self.weights is not None or self.train is not None):
            raise ValueError("weights and train belong to spec, a teacher that is served here")
        if self.weights is not None and self.train is not None:
            raise ValueError("weights and train exclude each other: a teacher is loaded or trained")
        if self.api_key_file is not None and self.server is None:
            raise ValueError("api_key_file belongs to server")
        return self


class LossEntry(Section):
    """One row of the table: a loss with its settings."""

    label: Label
    loss: str
    set: dict[str, Any] = Field(default={})
    """Hyper-parameters of the loss that differ from its defaults."""
    ce_weight: float | None = None
    kd_weight: float | None = None
    missing: Literal["discard", "label-only"] = "discard"
    """What becomes of the images nobody asked about: left out, or used by their labels."""
    group: Literal["loss", "control", "reference"] = "loss"

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_loss(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"label": given, "loss": given}
        if isinstance(given, dict) and "label" not in given and "loss" in given:
            return {"label": given["loss"], **given}
        return given

    @field_validator("set")
    @classmethod
    def _as_written(cls, given: dict[str, Any]) -> dict[str, Any]:
        """YAML's ``.inf`` as the text that records and options have for it."""
        read: dict[str, Any] = as_json(given)
        return read

    @property
    def slug(self) -> str:
        """The label as the name of a folder."""
        return slug_of(self.label)

    @property
    def policy(self) -> Missing:
        """`TrainConfig.missing`."""
        return "label-only" if self.missing == "label-only" else "error"


class ViewsEntry(Section):
    """What teacher and student look at."""

    name: Name
    teacher: str = "0"
    """Views that the teacher is asked about, such as ``0`` or ``1-162``."""
    student: StudentViews = "clean"

    @model_validator(mode="before")
    @classmethod
    def _text(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("teacher"), int):
            return given | {"teacher": str(given["teacher"])}
        return given


class ReferencesEntry(Section):
    """Lines that the table is read against."""

    ce_all: bool = True
    """Cross-entropy on the labels of all rows, at no call."""
    teacher: bool = True
    """The teacher on the test images; where the sweep does not train it, these calls are a run of their own."""


CE_ALL = LossEntry(label="ce (all labels)", loss="ce", group="reference")


class Recipe(Section):
    """One table or figure. Students x views x selections x budgets x losses are its cells, each with some seeds."""

    name: Name
    question: str = ""
    """What the table answers, for its reader."""
    dataset: str
    data_root: Path | None = None
    download: bool = False
    teacher: TeacherEntry
    students: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
    losses: Annotated[list[LossEntry], Field(min_length=1)]
    budgets: Annotated[list[AtLeast1], BeforeValidator(_listed), Field(min_length=1)]
    """Teacher calls per cell: images x views."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], BeforeValidator(_counted), Field(min_length=1)]
    """A number of seeds, or the seeds: each draws the rows, the first weights and the order."""
    views: Annotated[list[ViewsEntry], Field(min_length=1)] = [ViewsEntry(name="clean")]
    view_policy: str | None = None
    """What views 1, 2, ... are, such as ``randaug:n=2,m=9``; None: as the cache of `teacher` says, else the data set's
    own crops."""
    select: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)] = ["random"]
    val: bool = True
    """Hold out 20 % of the labels used, to choose epochs and learning rate."""
    lr: Annotated[list[Rate], BeforeValidator(_listed), Field(min_length=1)] = [0.05]
    """Learning rates tried for every cell alike."""
    references: ReferencesEntry = ReferencesEntry()
    train: TrainEntry = TrainEntry()
    test_sample: AtLeast1 | None = None
    """Test on this many drawn test images; None: all."""
    outputs: Annotated[list[str], Field(min_length=1)] = ["logits", "features"]
    """Asked of the teacher; where a loss needs it ``maps.2``, ``preacts.2``, ``attention.1``, ``constants``."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_once("budgets", self.budgets)
        _check_once("seeds", self.seeds)
        _check_once("lr", self.lr)
        _check_once("select", self.select)
        _check_once("students", [student_name(spec) for spec in self.students])
        _check_once("views", [entry.name for entry in self.views])
        _check_once("losses", [entry.slug for entry in [*self.losses, CE_ALL]])
        if not self.val and len(self.lr) > 1:
            raise ValueError("lr has several values, and val is false: without validation nothing chooses; give one lr")
        _check_outputs(self.outputs, teacher=self.teacher)
        return self

    def resolved(self) -> dict[str, Any]:
        """The recipe as JSON values, defaults included."""
        return self.model_dump(mode="json", by_alias=True)


def _check_outputs(outputs: list[str], *, teacher: TeacherEntry) -> None:
    _check_once("outputs", outputs)
    for name in outputs:
        if name not in (*ALWAYS, INPUT_GRAD, CONSTANTS) and map_number(name) is None:
            raise ValueError(
                f"outputs: {name!r} is none; known: {', '.join(ALWAYS)}, maps.K, preacts.K, attention.K, {INPUT_GRAD},"
                f" {CONSTANTS}"
            )
    if "logits" not in outputs:
        raise ValueError("outputs must have logits: the teacher's accuracy and most losses need them")
    if INPUT_GRAD in outputs and teacher.cache is None:
        raise ValueError(
            f"outputs: {INPUT_GRAD} costs a second teacher call per image, which budgets of images do not count; fill a"
            " cache with it first, and name it as teacher.cache"
        )
    if CONSTANTS in outputs and teacher.server is not None:
        raise ValueError(f"outputs: a server does not send {CONSTANTS}; name the folder of its cache as teacher.cache")


def _check_once(key: str, values: list[Any]) -> None:
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ValueError(f"{key} names {twice[0]!r} twice; each needs a name of its own")


def slug_of(text: str) -> str:
    """Letters, digits and dots, with dashes for all between."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "x"


def student_name(spec: str) -> str:
    """The short name of a student: ``zoo:resnet8`` is resnet8, ``python:FILE.py:small`` is small."""
    return re.sub(r"[^a-z0-9._]+", "-", spec.rpartition(":")[2].lower()).strip("-.") or "student"
