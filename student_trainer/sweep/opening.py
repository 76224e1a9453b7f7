"""A recipe held against its data set, losses and students: what a user can get wrong is found before any work."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from shared.datasets.base import ImageDataset
from shared.errors import InputError, TeachonceError, UnknownNameError
from student_trainer.config import TrainConfig
from student_trainer.device_data import stacked
from student_trainer.job import open_data
from student_trainer.losses.base import output_names
from student_trainer.objective import Objective, read_objective
from student_trainer.selecting import STRATEGIES
from student_trainer.student import build_student
from student_trainer.student_outputs import StudentOutputs
from student_trainer.sweep.cells import Cell, Grid, Trial, build_grid
from student_trainer.sweep.draws import RowFiles, check_pool
from student_trainer.sweep.recipe import Recipe
from student_trainer.sweep.trials import Setting
from student_trainer.view_choice import chosen_views

SIZES_LOOKED_AT = 64
"""Images, evenly over the rows, whose sizes are compared before anything is paid for."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Plan:
    """A recipe that can be run."""

    grid: Grid
    setting: Setting
    train_set: ImageDataset
    test_set: ImageDataset


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedStudent:
    """A student that can be trained on the data set's images."""

    network: nn.Module
    image_size: tuple[int, int]
    _asked: dict[str, list[str]] = field(default_factory=dict)

    def asked(self, loss: str, objective: Objective, *, offered: list[str]) -> list[str]:
        """What the loss of this label asks a teacher for beside this student; looked at once for all its cells."""
        if loss not in self._asked:
            said = StudentOutputs(self.network, loss=objective.loss, image_size=self.image_size)
            self._asked[loss] = output_names(objective.outputs(said, offered=offered))
        return self._asked[loss]


def open_plan(recipe: Recipe, *, out: Path, device: str, command: str) -> Plan:
    """Open and check what the recipe names; raises InputError and its kinds, with the cell they are about."""
    cache = recipe.teacher.cache or out / "cache"
    train_set, test_set = open_data(
        TrainConfig(
            dataset=recipe.dataset,
            student=recipe.students[0],
            out=out,
            cache=str(cache),
            data_root=recipe.data_root,
            download=recipe.download,
            view_policy=recipe.view_policy,
        )
    )
    grid = build_grid(recipe, view_policy=train_set.view_policy)
    check_pool(num_rows=train_set.num_rows, most_images=grid.most_images, val=recipe.val)
    setting = Setting(
        recipe=recipe,
        files=RowFiles(out / "rows", val=recipe.val),
        runs=out / "runs",
        cache=cache,
        teacher=None,
        num_rows=train_set.num_rows,
        view_policy=None if train_set.view_policy == train_set.own_policy else train_set.view_policy,
        device=device,
        command=command,
    )
    _check_teacher(recipe)
    for select in recipe.select:
        if select not in STRATEGIES:
            raise UnknownNameError(f"select: unknown selection {select!r}; known: {', '.join(STRATEGIES)}")
    students = {spec: _checked_student(spec, recipe=recipe, dataset=train_set) for spec in recipe.students}
    with _without_warnings():
        for cell in grid.cells:
            _check_cell(cell, setting=setting, dataset=train_set, student=students[cell.student])
    return Plan(grid=grid, setting=setting, train_set=train_set, test_set=test_set)


def _check_teacher(recipe: Recipe) -> None:
    weights = recipe.teacher.weights
    if weights is not None and not weights.is_file():
        raise InputError(
            f"teacher.weights: there is no file {weights}; give the teacher's weights with --weights FILE,"
            " or leave weights out and train a teacher with teacher.train"
        )


@contextmanager
def _without_warnings() -> Iterator[None]:
    """What a recipe leaves without effect in one loss (a cache for ce) is meant for another."""
    logger = logging.getLogger("student_trainer")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _check_cell(cell: Cell, *, setting: Setting, dataset: ImageDataset, student: CheckedStudent) -> None:
    """Raise the errors that the cell's first training would end with."""
    config = setting.config(Trial(cell=cell, seed=setting.recipe.seeds[0], lr=setting.recipe.lr[0]))
    try:
        objective = read_objective(config)
        chosen_views(config, dataset, uses_teacher=objective.asks_teacher)
        offered = setting.recipe.outputs
        lacking = set(student.asked(cell.loss.slug, objective, offered=offered)) - set(offered)
    except TeachonceError as error:
        raise InputError(f"{cell.path}: {error}") from error
    if lacking:
        raise InputError(f"{cell.path}: loss {cell.loss.loss} needs {', '.join(sorted(lacking))}; add it to outputs")
    rows = setting.rows_of(cell)
    if rows < objective.least_batch:
        raise InputError(f"{cell.path}: {rows} images are too few to train on; use {objective.least_batch} or more")


def _checked_student(spec: str, *, recipe: Recipe, dataset: ImageDataset) -> CheckedStudent:
    side = recipe.train.image_size
    shape = dataset.image(0).shape[:2] if side is None else (side, side)
    rows = np.unique(np.linspace(0, dataset.num_rows - 1, SIZES_LOOKED_AT).astype(np.int64))
    try:
        stacked(dataset.images(rows), dataset=dataset, rows=rows, image_size=side)
        network = build_student(spec, classes=len(dataset.classes), image_shape=(shape[0], shape[1]), seed=0)
        return CheckedStudent(network=network, image_size=(shape[0], shape[1]))
    except TeachonceError as error:
        raise InputError(f"students: {error}".replace("--image-size N", "train.image_size: N")) from error
