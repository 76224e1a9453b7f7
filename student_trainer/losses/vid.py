"""VID: predict the teacher's maps from the student's, with a trained mean and a trained variance per channel.

Shape key: B batch, C channels, H height, W width.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from shared.errors import InputError
from student_trainer.losses.facts import MapShape
from student_trainer.losses.hyper import Limit, MapChoice
from student_trainer.losses.map_sizes import at_one_size
from student_trainer.losses.trained_pairs import TrainedPairs, drawn_layer


class VID(TrainedPairs):
    """Ahn et al. 2019: ``mean(((m(f) - f_t)^2 / v + log v) / 2)``, summed over maps; m and v are trained.

    m is three 1x1 convolutions without bias with ReLU between; ``v = log(1 + exp(log_scale)) + eps`` per channel of the
    teacher, at first ``init_pred_var``. The larger map is average-pooled to the size of the smaller. The mean over all
    numbers is the authors' code (the paper sums), the dropped constant log(2 pi) / 2 as well. In mdistiller v stays
    what it was at first: its log_scale reaches no optimizer. Here it is trained, as by the authors and RepDistiller.
    """

    name = "vid"
    default_ce_weight = 1.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "maps": Limit(kind=MapChoice),
        "teacher_maps": Limit(kind=MapChoice),
        "init_pred_var": Limit(kind=float, low=0.0, above=True),
        "eps": Limit(kind=float, low=0.0, above=True),
    }

    def __init__(
        self, *, maps: str = "1-", teacher_maps: str = "same", init_pred_var: float = 5.0, eps: float = 1e-5
    ) -> None:
        super().__init__()
        given = {"maps": maps, "teacher_maps": teacher_maps, "init_pred_var": init_pred_var, "eps": eps}
        hyper = self.read_hyper(given)
        self.maps, self.teacher_maps = hyper["maps"], hyper["teacher_maps"]
        self.init_pred_var: float = hyper["init_pred_var"]
        self.eps: float = hyper["eps"]
        if self.init_pred_var <= self.eps:
            raise InputError(f"vid: init_pred_var={self.init_pred_var} must be above eps={self.eps}")

    def part_of(self, student: MapShape, teacher: MapShape, *, generator: torch.Generator) -> nn.Module:
        """Mean and variance for one pair of maps."""
        variance = self.init_pred_var - self.eps
        # log(exp(v) - 1), which does not overflow this way.
        log_scale = variance + math.log(-math.expm1(-variance))
        return Prediction(student[0], teacher[0], log_scale=log_scale, eps=self.eps, generator=generator)


class Prediction(nn.Module):
    """A Gaussian for a teacher's map, from a student's: `VID` of one pair."""

    def __init__(
        self, channels: int, teacher_channels: int, *, log_scale: float, eps: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        widths = (channels, *[teacher_channels] * 3)
        convolutions = [
            drawn_layer(nn.Conv2d, one, after, kernel_size=1, bias=False, generator=generator)
            for one, after in pairwise(widths)
        ]
        self.regressor = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])
        self.log_scale = nn.Parameter(torch.full((teacher_channels,), log_scale))
        self.eps = eps

    def forward(self, student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
        """Negative log likelihood, mean over all numbers, a scalar."""
        student_BCHW, teacher_BCHW = (one.to(self.log_scale.dtype) for one in at_one_size(student_BCHW, teacher_BCHW))
        error_C = (self.regressor(student_BCHW) - teacher_BCHW).square().mean(dim=(0, 2, 3))
        variance_C = torch.logaddexp(self.log_scale, torch.zeros_like(self.log_scale)) + self.eps
        surprise_C: Tensor = (error_C / variance_C + variance_C.log()) / 2
        return surprise_C.mean()
