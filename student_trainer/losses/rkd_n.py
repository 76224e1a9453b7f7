"""RKD_n: match differences of samples along a few fixed directions; between a scalar relation and CKD.

Shape key: B batch, W width of what is compared, D directions.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses.base import OUTPUTS, DistillLoss, outputs_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.comparisons import Groups
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.hyper import Limit

PAIRS = Groups(pos=1, neg=1)
"""One sample minus another."""


class RKDN(DistillLoss):
    """Xu et al. 2025, figure 4: how much it matters that a relation has many dimensions.

    The paper leaves its map to n dimensions undefined and its code has none, so the map is our choice: a fixed
    orthonormal projection to ``dims`` directions, drawn at the start and the same for student and teacher. The loss is
    the squared error between the projected differences of samples, mean over all ordered pairs and directions:
    ``2 sum_i |P(d_i - mean d)|^2 / ((B - 1) dims)`` with d the student minus the teacher, in O(B W dims). With all
    directions it is CKD's teacher term (``ckd`` with ``w_cls=0``), with 1 a scalar relation; on average over
    projections it is the same for any number. ``on="features"`` needs features of one width on both sides.
    """

    name = "rkd_n"
    default_ce_weight = 1.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "dims": Limit(kind=int, low=1),
        "on": Limit(kind=str, choices=tuple(OUTPUTS)),
    }
    needs = OUTPUTS["logits"]
    min_rows = 2
    projection: Tensor | None
    """float32 [W, D] with orthonormal columns; None where D = W: turning all differences alike changes no length."""

    def __init__(self, *, dims: int = 1, on: Literal["features", "logits"] = "logits") -> None:
        super().__init__()
        hyper = self.read_hyper({"dims": dims, "on": on})
        self.dims: int = hyper["dims"]
        self.on: str = hyper["on"]
        self.needs = OUTPUTS[self.on]
        self.width: int | None = None
        self.register_buffer("projection", None)

    def start(self, facts: TrainingFacts) -> None:
        """Draw the directions from the seed."""
        width = facts.classes if self.on == "logits" else self._feature_width(facts)
        if self.dims > width:
            raise InputError(f"rkd_n: dims={self.dims} is more than the {width} dimensions of {self.on}")
        self.width = width
        if self.dims < width:
            generator = torch.Generator().manual_seed(facts.seed)
            drawn_WD = torch.randn(width, self.dims, generator=generator, dtype=torch.float64)
            self.projection = torch.linalg.qr(drawn_WD).Q.float()

    def _feature_width(self, facts: TrainingFacts) -> int:
        student, teacher = facts.student_width, facts.teacher_width
        if student is None or student != teacher:
            raise InputError(
                f"rkd_n projects both sides alike, but the student's features are {student} wide and the teacher's"
                f" {teacher}; use on=logits"
            )
        return student

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        if self.width is None:
            raise InputError("rkd_n has no projection yet: call loss.start(TrainingFacts(...)) once before training")
        student_BW, teacher_BW = outputs_of(batch, on=self.on)
        if {student_BW.shape[1], teacher_BW.shape[1]} != {self.width}:
            raise InputError(
                f"rkd_n: {self.on} of {student_BW.shape[1]} (student) and {teacher_BW.shape[1]} (teacher) numbers;"
                f" start() was told {self.width}"
            )
        error_BD = student_BW - teacher_BW
        if self.projection is not None:
            error_BD = error_BD @ self.projection.to(error_BD.dtype)
        return PAIRS.mean_square(error_BD, indices_PG=None)
