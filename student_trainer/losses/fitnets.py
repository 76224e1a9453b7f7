"""FitNets: match a map of the teacher by regression from a map of the student.

Shape key: B batch, C channels, D feature width, H height, W width.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses.announced import announced_widths, least_rows
from student_trainer.losses.base import OUTPUTS, features_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import MapShape, TrainingFacts
from student_trainer.losses.hyper import Limit, MapChoice
from student_trainer.losses.trained_pairs import TrainedPairs, drawn_layer


class FitNets(TrainedPairs):
    """Romero et al. 2015: ``mean((r(f) - f_t)^2)`` over all numbers of a map, summed over maps; r is trained.

    r is RepDistiller's ConvReg: a convolution (3x3 with stride 2 where the student's map is twice as large, transposed
    4x4 where it is half as large, else just large enough to reach the teacher's size; 1x1 at equal sizes), batch norm
    and, with ``use_relu``, ReLU. Other sizes are refused. The weight 100 beside cross-entropy and map 2 are
    RepDistiller's. The paper minimises half the squared norm, without batch norm, in a first stage of its own.

    ``on="features"`` compares penultimate features, as they are where both are equally wide (RepDistiller's HintLoss),
    else behind a linear layer; ``maps`` and ``use_relu`` are refused then.
    """

    name = "fitnets"
    default_ce_weight = 1.0
    default_kd_weight = 100.0
    limits: ClassVar[Mapping[str, Limit]] = {
        "maps": Limit(kind=MapChoice),
        "teacher_maps": Limit(kind=MapChoice),
        "on": Limit(kind=str, choices=("maps", "features")),
        "use_relu": Limit(kind=bool),
    }

    def __init__(
        self,
        *,
        maps: str = "2",
        teacher_maps: str = "same",
        on: Literal["maps", "features"] = "maps",
        use_relu: bool = True,
    ) -> None:
        super().__init__()
        hyper = self.read_hyper({"maps": maps, "teacher_maps": teacher_maps, "on": on, "use_relu": use_relu})
        self.maps, self.teacher_maps = hyper["maps"], hyper["teacher_maps"]
        self.on: str = hyper["on"]
        self.use_relu: bool = hyper["use_relu"]
        if self.on == "features":
            self.refuse_unused(hyper, "maps", "teacher_maps", "use_relu", where="on=features", remedy="on=maps")
            self.needs = OUTPUTS["features"]

    def start(self, facts: TrainingFacts) -> None:
        """Regressors drawn from the seed; InputError where sizes do not fit or are not known."""
        if self.on == "features":
            self._start_on_features(facts)
            return
        super().start(facts)
        self.min_rows = least_rows(facts.teacher_maps)

    def part_of(self, student: MapShape, teacher: MapShape, *, generator: torch.Generator) -> nn.Module:
        """The regressor of one pair of maps."""
        return Regressor(student, teacher, use_relu=self.use_relu, generator=generator)

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        return super().value(batch) if self.on == "maps" else self._hint(batch)

    def _start_on_features(self, facts: TrainingFacts) -> None:
        own, other = announced_widths(facts, name=self.name)
        generator = torch.Generator().manual_seed(facts.seed)
        self.parts = nn.ModuleList([] if own == other else [drawn_layer(nn.Linear, own, other, generator=generator)])

    def _hint(self, batch: DistillBatch) -> Tensor:
        student_BD, teacher_BD = features_of(batch)
        for layer in self.parts:
            weight = layer.get_parameter("weight")
            if student_BD.shape[1] != weight.shape[1]:
                raise InputError(
                    f"fitnets: student features are {student_BD.shape[1]} wide; start() was told {weight.shape[1]}"
                )
            student_BD = layer(student_BD.to(weight.dtype))
        if student_BD.shape != teacher_BD.shape:
            raise InputError(
                f"fitnets: student features are {student_BD.shape[1]} wide here and the teacher's"
                f" {teacher_BD.shape[1]}: call loss.start(TrainingFacts(...)) with these widths once before training"
            )
        return functional.mse_loss(student_BD, teacher_BD.to(student_BD.dtype))


class Regressor(nn.Module):
    """Student map -> the teacher's shape, compared with its map: `FitNets` of one pair."""

    def __init__(self, student: MapShape, teacher: MapShape, *, use_relu: bool, generator: torch.Generator) -> None:
        super().__init__()
        self.conv = convolution(student, teacher, generator=generator)
        self.bn = nn.BatchNorm2d(teacher[0])
        self.use_relu = use_relu

    def forward(self, student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
        """Mean squared error, a scalar."""
        regressed_BCHW = self.bn(self.conv(student_BCHW.to(self.conv.weight.dtype)))
        if self.use_relu:
            regressed_BCHW = functional.relu(regressed_BCHW)
        if regressed_BCHW.shape != teacher_BCHW.shape:
            raise InputError(
                f"fitnets: student map {list(student_BCHW.shape)} becomes {list(regressed_BCHW.shape)}, and the"
                f" teacher's is {list(teacher_BCHW.shape)}: other sizes than start() was told"
            )
        return functional.mse_loss(regressed_BCHW, teacher_BCHW.to(regressed_BCHW.dtype))


def convolution(student: MapShape, teacher: MapShape, *, generator: torch.Generator) -> nn.Conv2d | nn.ConvTranspose2d:
    """From a student's map to a teacher's; InputError for sizes that RepDistiller's rules do not reach."""
    (channels, height, width), (teacher_channels, teacher_height, teacher_width) = student, teacher
    if (height, width) == (2 * teacher_height, 2 * teacher_width):
        return drawn_layer(
            nn.Conv2d, channels, teacher_channels, kernel_size=3, stride=2, padding=1, generator=generator
        )
    if (2 * height, 2 * width) == (teacher_height, teacher_width):
        return drawn_layer(
            nn.ConvTranspose2d, channels, teacher_channels, kernel_size=4, stride=2, padding=1, generator=generator
        )
    if height >= teacher_height and width >= teacher_width:
        kernel = (1 + height - teacher_height, 1 + width - teacher_width)
        return drawn_layer(nn.Conv2d, channels, teacher_channels, kernel_size=kernel, generator=generator)
    raise InputError(
        f"no convolution leads from a student map {list(student)} to a teacher map {list(teacher)} (channels, H,"
        " W): the student's must be half as large, or as large or larger; choose others with maps and teacher_maps"
    )
