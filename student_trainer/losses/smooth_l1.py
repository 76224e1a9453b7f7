"""Smooth L1 distance between logits."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from student_trainer.losses.base import DistillLoss, logits_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit


class SmoothL1(DistillLoss):
    """Kim et al. 2021, in their code only: Huber's ``d^2/(2 beta)`` where ``|d| < beta``, else ``|d| - beta/2``.

    d = s - t of raw logits, mean over B x C. The authors use it as they use ``mse``: with beta = 1, without
    cross-entropy.
    """

    name = "smooth_l1"
    limits: ClassVar[Mapping[str, Limit]] = {"beta": Limit(kind=float, low=0.0, above=True)}

    def __init__(self, *, beta: float = 1.0) -> None:
        super().__init__()
        self.beta: float = self.read_hyper({"beta": beta})["beta"]

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BC, teacher_BC = logits_of(batch)
        return functional.smooth_l1_loss(student_BC, teacher_BC, beta=self.beta)
