"""Tested trials arranged for comparing: a panel per setting, a method per line, a cell per budget."""

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from student_trainer.reporting.results import Trial

Axis = Literal["loss", "views", "select", "student"]
AXES: tuple[Axis, ...] = get_args(Axis)
"""What can be compared while everything else is held fixed."""

GROUPS = ("loss", "control", "reference")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """All tested seeds of one method at one budget."""

    method: str
    group: str
    budget: int
    trials: tuple[Trial, ...]
    """One per seed, in the order of the seeds."""

    @property
    def accuracies(self) -> dict[int, float]:
        """Test accuracy per seed, 0 to 1."""
        return {trial.seed: trial.test_accuracy for trial in self.trials if trial.test_accuracy is not None}

    @property
    def mean(self) -> float:
        """Mean test accuracy over the seeds."""
        return statistics.fmean(self.accuracies.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for one seed."""
        return statistics.stdev(self.accuracies.values()) if len(self.trials) > 1 else None

    @property
    def lr(self) -> float:
        """The learning rate that validation chose."""
        return self.trials[0].lr

    @property
    def calls(self) -> float:
        """Where the cell stands on the axis of calls: what was paid; the budget where labels alone were used."""
        return self.average("paid") or float(self.budget)

    @property
    def asks(self) -> bool:
        """Whether it uses the teacher's answers; else it lives on labels."""
        return any(trial.charged for trial in self.trials)

    @property
    def all_labels(self) -> bool:
        """Whether it trains on labels of more images than the budget asks about."""
        return any(trial.all_labels for trial in self.trials)

    def average(self, field: str) -> float:
        """Mean of a number of the trials over the seeds."""
        return statistics.fmean(getattr(trial, field) for trial in self.trials)


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """Methods that may be compared with each other: everything but the method is the same."""

    title: str
    """What tells this panel from the others; empty where there is one only."""
    axis: Axis
    """What the methods are."""
    methods: tuple[str, ...]
    """Losses first, then controls, then references, each in the order of the recipe."""
    budgets: tuple[int, ...]
    cells: Mapping[tuple[str, int], Cell]
    """By method and budget; a cell that is not finished is not there."""
    references: tuple[Cell, ...]
    """Without teacher calls: cross-entropy on all labels."""

    def group(self, method: str) -> str:
        """Whether a method is a loss, a control or a reference."""
        return next(cell.group for (name, _), cell in self.cells.items() if name == method)

    def curve(self, method: str) -> tuple[Cell, ...]:
        """The cells of a method by rising budget."""
        return tuple(self.cells[method, budget] for budget in self.budgets if (method, budget) in self.cells)

    def asks(self, method: str) -> bool:
        """Whether a method uses the teacher's answers; else it lives on labels."""
        return any(cell.asks for cell in self.curve(method))

    def all_labels(self, method: str) -> bool:
        """Whether a method trains on the labels of images that nobody asked about."""
        return any(cell.all_labels for cell in self.curve(method))

    @property
    def ranked(self) -> tuple[str, ...]:
        """The methods that are held against each other: those with the labels of the budget's images, and no more.

        Where every method uses all labels, they are alike in that.
        """
        few = tuple(method for method in self.methods if not self.all_labels(method))
        return few or self.methods

    def accuracies(self, method: str) -> NDArray[np.float64]:
        """[seeds, budgets] of a method's curve, seeds ascending, nan where a seed is missing."""
        curve = self.curve(method)
        seeds = sorted({seed for cell in curve for seed in cell.accuracies})
        return np.array([[cell.accuracies.get(seed, np.nan) for cell in curve] for seed in seeds])


def arrange(trials: Iterable[Trial], *, compare: str | None = None, order: Sequence[str] = ()) -> tuple[Panel, ...]:
    """Panels in the order of the results; ``compare`` is one of AXES, None chooses by what varies.

    ``order`` names the methods in the order of the recipe; a method that it lacks comes last.
    """
    tested = list(trials)
    if compare is not None and compare not in AXES:
        raise InputError(f"cannot compare {compare!r}; choose one of {', '.join(AXES)}")
    axis = next((name for name in AXES if name == compare), None) or _natural_axis(tested)
    asked = [trial for trial in tested if trial.budget > 0]
    groups: dict[tuple[str, ...], list[Trial]] = defaultdict(list)
    for trial in asked:
        groups[_setting(trial, axis)].append(trial)
    if not groups:
        raise InputError("nothing to compare: only references without teacher calls are finished")
    free = [trial for trial in tested if trial.budget == 0]
    return tuple(
        _panel(members, axis=axis, title=_title(setting, list(groups)), free=free, order=order)
        for setting, members in groups.items()
    )


def _natural_axis(trials: list[Trial]) -> Axis:
    """Losses, unless a study of views or of selection holds the losses to one or two."""
    losses = {trial.loss for trial in trials if trial.group == "loss" and trial.budget > 0}
    for axis in ("views", "select"):
        if len(losses) <= 2 and len({getattr(trial, axis) for trial in trials if trial.budget > 0}) > 2:
            return "views" if axis == "views" else "select"
    return "loss"


def _setting(trial: Trial, axis: Axis) -> tuple[str, ...]:
    return tuple(getattr(trial, name) for name in ("student", "loss", "views", "select") if name != axis)


def _title(setting: tuple[str, ...], settings: list[tuple[str, ...]]) -> str:
    """The parts of a setting that differ between panels."""
    return ", ".join(part for place, part in enumerate(setting) if len({other[place] for other in settings}) > 1)


def _panel(members: list[Trial], *, axis: Axis, title: str, free: list[Trial], order: Sequence[str]) -> Panel:
    cells: dict[tuple[str, int], list[Trial]] = defaultdict(list)
    for trial in members:
        cells[getattr(trial, axis), trial.budget].append(trial)
    built = {key: _cell(key[0], trials) for key, trials in cells.items()}
    groups = {method: cell.group for (method, _), cell in built.items()}
    places = {method: place for place, method in enumerate(order)}
    return Panel(
        title=title,
        axis=axis,
        methods=tuple(
            sorted(groups, key=lambda method: (GROUPS.index(groups[method]), places.get(method, len(places))))
        ),
        budgets=tuple(sorted({budget for _, budget in built})),
        cells=built,
        references=_references(members, free=free, axis=axis),
    )


def _cell(method: str, trials: list[Trial]) -> Cell:
    ordered = tuple(sorted(trials, key=lambda trial: trial.seed))
    return Cell(method=method, group=ordered[0].group, budget=ordered[0].budget, trials=ordered)


def _references(members: list[Trial], *, free: list[Trial], axis: Axis) -> tuple[Cell, ...]:
    """The reference cells of the same student; of the same views and selection where there are such."""
    fitting = [trial for trial in free if trial.student in {member.student for member in members}]
    for name in ("views", "select"):
        here = {getattr(member, name) for member in members}
        fitting = [trial for trial in fitting if getattr(trial, name) in here] or fitting
    # Where the reference was repeated for settings that it does not depend on, one of them stands for all.
    cells: dict[str, list[Trial]] = defaultdict(list)
    first_cell: dict[str, str] = {}
    for trial in fitting:
        own = axis in ("views", "student")  # of what is compared, the reference depends on these
        name = f"{trial.loss}, {getattr(trial, axis)}" if own else trial.loss
        if first_cell.setdefault(name, trial.cell) == trial.cell:
            cells[name].append(trial)
    return tuple(_cell(name, trials) for name, trials in cells.items())
