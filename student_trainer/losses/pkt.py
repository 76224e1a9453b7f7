"""PKT: match how alike samples are, as probabilities.

Shape key: B batch, D width of what is compared.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from student_trainer.losses.base import OUTPUTS, DistillLoss, outputs_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit

EPS = 1e-7
"""The authors' guard of lengths and logarithms."""


class PKT(DistillLoss):
    """Passalis & Tefas 2018: ``mean of t * log((t + eps) / (s + eps))`` over all B^2 pairs, the pairs i = i included.

    t and s are the cosines of the teacher's and the student's samples, moved to 0..1 by ``(1 + cosine)/2`` and divided
    by their sum over each row. This is the code of the authors and of RepDistiller, whose weight is the default; the
    paper sums over i != j. Widths may differ. A sample of length ``eps`` or less counts as zero and gets no gradient,
    where the authors' is NaN at zero.
    """

    name = "pkt"
    default_ce_weight = 1.0
    default_kd_weight = 30000.0
    limits: ClassVar[Mapping[str, Limit]] = {"on": Limit(kind=str, choices=tuple(OUTPUTS))}
    needs = OUTPUTS["features"]

    def __init__(self, *, on: Literal["features", "logits"] = "features") -> None:
        super().__init__()
        self.on: str = self.read_hyper({"on": on})["on"]
        self.needs = OUTPUTS[self.on]

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BD, teacher_BD = outputs_of(batch, on=self.on)
        student_BB, teacher_BB = similarities(student_BD), similarities(teacher_BD)
        more_BB = teacher_BB - student_BB
        # log((t + eps) / (s + eps)), right to the last digit where t and s are close. Rows of both sum to 1, so their
        # difference adds nothing to the mean; it takes away what would be most of the terms, and of their rounding.
        return (teacher_BB * (more_BB / (student_BB + EPS)).log1p() - more_BB).mean()


def similarities(points_BD: Tensor) -> Tensor:
    """Cosines of all pairs moved to 0..1, each row divided by its sum, [B, B]."""
    length_B1 = torch.linalg.vector_norm(points_BD, dim=1, keepdim=True)
    unit_BD = points_BD / torch.where(length_B1 > EPS, length_B1 + EPS, torch.inf)
    shares_BB = ((unit_BD @ unit_BD.T + 1) / 2).clamp(min=0)
    return shares_BB / shares_BB.sum(dim=1, keepdim=True)
