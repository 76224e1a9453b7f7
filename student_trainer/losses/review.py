"""Review: fuse the student's maps from the deepest to the first, and compare each with the teacher's at four sizes.

Shape key: B batch, C channels, H height, W width, M channels in between.
"""

from collections.abc import Collection, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import InputError
from shared.outputs import PREACTS
from student_trainer.losses.announced import ShapePair, announced_maps, announced_widths, maps_as_announced
from student_trainer.losses.base import DistillLoss, features_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.connectors import as_input, drawn
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.hyper import Limit, MapChoice

MOST_MIDDLE = 512
"""Most channels that maps are fused in."""
POOLED_SIDES = (4, 2, 1)
"""Heights and widths that maps are compared at, beside their own."""


class Review(DistillLoss):
    """Chen et al. 2021: ``sum over levels of hcl(fused student, teacher)``.

    A level is a map; the last one is the pooled features, as a map of one place. From the deepest on, each of the
    student's levels and what the deeper ones left are weighed place by place (attention-based fusion), then convolved
    to the teacher's channels and size. ``hcl`` is the mean squared difference, and with weights 1/2, 1/4, 1/8 that of
    both pooled to 4 x 4, 2 x 2, 1 x 1 where the map is larger, divided by the weights' sum.

    The weight grows from 0 over ``warmup_epochs``: ``min(1, epoch / warmup_epochs)``, with epochs from 0 as in the
    authors' code (mdistiller counts from 1). The default weight 5 is that of most of the authors' CIFAR-100 scripts
    (resnet110 to resnet32: 1; resnet56 to resnet20: 0.6; resnet32x4 to shuffle_v2: 8). The teacher's maps are those
    before the activation, the student's those after it, as in the authors' code; ``student_preact`` takes the student's
    before it, too, an option of mdistiller. ``fusion=false`` compares maps of equal shapes as they are: ``hcl`` alone.
    """

    name = "review"
    default_ce_weight = 1.0
    default_kd_weight = 5.0
    limits: ClassVar[dict[str, Limit]] = {
        "warmup_epochs": Limit(kind=int, low=0),
        "fusion": Limit(kind=bool),
        "student_preact": Limit(kind=bool),
        "maps": Limit(kind=MapChoice),
        "teacher_maps": Limit(kind=MapChoice),
    }
    needs: tuple[str, ...] = ("student_maps", "teacher_maps", "student_features", "teacher_features")
    min_rows = 2

    def __init__(
        self,
        *,
        warmup_epochs: int = 20,
        fusion: bool = True,
        student_preact: bool = False,
        maps: str = "1-",
        teacher_maps: str = "same",
    ) -> None:
        super().__init__()
        given = {"warmup_epochs": warmup_epochs, "fusion": fusion, "student_preact": student_preact}
        hyper = self.read_hyper(given | {"maps": maps, "teacher_maps": teacher_maps})
        self.warmup_epochs: int = hyper["warmup_epochs"]
        self.fusion: bool = hyper["fusion"]
        self.before_activation = hyper["student_preact"]
        self.maps, self.teacher_maps = hyper["maps"], hyper["teacher_maps"]
        self.abfs = nn.ModuleList()
        self._shapes: Sequence[ShapePair] | None = None
        if not self.fusion:
            # Without batch norms of one place one sample will do.
            self.min_rows, self.needs = 1, ("student_maps", "teacher_maps")

    def teacher_outputs(self, *, student_maps: int, offered: Collection[str]) -> dict[str, tuple[str, ...]]:
        """As every loss, but the teacher's maps are before the activation whichever the student's are."""
        found = super().teacher_outputs(student_maps=student_maps, offered=offered)
        numbers = (name.rpartition(".")[2] for name in found["teacher_maps"])
        return found | {"teacher_maps": tuple(f"{PREACTS}{number}" for number in numbers)}

    def start(self, facts: TrainingFacts) -> None:
        """Fusing blocks, the deepest first, drawn from the seed; InputError where the facts do not suffice."""
        self._shapes = announced_maps(facts, name=self.name)
        if not self.fusion:
            return
        student_width, teacher_width = announced_widths(facts, name=self.name)
        widths = [(student[0], teacher[0]) for student, teacher in self._shapes]
        widths.append((student_width, teacher_width))
        middle = min(MOST_MIDDLE, student_width)
        generator = torch.Generator().manual_seed(facts.seed)
        self.abfs = nn.ModuleList(
            Fusing.drawn_as(own, middle=middle, width_out=other, fuses=deepness > 0, generator=generator)
            for deepness, (own, other) in enumerate(reversed(widths))
        )

    def begin_epoch(self, epoch: int) -> None:
        """The warm-up."""
        self.kd_factor = min(1.0, epoch / self.warmup_epochs) if self.warmup_epochs > 0 else 1.0

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        pairs = maps_as_announced(batch, self._shapes, name=self.name)
        if self.fusion:
            student_BD, teacher_BD = features_of(batch)
            pairs = self._fused([*pairs, (student_BD[:, :, None, None], teacher_BD[:, :, None, None])])
        return torch.stack([hcl(own, other.to(own.dtype)) for own, other in pairs]).sum()

    def _fused(self, levels: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        """The student's levels with all that is deeper in them, in the teacher's shapes, beside the teacher's."""
        fused: list[tuple[Tensor, Tensor]] = []
        rest_BMHW: Tensor | None = None
        for abf, (student_BCHW, teacher_BCHW) in zip(self.abfs, reversed(levels), strict=True):
            own_BCHW, rest_BMHW = abf(as_input(student_BCHW, abf), rest_BMHW, size=teacher_BCHW.shape[2:])
            fused.append((own_BCHW, teacher_BCHW))
        return fused


class Fusing(nn.Module):
    """Attention-based fusion of one level with what the deeper ones left."""

    def __init__(self, width_in: int, *, middle: int, width_out: int, fuses: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(width_in, middle, 1, bias=False), nn.BatchNorm2d(middle))
        self.conv2 = nn.Sequential(nn.Conv2d(middle, width_out, 3, padding=1, bias=False), nn.BatchNorm2d(width_out))
        self.att_conv = nn.Sequential(nn.Conv2d(2 * middle, 2, 1), nn.Sigmoid()) if fuses else None

    @staticmethod
    def drawn_as(width_in: int, *, middle: int, width_out: int, fuses: bool, generator: torch.Generator) -> "Fusing":
        """With the authors' initial weights."""
        block = drawn(lambda: Fusing(width_in, middle=middle, width_out=width_out, fuses=fuses), generator=generator)
        for name in ("conv1.0.weight", "conv2.0.weight"):
            nn.init.kaiming_uniform_(block.get_parameter(name), a=1, generator=generator)
        return block

    def forward(self, x: Tensor, rest_BMHW: Tensor | None, *, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(what is compared with the teacher, what is left for the next level), both of height and width ``size``."""
        x = self.conv1(x)
        if self.att_conv is not None and rest_BMHW is not None:
            x = self._weighed(x, rest_BMHW, conv=self.att_conv.get_submodule("0"))
        x = _resized(x, size)
        return self.conv2(x), x

    def _weighed(self, x: Tensor, rest_BMHW: Tensor, *, conv: nn.Module) -> Tensor:
        """Of both, by weights that a 1x1 convolution of both gives; that of the smaller is taken before it grows."""
        weight, bias = conv.get_parameter("weight"), conv.get_parameter("bias")
        of_own, of_rest = weight.chunk(2, dim=1)
        scores_B2HW = functional.conv2d(x, of_own, bias) + _resized(functional.conv2d(rest_BMHW, of_rest), x.shape[2:])
        own_B1HW, rest_B1HW = scores_B2HW.sigmoid().chunk(2, dim=1)
        return torch.addcmul(x * own_B1HW, _resized(rest_BMHW, x.shape[2:]), rest_B1HW)


def _resized(values_BCHW: Tensor, size: Sequence[int]) -> Tensor:
    """By the nearest neighbour."""
    if values_BCHW.shape[2:] == tuple(size):
        return values_BCHW
    return functional.interpolate(values_BCHW, list(size), mode="nearest")


def hcl(student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
    """Hierarchical context loss of one level, a scalar: pooling is linear, so the difference is pooled once."""
    if student_BCHW.shape != teacher_BCHW.shape:
        raise InputError(
            f"review: maps {list(student_BCHW.shape)} of the student and {list(teacher_BCHW.shape)} of the teacher"
            " differ; fusion=true makes them alike"
        )
    gap_BCHW, weights = student_BCHW - teacher_BCHW, [1.0]
    terms = [gap_BCHW.square().mean()]
    for side in POOLED_SIDES:
        if side < gap_BCHW.shape[2]:
            weights.append(weights[-1] / 2)
            terms.append(functional.adaptive_avg_pool2d(gap_BCHW, (side, side)).square().mean() * weights[-1])
    return torch.stack(terms).sum() / sum(weights)
