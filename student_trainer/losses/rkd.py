"""RKD: match how samples lie to each other, by distance and by angle.

Shape key: B batch, D width of what is compared, P pairs, A anchors computed at once.
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
from student_trainer.losses.geometry import COINCIDENT, pair_distances, unit
from student_trainer.losses.hyper import Limit

NUMBERS_AT_ONCE = 2**24
"""Largest tensor of the angle term, in numbers: a larger batch is computed anchor by anchor, twice (64 MiB each)."""


class RKD(DistillLoss):
    """Park et al. 2019: ``distance * L_distance + angle * L_angle``, smooth L1 between student and teacher.

    L_distance compares the distances of all pairs, divided by their mean (over i != j; the student's mean carries
    gradient); L_angle the cosines of the angles at i between j and k. Means are over all B^2 and B^3 entries, the
    degenerate ones included, as in the code of the authors and RepDistiller (the paper sums over tuples). Both are
    invariant to shift, rotation and scale of either side, so widths may differ.

    ``on="logits"`` compares logits, as Xu et al. 2025 do where a teacher gives nothing else. ``normalise`` divides each
    sample by its length first, as the authors do for classification; RepDistiller and mdistiller, whose weights 25 and
    50 beside cross-entropy are the defaults, do not. ``squared`` compares squared distances, an option of mdistiller.
    ``per_class`` fills batches with so many samples of each class drawn (`student_trainer.samplers`): 5 in the code of
    the authors and of Xu et al.; 0 draws from all rows alike, as RepDistiller does.

    Samples at one point have no direction: there the authors' code gives gradients of 1e12, this one 0. Refused below 2
    samples (3 with angles), where the authors' is NaN or constant. No gradient of the gradient.
    """

    name = "rkd"
    default_ce_weight = 1.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "distance": Limit(kind=float, low=0.0),
        "angle": Limit(kind=float, low=0.0),
        "on": Limit(kind=str, choices=tuple(OUTPUTS)),
        "normalise": Limit(kind=bool),
        "squared": Limit(kind=bool),
        "per_class": Limit(kind=int, low=0),
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
        squared: bool = False,
        per_class: int = 0,
    ) -> None:
        super().__init__()
        given = {"distance": distance, "angle": angle, "on": on, "normalise": normalise, "squared": squared}
        hyper = self.read_hyper(given | {"per_class": per_class})
        self.distance: float = hyper["distance"]
        self.angle: float = hyper["angle"]
        self.on: str = hyper["on"]
        self.normalise: bool = hyper["normalise"]
        self.squared: bool = hyper["squared"]
        self.samples_per_class = hyper["per_class"] or None
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
            total = total + self.distance * distance_error(student_BD, teacher_BD, squared=self.squared)
        if self.angle > 0:
            total = total + self.angle * angle_error(student_BD, teacher_BD)
        return total


def distance_error(student_BD: Tensor, teacher_BD: Tensor, *, squared: bool) -> Tensor:
    """Smooth L1 between the relative distances of all B^2 pairs, mean; equal indices are no error."""
    student_P, teacher_P = (relative_distances(side_BD, squared=squared) for side_BD in (student_BD, teacher_BD))
    return 2 * functional.smooth_l1_loss(student_P, teacher_P, reduction="sum") / len(student_BD) ** 2


def relative_distances(points_BD: Tensor, *, squared: bool) -> Tensor:
    """Distances of all pairs, or their squares, over their mean, [P]."""
    distances_P = pair_distances(points_BD)
    if squared:
        distances_P = distances_P.square()
    return distances_P / distances_P.mean()


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
