"""What a sweep left: sweep.json and results.jsonl, read and checked once."""

import json
from collections import defaultdict
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
    own: bool = True
    """Whether it counts this sweep's calls only; that of a running server charges a larger budget for the rest only."""


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

    @property
    def stops_early(self) -> bool:
        """Whether a training may end before its last step."""
        train = self.recipe.get("train")
        return isinstance(train, dict) and train.get("schedule") == "plateau"


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
    diverged: bool = False
    """Whether its loss left the numbers: it has no accuracy."""
    val_accuracy: Share | None
    test_accuracy: Share | None
    rows: Count
    answered_rows: Count
    val_rows: Count
    test_rows: Count
    teacher_calls: Count
    charged: Count
    """Distinct answers that it consumed; of several views per image, those that its epochs drew."""
    paid: Count = 0
    """Answers that its budget run was charged for, from the ledger and not from its line; 0: it used none."""
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

    @property
    def all_labels(self) -> bool:
        """Whether it used the labels of more images than its budget asks about."""
        return self.budget > 0 and self.rows > (self.answered_rows or self.budget)


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
    def lost(self) -> tuple[Trial, ...]:
        """A trial of each cell that is finished without a result: all of its trainings diverged."""
        by_cell: dict[str, list[Trial]] = defaultdict(list)
        for trial in self.trials:
            by_cell[trial.cell].append(trial)
        per_cell = self.sweep.trials // max(1, self.sweep.cells)
        return tuple(
            trials[0]
            for trials in by_cell.values()
            if len(trials) >= per_cell and all(trial.diverged for trial in trials)
        )

    @property
    def finished_cells(self) -> int:
        """Cells that have a result, or will never have one."""
        return self.cells + len(self.lost)

    @property
    def complete(self) -> bool:
        """Whether every trial of the grid is there and every cell was tested, or diverged as a whole."""
        return self.finished_cells >= self.sweep.cells and len(self.trials) >= self.sweep.trials

    @property
    def one_rate(self) -> bool:
        """Whether there was nothing to choose a learning rate from."""
        return self.sweep.trials_per_cell == 1

    @property
    def validated(self) -> bool:
        """Whether anything was held out to choose by."""
        return any(trial.val_rows for trial in self.trials)


def read_sweep(folder: Path) -> SweepResults:
    """Read a sweep's output; InputError names the file, the line and what is wrong with it."""
    if not (folder / "sweep.json").is_file():
        raise InputError(
            f"no sweep in {folder}: sweep.json is missing; run `student-trainer sweep RECIPE --out {folder}`"
        )
    sweep = _read_header(folder / "sweep.json")
    trials = _read_trials(folder / "results.jsonl")
    paid = tuple(trial.model_copy(update={"paid": _paid(trial, sweep.ledger)}) for trial in trials)
    results = SweepResults(folder=folder, sweep=sweep, trials=paid)
    if trials and len(trials) >= sweep.trials and all(trial.diverged for trial in trials):
        raise InputError(f"every trial in {folder / 'results.jsonl'} diverged; sweep again with smaller learning rates")
    if not results.tested:
        raise InputError(f"{folder / 'results.jsonl'} holds no tested trial yet; finish a cell of the sweep first")
    return results


def _paid(trial: Trial, ledger: LedgerCounts) -> int:
    """What its answers cost, whether or not its epochs drew them all."""
    if not trial.charged:
        return 0
    run = ledger.runs.get(trial.ledger_run or "")
    return run.charged if run is not None and ledger.own else trial.budget


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
