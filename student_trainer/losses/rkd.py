"""RKD: match how samples lie to each other, by distance and by angle.

Shape key: B batch, D width of what is compared, A anchors computed at once.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from shared.errors import InputError
from student_trainer.losses.base import OUTPUTS, DistillLoss, outputs_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit

NUMBERS_AT_ONCE = 2**24
"""Largest tensor of the angle term, in numbers: a larger batch is computed anchor by anchor, twice (64 MiB each)."""
COINCIDENT = 1e-6
"""Distance from which two samples are one point: their distance is this, their direction is none, no gradient."""


class RKD(DistillLoss):
    """Park et al. 2019: ``distance * L_distance + angle * L_angle``, smooth L1 between student and teacher.

    L_distance compares the distances of all pairs, divided by their mean (over i != j; the student's mean carries
    gradient); L_angle the cosines of the angles at i between j and k. Means are over all B^2 and B^3 entries, the
    degenerate ones included, as in the code of the authors and RepDistiller (the paper sums over tuples). Both are
    invariant to shift, rotation and scale of either side, so widths may differ.

    ``on="logits"`` compares logits, as Xu et al. 2025 do where a teacher gives nothing else. ``normalise`` divides each
    sample by its length first, as the authors do for classification; RepDistiller and mdistiller, whose weights 25 and
    50 beside cross-entropy are the defaults, do not. Samples at one point have no direction: there the authors' code
    gives gradients of 1e12, this one 0. Refused below 2 samples (3 with angles), where the authors' is NaN or constant.
    """

    name = "rkd"
    default_ce_weight = 1.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "distance": Limit(kind=float, low=0.0),
        "angle": Limit(kind=float, low=0.0),
        "on": Limit(kind=str, choices=tuple(OUTPUTS)),
        "normalise": Limit(kind=bool),
    }
    needs = OUTPUTS["features"]
    min_rows = 3

    def __init__(
        self,
        *,
        distance: float = 25.0,
        angle: float = 50.0,
        on: Literal["features", "logits"] = "features",
        normalise: bool = False,
    ) -> None:
        super().__init__()
        hyper = self.read_hyper({"distance": distance, "angle": angle, "on": on, "normalise": normalise})
        self.distance: float = hyper["distance"]
        self.angle: float = hyper["angle"]
        self.on: str = hyper["on"]
        self.normalise: bool = hyper["normalise"]
        if self.distance + self.angle == 0:
            raise InputError("rkd: distance and angle are both 0; at least one must be above 0")
        self.needs = OUTPUTS[self.on]
        self.min_rows = 3 if self.angle > 0 else 2

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        student_BD, teacher_BD = outputs_of(batch, on=self.on)
        if self.normalise:
            student_BD, teacher_BD = unit(student_BD, least=1e-12), unit(teacher_BD, least=1e-12)
        total = student_BD.new_zeros(())
        if self.distance > 0:
            error = functional.smooth_l1_loss(relative_distances(student_BD), relative_distances(teacher_BD))
            total = total + self.distance * error
        if self.angle > 0:
            total = total + self.angle * angle_error(student_BD, teacher_BD)
        return total


def unit(vectors: Tensor, *, least: float) -> Tensor:
    """``vectors`` at length 1; zero, without gradient, where they are no longer than ``least``."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors * torch.where(length > least, 1 / length.clamp(min=least), 0)


def relative_distances(points_BD: Tensor) -> Tensor:
    """Distances of all pairs over their mean, [B, B]; the diagonal is 0."""
    # By differences: the usual a^2 + b^2 - 2ab loses all digits where points are close or far from the origin.
    distances_BB = torch.cdist(points_BD, points_BD, compute_mode="donot_use_mm_for_euclid_dist")
    count = len(points_BD)
    others_BB = 1 - torch.eye(count, dtype=distances_BB.dtype, device=distances_BB.device)
    distances_BB = distances_BB.clamp(min=COINCIDENT) * others_BB
    return distances_BB / (distances_BB.sum() / (count * (count - 1)))


def angle_error(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Smooth L1 between the cosines of all B^3 angles, mean; no tensor in it is larger than `NUMBERS_AT_ONCE`."""
    count = len(student_BD)
    widest = max(count, student_BD.shape[1], teacher_BD.shape[1])
    anchors = max(1, NUMBERS_AT_ONCE // (count * widest))
    if anchors >= count:
        return _angle_errors(student_BD, teacher_BD, 0, count) / count**3
    sums = [
        checkpoint(
            _angle_errors, student_BD, teacher_BD, first, first + anchors, use_reentrant=False, preserve_rng_state=False
        )
        for first in range(0, count, anchors)
    ]
    return torch.stack(sums).sum() / count**3


def _angle_errors(student_BD: Tensor, teacher_BD: Tensor, first: int, end: int) -> Tensor:
    """The sum over the angles at anchors ``first`` to ``end``."""
    student_ABB = _cosines(student_BD, student_BD[first:end])
    teacher_ABB = _cosines(teacher_BD, teacher_BD[first:end])
    return functional.smooth_l1_loss(student_ABB, teacher_ABB, reduction="sum")


def _cosines(points_BD: Tensor, anchors_AD: Tensor) -> Tensor:
    """Cosine of the angle at each anchor between every two samples, [A, B, B]."""
    directions_ABD = unit(points_BD - anchors_AD[:, None], least=COINCIDENT)
    return directions_ABD @ directions_ABD.mT
