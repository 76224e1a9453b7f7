"""FSP: match the flow between consecutive feature maps, the products of their channels.

Shape key: B batch, C channels (C1 of the first map of two, C2 of the second), H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from shared.errors import InputError
from student_trainer.losses.base import DistillLoss, maps_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.hyper import Limit, MapChoice
from student_trainer.losses.map_sizes import Pool, at_one_size

Flow = tuple[Tensor, Tensor]
"""Two consecutive maps at one size."""


def _columns(difference_BCC: Tensor) -> Tensor:
    lengths_BC: Tensor = torch.linalg.vector_norm(difference_BCC, dim=1)
    return lengths_BC.sum()


def _max_pool(map_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    pooled: Tensor = functional.adaptive_max_pool2d(map_BCHW, size)
    return pooled


def _squares(difference_BCC: Tensor) -> Tensor:
    return difference_BCC.square().sum()


FORMS: Mapping[str, tuple[Pool, Callable[[Tensor], Tensor], bool]] = {
    "code": (functional.adaptive_avg_pool2d, _squares, True),
    "paper": (_max_pool, _squares, False),
    "torchdistill": (_max_pool, _columns, False),
}
"""(How the larger map is made as small as the other, the sum of errors, whether it is a mean over the matrix)."""


class FSP(DistillLoss):
    """Yim et al. 2017: squared error between ``G = F1 F2^T / (H W)`` of student and teacher, summed over flows.

    F1 and F2 are consecutive maps with channels as rows, the larger pooled to the size of the smaller. With
    ``form="code"`` (RepDistiller) the error is the mean over matrix and batch, after average pooling; with "paper" the
    sum over the matrix, after max pooling; with "torchdistill" the sum of the columns' lengths, not squared, after max
    pooling. Channels of student and teacher must be equal.

    A method of two stages: for ``init_epochs`` (RepDistiller's 30) only this loss counts, afterwards only
    cross-entropy; 0 adds it to cross-entropy all along. The default weight is 1: RepDistiller's script gives 50, which
    its code uses in neither stage. Its first stage has epochs, optimizer and schedule of its own and leaves out the
    last layer.
    """

    name = "fsp"
    default_ce_weight = 1.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "maps": Limit(kind=MapChoice),
        "teacher_maps": Limit(kind=MapChoice),
        "init_epochs": Limit(kind=int, low=0),
        "form": Limit(kind=str, choices=tuple(FORMS)),
    }
    needs = ("student_maps", "teacher_maps")

    def __init__(
        self,
        *,
        maps: str = "0-",
        teacher_maps: str = "same",
        init_epochs: int = 30,
        form: Literal["code", "paper", "torchdistill"] = "code",
    ) -> None:
        super().__init__()
        given = {"maps": maps, "teacher_maps": teacher_maps, "init_epochs": init_epochs, "form": form}
        hyper = self.read_hyper(given)
        self.maps, self.teacher_maps = hyper["maps"], hyper["teacher_maps"]
        self.init_epochs: int = hyper["init_epochs"]
        self.form: str = hyper["form"]

    def start(self, facts: TrainingFacts) -> None:
        """Nothing is trained; InputError where channels differ or there are fewer than two maps."""
        check_flows(facts.student_maps, facts.teacher_maps)

    def begin_epoch(self, epoch: int) -> None:
        """First the flows alone, then cross-entropy alone."""
        self.train_alone(epoch, epochs=self.init_epochs)

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        pairs = maps_of(batch)
        check_flows(*([tuple(one.shape[1:]) for one in maps] for maps in zip(*pairs, strict=True)))
        pool, error, is_mean = FORMS[self.form]
        total = pairs[0][0].new_zeros(())
        for (student_1, teacher_1), (student_2, teacher_2) in pairwise(pairs):
            student = at_one_size(student_1, student_2, pool=pool)
            teacher = at_one_size(teacher_1, teacher_2, pool=pool)
            numbers = student_1.shape[1] * student_2.shape[1] if is_mean else 1
            total = total + summed_error(student, teacher, error=error) / (len(student_1) * numbers)
        return total


def check_flows(student: Sequence[Sequence[int]], teacher: Sequence[Sequence[int]]) -> None:
    """InputError unless the maps, each (channels, H, W), are two or more, with equal channels pair by pair."""
    if len(student) < 2 or len(student) != len(teacher):
        raise InputError(
            f"fsp compares the flow from map to map, and is given {len(student)} of the student and {len(teacher)} of"
            " the teacher; name two or more, as many of both, such as maps=0-"
        )
    for place, (own, other) in enumerate(zip(student, teacher, strict=True)):
        if own[0] != other[0]:
            raise InputError(
                f"fsp needs equal channels, and of the maps compared, number {place} (from 0) is {list(own)} of the"
                f" student and {list(other)} of the teacher (channels, H, W); choose others with maps and teacher_maps,"
                " or another student"
            )


def summed_error(student: Flow, teacher: Flow, *, error: Callable[[Tensor], Tensor]) -> Tensor:
    """``error`` of all samples; a few at a time, twice, where their matrices are larger than the maps."""
    tensors = (*student, *teacher)
    numbers = student[0].shape[1] * student[1].shape[1]
    at_once = max(1, sum(one.numel() for one in tensors) // numbers)
    if at_once >= len(student[0]):
        return _error(*tensors, error=error)
    return torch.stack(
        [
            checkpoint(_error, *part, error=error, use_reentrant=False, preserve_rng_state=False)
            for part in zip(*(torch.split(one, at_once) for one in tensors), strict=True)
        ]
    ).sum()


def _error(
    student_1: Tensor, student_2: Tensor, teacher_1: Tensor, teacher_2: Tensor, *, error: Callable[[Tensor], Tensor]
) -> Tensor:
    return error(_flow(student_1, student_2) - _flow(teacher_1, teacher_2))


def _flow(first_BCHW: Tensor, second_BCHW: Tensor) -> Tensor:
    """The matrices [B, C1, C2] of one network."""
    return first_BCHW.flatten(2) @ second_BCHW.flatten(2).mT / first_BCHW[0, 0].numel()
