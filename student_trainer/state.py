"""What a training knows at the end of an epoch, and how it is kept for `--resume`."""

import time
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from shared.outputs import calls_per_answer
from student_trainer.job import Job
from student_trainer.losses.base import output_names
from student_trainer.progress import EpochMetrics
from student_trainer.run_folder import RunFolder

Weights = dict[str, Tensor]


class TrainState:
    """Progress of one training. Random numbers are not part of it: they follow from the seed and the epoch."""

    def __init__(self, job: Job, *, optimizer: Optimizer, fabric: Fabric) -> None:
        self._job = job
        self._optimizer = optimizer
        start_momentum(optimizer)
        self._precision = fabric.strategy.precision
        self._saved_s = time.monotonic()
        self.epoch = 0
        """Epochs done."""
        self.best_val: float | None = None
        """Best validation accuracy, 0 to 1."""
        self.best_epoch: int | None = None
        """Last epoch (from 1) that reached it: few held-out rows tie often, and the longer training generalises."""
        self.stage = 0
        """Stages of ``plateau`` done."""
        self.improved_epoch = 0
        """Last epoch (from 1) that raised the best validation accuracy, or began a stage."""
        self.best: Weights | None = None
        """The student's weights then, on the CPU."""
        self.seconds: list[float] = []
        """Training time of each epoch, validation left out."""
        # Looked up in every step: the views in order, each one's column of `consumed`, and what one answer costs.
        self._columns = np.argsort(job.teacher_views)
        self._views = np.asarray(job.teacher_views)[self._columns]
        self._calls_per_answer = calls_per_answer(output_names(job.outputs))
        self.online_calls = 0
        """Teacher calls that the answers used would have cost with the teacher online."""
        self.consumed = np.zeros((len(job.selection.train), len(job.teacher_views)), dtype=np.bool_)
        """Which answers were used, bool [N, views]."""

    @property
    def finished(self) -> bool:
        """Whether no epoch is left."""
        config = self._job.config
        return self.epoch >= config.epochs or (config.schedule == "plateau" and self.stage >= config.stages)

    def note_used(self, positions: NDArray[np.int64], *, views: NDArray[np.int64]) -> None:
        """Account for the answers to these rows [B] that a loss was given at once, each under one of ``views`` [B].

        Rows without an answer use none, and where those with one are too few for the loss it was given none.
        """
        if (
            self._job.uses_teacher
            and self._job.selection.answered[positions].sum() >= self._job.objective.loss.min_rows
        ):
            columns_B = self._columns[np.searchsorted(self._views, views)]
            answered_B = self._job.selection.answered[positions]
            self.consumed[positions[answered_B], columns_B[answered_B]] = True
            self._count(int(answered_B.sum()))

    def _count(self, answers: int) -> None:
        self.online_calls += answers * self._calls_per_answer

    def note_finish(self) -> None:
        """Account for the answers that the loss's finish used: all there are to the first view."""
        if self._job.uses_teacher and self._job.objective.loss.finishes:
            self.consumed[self._job.selection.answered, 0] = True
            self._count(int(self._job.selection.answered.sum()))

    def epoch_done(self, metrics: EpochMetrics) -> None:
        """Move on; remember the weights if none were better on the held-out rows; end a stage that brings no more."""
        self.epoch = metrics.epoch
        objective, loss = self._job.objective, self._job.objective.loss
        if objective.ce_weight > 0 and loss.ce_factor == 0:
            # A stage without cross-entropy: nobody has trained the last layer yet, its accuracy says nothing.
            self.improved_epoch = metrics.epoch
            return
        if metrics.val_accuracy is not None and (self.best_val is None or metrics.val_accuracy >= self.best_val):
            if self.best_val is None or metrics.val_accuracy > self.best_val:
                self.improved_epoch = metrics.epoch
            self.best_val, self.best_epoch = metrics.val_accuracy, metrics.epoch
            self.best = {name: value.cpu().clone() for name, value in self._job.student.state_dict().items()}
        config = self._job.config
        if config.schedule == "plateau" and self.epoch - self.improved_epoch >= config.patience:
            self._next_stage()

    def _next_stage(self) -> None:
        """Go back to the best weights; what momentum remembers belongs to others, and a loss's own weights go on."""
        self.stage, self.improved_epoch = self.stage + 1, self.epoch
        if self.best is not None and not self.finished:
            self._job.student.load_state_dict(self.best)
            start_momentum(self._optimizer)

    def save(self, folder: RunFolder, *, least_s: float) -> None:
        """Keep the state, unless the one before is younger than ``least_s``."""
        if time.monotonic() - self._saved_s < least_s:
            return
        job = self._job
        folder.save_state(
            {
                "epoch": self.epoch,
                "best_val": self.best_val,
                "best_epoch": self.best_epoch,
                "stage": self.stage,
                "improved_epoch": self.improved_epoch,
                "best": self.best,
                "seconds": self.seconds,
                "online_calls": self.online_calls,
                "consumed": torch.from_numpy(self.consumed),
                "teacher_calls": job.targets.teacher_calls if job.targets is not None else 0,
                "student": job.student.state_dict(),
                "loss": job.objective.loss.state_dict(),
                "optimizer": self._optimizer.state_dict(),
                "precision": self._precision.state_dict(),
            }
        )
        self._saved_s = time.monotonic()

    def restore(self, folder: RunFolder) -> bool:
        """Go on from the last state kept; whether there is one."""
        saved: dict[str, Any] | None = folder.load_state()
        if saved is None:
            return False
        job = self._job
        self.epoch = saved["epoch"]
        self.best_val, self.best_epoch, self.best = saved["best_val"], saved["best_epoch"], saved["best"]
        self.stage, self.improved_epoch = saved["stage"], saved["improved_epoch"]
        self.seconds = list(saved["seconds"])
        self.online_calls = saved["online_calls"]
        self.consumed = saved["consumed"].numpy().copy()
        if job.targets is not None:
            job.targets.teacher_calls = saved["teacher_calls"]
        job.student.load_state_dict(saved["student"])
        job.objective.loss.load_state_dict(saved["loss"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._precision.load_state_dict(saved["precision"])
        return True

    def charged(self) -> int:
        """Distinct teacher answers used: rows with the same pixels share one."""
        targets = self._job.targets
        if targets is None or not self.consumed.any():
            return 0
        keys = [
            targets.keys(self._job.selection.train[self.consumed[:, column]], view=view)
            for column, view in enumerate(self._job.teacher_views)
            if self.consumed[:, column].any()
        ]
        return len(np.unique(np.concatenate(keys), axis=0))

    def images_per_second(self) -> float:
        """Training images per second; the first epoch warms up and is left out where there are more."""
        timed = self.seconds[1:] or self.seconds
        return len(timed) * len(self._job.selection.train) / sum(timed)


def start_momentum(optimizer: Optimizer) -> None:
    """Set all momentum to 0, as a first step would find it.

    torch's fused SGD takes momentum for all parameters of a step or for none, and a loss with stages or a warm-up may
    give some parameters their first gradient later than others.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if group["momentum"] != 0 and parameter.requires_grad:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
