"""The grid of a recipe: its cells, the trials of each, and the runs of the ledger that pay for their answers."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from shared.errors import InputError
from shared.views import parse_views
from student_trainer.sweep.recipe import CE_ALL, LossEntry, Recipe, ViewsEntry, student_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """One entry of `views`, with its numbers."""

    entry: ViewsEntry
    numbers: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its name."""
        return self.entry.name


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One place of the table: it has several seeds, and learning rates to choose from."""

    student: str
    views: Views
    select: str
    budget: int
    """Images x views; 0: no call, all labels."""
    loss: LossEntry

    @property
    def images(self) -> int:
        """Images asked about; 0 in a reference."""
        return self.budget // len(self.views.numbers)

    @property
    def path(self) -> PurePosixPath:
        """What the cell is called, and its folder."""
        return PurePosixPath(
            student_name(self.student), self.views.name, self.select, f"n{self.budget}", self.loss.slug
        )

    @property
    def uses_all_labels(self) -> bool:
        """Whether the labels of images that nobody asks about are used."""
        return self.budget == 0 or self.loss.missing == "label-only"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One training."""

    cell: Cell
    seed: int
    """Draws the rows, the first weights and the order."""
    lr: float

    @property
    def path(self) -> PurePosixPath:
        """Its folder below ``runs``."""
        return self.cell.path / f"seed{self.seed}" / f"lr{self.lr:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRun:
    """A run of the ledger: all losses of a cell share what it pays for."""

    select: str
    seed: int
    views: Views
    budget: int

    @property
    def images(self) -> int:
        """Images asked about."""
        return self.budget // len(self.views.numbers)

    @property
    def name(self) -> str:
        """Its name in the ledger."""
        return run_name(select=self.select, seed=self.seed, views=self.views.name, budget=self.budget)


def run_name(*, select: str, seed: int, views: str, budget: int) -> str:
    """Name of the run that pays for one draw of rows."""
    return f"{select}.s{seed}.{views}.n{budget}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Everything that a recipe asks for, in the order of its keys."""

    recipe: Recipe
    cells: tuple[Cell, ...]
    views: tuple[Views, ...]

    def trials(self) -> Iterator[Trial]:
        """Every training."""
        for cell in self.cells:
            for seed in self.recipe.seeds:
                for lr in self.recipe.lr:
                    yield Trial(cell=cell, seed=seed, lr=lr)

    def budget_runs(self) -> Iterator[BudgetRun]:
        """Every run of the ledger, smaller budgets first: larger ones find those answers cached."""
        for select in self.recipe.select:
            for seed in self.recipe.seeds:
                for views in self.views:
                    for budget in sorted(self.recipe.budgets):
                        yield BudgetRun(select=select, seed=seed, views=views, budget=budget)

    @property
    def most_images(self) -> int:
        """Images that the largest budget asks about."""
        return max(run.images for run in self.budget_runs())

    @property
    def least_images(self) -> int:
        """Images that the smallest budget asks about."""
        return min(run.images for run in self.budget_runs())


def build_grid(recipe: Recipe, *, view_policy: str) -> Grid:
    """The grid; InputError for views that the data set does not have, or budgets that are no multiple of them."""
    views = tuple(Views(entry=entry, numbers=parse_views(entry.teacher, policy=view_policy)) for entry in recipe.views)
    for entry in views:
        for budget in recipe.budgets:
            if budget % len(entry.numbers):
                count = len(entry.numbers)
                raise InputError(
                    f"budgets: {budget} calls are no whole number of images under the {count} views of {entry.name!r};"
                    f" use multiples of {count}"
                )
    return Grid(recipe=recipe, cells=tuple(_cells(recipe, views=views)), views=views)


def _cells(recipe: Recipe, *, views: tuple[Views, ...]) -> Iterator[Cell]:
    for student in recipe.students:
        for entry in views:
            for select in recipe.select:
                for budget in recipe.budgets:
                    for loss in recipe.losses:
                        yield Cell(student=student, views=entry, select=select, budget=budget, loss=loss)
            if recipe.references.ce_all:
                yield Cell(student=student, views=entry, select="random", budget=0, loss=CE_ALL)
