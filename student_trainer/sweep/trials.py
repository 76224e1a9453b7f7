"""One trial of the grid as a training, and the learning rate that its cell ends up with."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from student_trainer.config import TrainConfig
from student_trainer.sweep.cells import Cell, Trial, run_name
from student_trainer.sweep.draws import RowFiles, pool_rows
from student_trainer.sweep.recipe import Recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all trials of a sweep share."""

    recipe: Recipe
    files: RowFiles
    runs: Path
    cache: Path | None
    """Folder of the answers; None before there are any."""
    teacher: str | None
    """Id of who answered."""
    num_rows: int
    """Rows of the training split."""
    device: str
    command: str
    view_policy: str | None = None
    """What the training split's views are, where not its own crops."""
    paid: frozenset[str] = frozenset()
    """Runs that the ledger knows."""

    @property
    def run_prefix(self) -> str:
        """What the ledger's runs are called by: a server that others use too keeps sweeps apart by name."""
        return "" if self.recipe.teacher.server is None else f"{self.recipe.name}."

    def ledger_run(self, trial: Trial) -> str | None:
        """The run that paid for a trial's answers; None where this sweep asked nobody."""
        cell = trial.cell
        name = run_name(select=cell.select, seed=trial.seed, views=cell.views.name, budget=cell.budget)
        return self.run_prefix + name if self.run_prefix + name in self.paid else None

    def rows_of(self, cell: Cell) -> int:
        """Rows that a trial trains on."""
        return pool_rows(self.num_rows, val=self.recipe.val) if cell.uses_all_labels else cell.images

    def forwards(self, trial: Trial) -> int:
        """Student forwards of a trial, at most."""
        return self.rows_of(trial.cell) * self.config(trial).epochs

    def config(self, trial: Trial) -> TrainConfig:
        """The training of a trial, up to but not including its test."""
        cell, recipe, files = trial.cell, self.recipe, self.files
        asked = None if cell.budget == 0 else files.asked(select=cell.select, seed=trial.seed, images=cell.images)
        held = files.held(seed=trial.seed, images=None if cell.uses_all_labels else cell.images)
        return TrainConfig(
            **self._common(),
            **recipe.train.options(rows=self.rows_of(cell)),
            student=cell.student,
            out=self.runs / trial.path,
            loss=cell.loss.loss,
            hyper=cell.loss.set,
            ce_weight=cell.loss.ce_weight,
            kd_weight=cell.loss.kd_weight,
            cache=None if self.cache is None else str(self.cache),
            expect_teacher=self.teacher,
            rows=files.all(seed=trial.seed) if cell.uses_all_labels else asked,
            answer_rows=asked if cell.loss.missing == "label-only" else None,
            missing=cell.loss.policy,
            val=0.0,
            val_rows=held,
            teacher_views=cell.views.entry.teacher,
            student_views=cell.views.entry.student,
            lr=trial.lr,
            seed=trial.seed,
            test=False,
            test_sample=recipe.test_sample,
        )

    def first_student(self, *, seed: int, images: int, out: Path) -> TrainConfig:
        """The student that some selections look at, trained on the labels of the first images."""
        recipe = self.recipe
        return TrainConfig(
            **self._common(),
            **recipe.train.options(rows=images),
            student=recipe.students[0],
            out=out,
            loss="ce",
            rows=self.files.asked(select="random", seed=seed, images=images),
            val=0.0,
            val_rows=self.files.held(seed=seed, images=images),
            student_views="clean",
            # Of the rates the middle one, of an even number the smaller: this training is not tuned.
            lr=sorted(recipe.lr)[(len(recipe.lr) - 1) // 2],
            seed=seed,
            test=False,
        )

    def _common(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "dataset": recipe.dataset,
            "data_root": recipe.data_root,
            "download": recipe.download,
            "view_policy": self.view_policy,
            "device": self.device,
            # One thread: as many trainings as there are cores, and bits that do not depend on how many.
            "threads": 1,
            "resume": True,
            "tensorboard": False,
            "checkpoint_every_s": 5.0,
            "command": self.command,
        }


def choose_rates(scores: Iterable[tuple[Trial, float | None]]) -> dict[PurePosixPath, float]:
    """The learning rate of each cell, by its path: the best mean score over its seeds, among equals the smallest rate.

    A score is a validation accuracy; None, of a diverged training, counts as 0. A cell of which all diverged gets none.
    """
    by_rate: dict[PurePosixPath, dict[float, list[float | None]]] = defaultdict(lambda: defaultdict(list))
    for trial, score in scores:
        by_rate[trial.cell.path][trial.lr].append(score)
    return {
        path: min(rates, key=lambda lr: (-_mean(rates[lr]), lr))
        for path, rates in by_rate.items()
        if any(score is not None for scores_of_rate in rates.values() for score in scores_of_rate)
    }


def _mean(scores: list[float | None]) -> float:
    # Accuracies are fractions of few images: rounding keeps equal means equal in whatever order they are added.
    return round(sum(score or 0.0 for score in scores) / len(scores), 9)
