"""Squared error between logits."""

from collections.abc import Callable, Mapping
from functools import reduce
from typing import ClassVar, Literal

import torch
from torch import Tensor

from student_trainer.losses.base import DistillLoss, logits_of, onehot_of, widen
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit

Target = Callable[[DistillBatch], Tensor]


def _teacher(batch: DistillBatch) -> Tensor:
    return logits_of(batch)[1]


TARGETS: Mapping[str, tuple[Target, ...]] = {
    "teacher": (_teacher,),
    "midpoint": (lambda batch: (_teacher(batch) + onehot_of(batch)) / 2,),
    "labels": (onehot_of,),
    "both": (_teacher, onehot_of),
}
"""What the student's logits are compared with, each [B, C]; the errors are summed."""


class MSE(DistillLoss):
    """Kim et al. 2021: ``(s - t)^2`` of raw logits.

    ``reduction="mean"`` is the mean over B x C, as in the authors' code; ``"sum"`` the sum over classes and mean over
    the batch, as in their Eq. 9 (C times the other). The authors use it without cross-entropy.

    ``target`` other than ``"teacher"`` makes the controls of ckd, whose two terms together are logit matching to the
    midpoint of teacher and one-hot label with a free offset: ``"midpoint"`` is ``(t + y)/2``; ``"both"`` adds the
    errors to t and to y (twice the midpoint's gradient); ``"labels"`` is y alone and asks no teacher.
    """

    name = "mse"
    limits: ClassVar[Mapping[str, Limit]] = {
        "reduction": Limit(kind=str, choices=("mean", "sum")),
        "target": Limit(kind=str, choices=tuple(TARGETS)),
    }

    def __init__(
        self,
        *,
        reduction: Literal["mean", "sum"] = "mean",
        target: Literal["teacher", "midpoint", "labels", "both"] = "teacher",
    ) -> None:
        super().__init__()
        hyper = self.read_hyper({"reduction": reduction, "target": target})
        self.reduction: str = hyper["reduction"]
        self.target: str = hyper["target"]
        alone = {"teacher": ("teacher_logits",), "labels": ("labels",)}
        self.needs = alone.get(self.target, ("teacher_logits", "labels"))

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BC = widen(batch.student_logits)
        squared_BC = reduce(torch.add, ((student_BC - target(batch)).square() for target in TARGETS[self.target]))
        return squared_BC.mean() if self.reduction == "mean" else squared_BC.sum(dim=1).mean()
