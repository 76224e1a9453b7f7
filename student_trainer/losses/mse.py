"""Squared error between logits."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor

from student_trainer.losses.base import DistillLoss, Limit, logits_of
from student_trainer.losses.batch import DistillBatch


class MSE(DistillLoss):
    """Kim et al. 2021: ``(s - t)^2`` of raw logits.

    ``reduction="mean"`` is the mean over B x C, as in the authors' code; ``"sum"`` the sum over classes and mean over
    the batch, as in their Eq. 9 (C times the other). The authors use it without cross-entropy.
    """

    name = "mse"
    limits: ClassVar[Mapping[str, Limit]] = {"reduction": Limit(kind=str, choices=("mean", "sum"))}

    def __init__(self, *, reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        self.reduction: str = self.read_hyper({"reduction": reduction})["reduction"]

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BC, teacher_BC = logits_of(batch)
        squared_BC = (student_BC - teacher_BC).square()
        return squared_BC.mean() if self.reduction == "mean" else squared_BC.sum(dim=1).mean()
