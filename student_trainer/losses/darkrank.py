"""DarkRank: keep the order in which a sample's nearest neighbours stand to it.

Shape key: B batch, D width of what is compared, K neighbours ranked.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from student_trainer.losses.base import OUTPUTS, DistillLoss, outputs_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.geometry import as_matrix, pair_distances, unit
from student_trainer.losses.hyper import Limit


class DarkRank(DistillLoss):
    """Chen et al. 2018, in Park et al.'s code: the teacher's ranking of neighbours must be likely for the student.

    With scores ``-alpha * distance^beta``, ``-sum over k of log(exp(s_k) / sum over l >= k of exp(s_l))`` over the
    student's scores of the teacher's ``neighbours`` nearest samples, nearest first (ListMLE, the paper's hard
    variant); mean over the batch. The paper ranks the whole batch, the code of Park et al. the nearest 4 of it.

    ``normalise`` divides each sample by its length first, as networks in both papers do; without, distances as large as
    10 give scores of thousands. ``alpha`` is 3 by default in that code's class, 2 in its script. Weights beside
    cross-entropy are ours: both papers train embeddings. Refused below 3 samples, of which none has an order to keep;
    a batch of fewer than ``neighbours`` others ranks them all.
    """

    name = "darkrank"
    default_ce_weight = 1.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "alpha": Limit(kind=float, low=0.0, above=True),
        "beta": Limit(kind=float, low=0.0, high=6.0, above=True),
        "neighbours": Limit(kind=int, low=2),
        "on": Limit(kind=str, choices=tuple(OUTPUTS)),
        "normalise": Limit(kind=bool),
    }
    needs = OUTPUTS["features"]
    min_rows = 3

    def __init__(
        self,
        *,
        alpha: float = 3.0,
        beta: float = 3.0,
        neighbours: int = 4,
        on: Literal["features", "logits"] = "features",
        normalise: bool = True,
    ) -> None:
        super().__init__()
        given = {"alpha": alpha, "beta": beta, "neighbours": neighbours, "on": on, "normalise": normalise}
        hyper = self.read_hyper(given)
        self.alpha: float = hyper["alpha"]
        self.beta: float = hyper["beta"]
        self.neighbours: int = hyper["neighbours"]
        self.on: str = hyper["on"]
        self.normalise: bool = hyper["normalise"]
        self.needs = OUTPUTS[self.on]

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BD, teacher_BD = outputs_of(batch, on=self.on)
        if self.normalise:
            student_BD, teacher_BD = unit(student_BD, least=1e-12), unit(teacher_BD, least=1e-12)
        count = len(student_BD)
        teacher_BB = as_matrix(pair_distances(teacher_BD), count=count).fill_diagonal_(torch.inf)
        # Samples equally far from another rank by position.
        nearest_BK = teacher_BB.argsort(dim=1, stable=True)[:, : min(self.neighbours, count - 1)]
        student_BB = as_matrix(pair_distances(student_BD), count=count)
        scores_BK = -self.alpha * student_BB.gather(1, nearest_BK).pow(self.beta)
        # Not logcumsumexp, whose gradient loses all digits for scores that differ much. The last one's chance is 1.
        chances = [scores_BK[:, k] - scores_BK[:, k:].logsumexp(dim=1) for k in range(scores_BK.shape[1] - 1)]
        return -torch.stack(chances).sum(dim=0).mean()
