"""NST: match how a map's channels are distributed over its places, by the distance of their kernel means.

Shape key: B batch, C channels (C1, C2 of two maps), P places of a map (H x W).
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from student_trainer.losses.base import DistillLoss, maps_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.hyper import Limit, MapChoice
from student_trainer.losses.map_sizes import at_one_size


class NST(DistillLoss):
    """Huang and Wang 2017: squared maximum mean discrepancy with the kernel ``(a . b)^2``, summed over maps.

    ``mean k(t, t) + mean k(s, s) - 2 mean k(s, t)`` over the batch and all pairs of channels, each channel a vector
    over the map's places at length 1; the larger map is average-pooled to the size of the smaller. This is RepDistiller
    and mdistiller, with their weight 50 beside cross-entropy; the paper halves it.
    The sum of the kernel over C1 x C2 pairs is the product of two P x P Gram matrices: the smaller way is taken.
    """

    name = "nst"
    default_ce_weight = 1.0
    default_kd_weight = 50.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "maps": Limit(kind=MapChoice),
        "teacher_maps": Limit(kind=MapChoice),
    }
    needs = ("student_maps", "teacher_maps")

    def __init__(self, *, maps: str = "1-", teacher_maps: str = "same") -> None:
        super().__init__()
        hyper = self.read_hyper({"maps": maps, "teacher_maps": teacher_maps})
        self.maps, self.teacher_maps = hyper["maps"], hyper["teacher_maps"]

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        return torch.stack([discrepancy(student, teacher) for student, teacher in maps_of(batch)]).sum()


def discrepancy(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Of one pair of maps, a scalar."""
    student_BCP, teacher_BCP = (
        functional.normalize(one.flatten(2), dim=2) for one in at_one_size(student_BCHW, teacher_BCHW)
    )
    return (
        mean_kernel(teacher_BCP, teacher_BCP)
        + mean_kernel(student_BCP, student_BCP)
        - 2 * mean_kernel(student_BCP, teacher_BCP)
    )


def mean_kernel(first_BCP: Tensor, second_BCP: Tensor) -> Tensor:
    """Mean of ``(a . b)^2`` over the batch and all channels a of one and b of the other."""
    pairs = first_BCP.shape[1] * second_BCP.shape[1]
    if first_BCP.shape[2] ** 2 < pairs:
        first_BPP = first_BCP.mT @ first_BCP
        second_BPP = first_BPP if second_BCP is first_BCP else second_BCP.mT @ second_BCP
        total = (first_BPP * second_BPP).sum()
    else:
        total = (first_BCP @ second_BCP.mT).square().sum()
    return total / (len(first_BCP) * pairs)
