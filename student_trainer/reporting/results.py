"""What a sweep left: sweep.json and results.jsonl, read and checked once."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import InputError

FORMAT = 1
"""The sweep output that this version reads."""

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Record(BaseModel):
    """Bytes from outside; fields of later versions are let through."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class LedgerRun(Record):
    """One budget run of the ledger."""

    budget: Count | None
    attempts: Count
    teacher_calls: Count
    charged: Count


class LedgerCounts(Record):
    """What the ledger counted for the whole sweep."""

    attempts: Count
    teacher_calls: Count
    runs: dict[str, LedgerRun] = {}


class Teacher(Record):
    """Whose answers were used."""

    id: str
    spec: str
    test_accuracy: Share | None


class Machine(Record):
    """What it ran on."""

    device: str
    threads: int
    jobs: int
    versions: dict[str, str] = {}


class Sweep(Record):
    """sweep.json."""

    format: int
    name: str
    question: str
    dataset: str
    command: str
    recipe: dict[str, Any] = {}
    teacher: Teacher
    classes: int
    train_rows: int
    cells: Count
    """Cells of the whole grid, finished or not."""
    trials: Count
    trials_per_cell: int
    """Learning rates tried per loss."""
    machine: Machine
    ledger: LedgerCounts

    @property
    def names(self) -> tuple[str, ...]:
        """Losses, views, selections and students in the order of the recipe."""
        entries = [
            entry for key in ("losses", "views", "select", "students") for entry in _listed(self.recipe.get(key))
        ]
        given = [(entry.get("label") or entry.get("name")) if isinstance(entry, dict) else entry for entry in entries]
        return tuple(name for name in given if isinstance(name, str))


class Trial(Record):
    """One finished training: a line of results.jsonl."""

    cell: str
    student: str
    views: str
    select: str
    budget: Count
    """Images x views; 0 for a reference that needs no teacher call."""
    loss: str
    group: Literal["loss", "control", "reference"]
    seed: int
    lr: float
    chosen: bool
    """Whether this learning rate is the cell's, by mean validation accuracy."""
    val_accuracy: Share | None
    test_accuracy: Share | None
    rows: Count
    answered_rows: Count
    val_rows: Count
    test_rows: Count
    teacher_calls: Count
    charged: Count
    ledger_run: str | None
    student_forwards: Count
    online_calls: Count
    seconds: float
    images_per_second: float
    epochs: Count
    run: str

    @property
    def key(self) -> tuple[str, int, float]:
        """What tells trials apart."""
        return self.cell, self.seed, self.lr


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepResults:
    """A sweep as far as it got."""

    folder: Path
    sweep: Sweep
    trials: tuple[Trial, ...]

    @property
    def tested(self) -> tuple[Trial, ...]:
        """The trials whose test accuracy counts: the chosen learning rate of each cell."""
        return tuple(trial for trial in self.trials if trial.chosen and trial.test_accuracy is not None)

    @property
    def cells(self) -> int:
        """Cells with at least one tested trial."""
        return len({trial.cell for trial in self.tested})

    @property
    def complete(self) -> bool:
        """Whether every trial of the grid is there and every cell was tested."""
        return self.cells >= self.sweep.cells and len(self.trials) >= self.sweep.trials


def read_sweep(folder: Path) -> SweepResults:
    """Read a sweep's output; InputError names the file, the line and what is wrong with it."""
    if not (folder / "sweep.json").is_file():
        raise InputError(
            f"no sweep in {folder}: sweep.json is missing; run `student-trainer sweep RECIPE --out {folder}`"
        )
    sweep = _read_header(folder / "sweep.json")
    trials = _read_trials(folder / "results.jsonl")
    results = SweepResults(folder=folder, sweep=sweep, trials=trials)
    if not results.tested:
        raise InputError(f"{folder / 'results.jsonl'} holds no tested trial yet; finish a cell of the sweep first")
    return results


def _read_header(path: Path) -> Sweep:
    try:
        header = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path} is no JSON: {error}") from None
    found = header.get("format") if isinstance(header, dict) else None
    if found != FORMAT:
        raise InputError(
            f"{path} has format {found!r}; this version reads format {FORMAT}: run the sweep again with it"
        )
    try:
        return Sweep.model_validate(header)
    except ValidationError as error:
        raise InputError(f"{path}: {_first_problem(error)}") from None


def _read_trials(path: Path) -> tuple[Trial, ...]:
    if not path.is_file():
        raise InputError(f"{path} is missing: no trial of this sweep has finished yet")
    known: dict[tuple[str, int, float], Trial] = {}
    for number, trial in _lines(path):
        # A line written twice by a sweep that was killed says the same twice.
        if known.setdefault(trial.key, trial) != trial:
            raise InputError(f"{path}:{number}: cell {trial.cell}, seed {trial.seed}, lr {trial.lr} stands there twice")
    trials = tuple(known.values())
    _check_choices(path, trials)
    return trials


def _lines(path: Path) -> Iterator[tuple[int, Trial]]:
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if line.strip():
            try:
                yield number, Trial.model_validate_json(line)
            except ValidationError as error:
                raise InputError(f"{path}:{number}: {_first_problem(error)}") from None


def _check_choices(path: Path, trials: tuple[Trial, ...]) -> None:
    """One learning rate per cell, or the seeds of a cell would not be comparable."""
    rates: dict[str, float] = {}
    for trial in trials:
        if trial.chosen and rates.setdefault(trial.cell, trial.lr) != trial.lr:
            raise InputError(
                f"{path}: cell {trial.cell} has two chosen learning rates, {rates[trial.cell]} and {trial.lr}"
            )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])
