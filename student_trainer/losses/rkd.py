"""RKD: match how samples lie to each other, by distance and by angle.

Shape key: B batch, D width of what is compared, P pairs, A anchors computed at once.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses.base import OUTPUTS, DistillLoss, outputs_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.geometry import COINCIDENT, as_matrix, pair_distances, unit
from student_trainer.losses.hyper import Limit

NUMBERS_AT_ONCE = 2**16
"""Largest tensor of the angle term, in numbers, or B^2 if that is more: half a MiB stays in a processor's own cache."""
RELATIVE = 1e-7
"""Distance from which two samples are one point in the angle term, beside that of the farthest sample to the mean."""


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

    Samples at one point have no direction: there the authors' code gives gradients of 1e12, this one 0. One point is a
    distance of up to 1e-6, and for angles up to 1e-7 of that of the farthest sample to the mean. Refused below 2
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
        if self.distance == 0:
            self.refuse_unused(hyper, "squared", where="distance=0", remedy="distance above 0")
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
    """Smooth L1 between the cosines of all B^3 angles, mean. No gradient of the gradient."""
    error: Tensor = _AngleError.apply(student_BD, teacher_BD)
    return error


class _AngleError(torch.autograd.Function):
    """Cosines from products of pairs, and the gradient beside the value: no tensor of B^3 or B^2 D numbers is made.

    The cosine at i between j and k is ``(G_jk - G_ij - G_ik + G_ii) r_ij r_ik`` with G the products of samples about
    their mean, and r one over their distance (0 where they coincide). In float64, since these differences cancel.
    """

    @staticmethod
    def forward(ctx: Any, student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
        student, teacher = _Side(student_BD), _Side(teacher_BD)
        count = len(student_BD)
        total = student.products_BB.new_zeros(())
        # How the sum of errors changes with the student's products, and with its distances (over the distance).
        by_product_BB, by_distance_BB = torch.zeros_like(student.products_BB), torch.zeros_like(student.products_BB)
        anchors = max(1, NUMBERS_AT_ONCE // count**2)
        for first in range(0, count, anchors):
            part = slice(first, min(first + anchors, count))
            cosines_ABB = student.cosines(part)
            error_ABB = cosines_ABB - teacher.cosines(part)
            slope_ABB = error_ABB.clamp(-1, 1)
            # e^2 / 2 below 1, |e| - 1/2 above.
            total += (error_ABB.sub_(slope_ABB / 2).mul_(slope_ABB)).sum()
            inverse_AB = student.inverse_BB[part]
            by_distance_BB[part] = -2 * inverse_AB.square() * cosines_ABB.mul_(slope_ABB).sum(dim=2)
            slope_ABB.mul_(inverse_AB[:, :, None]).mul_(inverse_AB[:, None, :])
            by_product_BB += slope_ABB.sum(dim=0)
            sums_AB = slope_ABB.sum(dim=2)
            by_product_BB[part] -= 2 * sums_AB
            by_product_BB.diagonal()[part] += sums_AB.sum(dim=1)
        pull_BB = by_distance_BB + by_distance_BB.T
        by_product_BB = by_product_BB + by_product_BB.T - pull_BB
        by_product_BB.diagonal().add_(pull_BB.sum(dim=1))
        ctx.save_for_backward((by_product_BB @ student.centred_BD / count**3).to(student_BD.dtype))
        return (total / count**3).to(student_BD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient_BD,) = ctx.saved_tensors
        return grad * gradient_BD, None


class _Side:
    """What the cosines of one side's angles are made of, in float64."""

    def __init__(self, points_BD: Tensor) -> None:
        wide_BD = points_BD.double()
        self.centred_BD = wide_BD - wide_BD.mean(dim=0)
        self.products_BB = self.centred_BD @ self.centred_BD.T
        distances_P = torch.pdist(wide_BD)
        # Below that the differences of products hold no digit of the square of a distance.
        least = (RELATIVE * self.products_BB.diagonal().amax().sqrt()).clamp(min=COINCIDENT)
        inverse_P = distances_P.reciprocal().masked_fill_(distances_P <= least, 0.0)
        self.inverse_BB = as_matrix(inverse_P, count=len(points_BD))

    def cosines(self, part: slice) -> Tensor:
        """Of the angles at the anchors in ``part`` between every two samples, [A, B, B]."""
        own_AB, inverse_AB = self.products_BB[part], self.inverse_BB[part]
        square_A = self.products_BB.diagonal()[part]
        cosines_ABB = self.products_BB - own_AB[:, :, None]
        cosines_ABB.sub_((own_AB - square_A[:, None])[:, None, :])
        cosines_ABB.mul_(inverse_AB[:, :, None]).mul_(inverse_AB[:, None, :])
        # Of a direction with itself, which close samples would leave few digits of.
        cosines_ABB.diagonal(dim1=1, dim2=2).copy_(inverse_AB > 0)
        return cosines_ABB
