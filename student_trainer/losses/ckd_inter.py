"""White-box CKD: match how samples differ in their features, by what hint, VID and CC do to features themselves.

Shape key: B batch, D feature width, C channels, H height, W width, P comparisons, G samples of a comparison.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from student_trainer.losses.announced import ShapePair, announced_maps, announced_widths, not_started
from student_trainer.losses.base import OUTPUTS, DistillLoss, features_of, maps_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.cc import embedding, errors_of_neighbours
from student_trainer.losses.comparisons import Groups
from student_trainer.losses.connectors import as_input
from student_trainer.losses.drawing import Drawing
from student_trainer.losses.facts import MapShape, TrainingFacts
from student_trainer.losses.fitnets import Regressor
from student_trainer.losses.hyper import Limit, MapChoice
from student_trainer.losses.vid import VID

ON: Mapping[str, tuple[str, ...]] = {"maps": ("student_maps", "teacher_maps"), "features": OUTPUTS["features"]}
"""What these losses need of a batch, by what they compare."""
GROUPS: dict[str, Limit] = {"pos": Limit(kind=int, low=1), "neg": Limit(kind=int, low=1)}
CHOICES: dict[str, Limit] = GROUPS | {
    "on": Limit(kind=str, choices=tuple(ON)),
    "maps": Limit(kind=MapChoice),
    "teacher_maps": Limit(kind=MapChoice),
}


class ComparedFeatures(Drawing, DistillLoss):
    """A loss of features, applied to differences of group means of features, as ``ckd_inter`` of Xu et al. 2025.

    A comparison is the mean of ``pos`` samples minus that of ``neg`` others, number by number; what is trained beside
    the student is applied to the differences. From each batch B comparisons are drawn anew; the authors draw 100,000
    once, and run the teacher on the fly. Vectors are compared as maps of one place. It is the feature term only: the
    authors add CKD of the logits, as the sum ``ckd+ckd_hint`` does; alone it leaves the student's last layer untrained.
    """

    heads: nn.ModuleList

    def __init__(self, *, pos: int, neg: int, on: str, maps: str, teacher_maps: str, **more: object) -> None:
        super().__init__()
        given = {"pos": pos, "neg": neg, "on": on, "maps": maps, "teacher_maps": teacher_maps} | more
        self.hyper = self.read_hyper({name: value for name, value in given.items() if name in self.limits})
        self.groups = Groups(pos=self.hyper["pos"], neg=self.hyper["neg"])
        self.maps, self.teacher_maps = self.hyper.get("maps", maps), self.hyper.get("teacher_maps", teacher_maps)
        if on == "features":
            self.refuse_unused(self.hyper, "maps", "teacher_maps", where="on=features", remedy="on=maps")
        self.needs = ON[on]
        self.min_rows = self.groups.size
        self.heads = nn.ModuleList()

    @abstractmethod
    def head(self, student: MapShape, teacher: MapShape, *, generator: torch.Generator) -> nn.Module:
        """What is trained for one pair of maps: called with differences [P, C, H, W] of both, it gives their loss."""

    def start(self, facts: TrainingFacts) -> None:
        """Heads, drawn from the seed; InputError where the facts do not suffice."""
        super().start(facts)
        shapes = self._widths(facts) if "student_features" in self.needs else announced_maps(facts, name=self.name)
        generator = torch.Generator().manual_seed(self.next_seed())
        self.heads = nn.ModuleList(self.head(*pair, generator=generator) for pair in shapes)

    def _widths(self, facts: TrainingFacts) -> list[ShapePair]:
        """Features as maps of one place."""
        student, teacher = announced_widths(facts, name=self.name)
        return [((student, 1, 1), (teacher, 1, 1))]

    def value(self, batch: DistillBatch, *, indices: Tensor | None = None) -> Tensor:
        """Scalar, summed over maps. ``indices`` int64 [P, pos + neg] are batch positions, positive group first."""
        if not self.heads:
            raise not_started(self.name)
        if indices is None:
            indices = self.groups.draw(len(batch.student_logits), seed=self.next_seed())
        terms = [
            head(self._differences(own, indices, head), self._differences(other, indices, head))
            for head, (own, other) in zip(self.heads, self._pairs(batch), strict=True)
        ]
        return torch.stack(terms).sum()

    def _differences(self, values: Tensor, indices_PG: Tensor, head: nn.Module) -> Tensor:
        return as_input(self.groups.of(values, indices_PG), head)

    def _pairs(self, batch: DistillBatch) -> list[tuple[Tensor, Tensor]]:
        if "student_maps" in self.needs:
            return maps_of(batch)
        student_BD, teacher_BD = features_of(batch)
        return [(student_BD[:, :, None, None], teacher_BD[:, :, None, None])]


class CKDHint(ComparedFeatures):
    """Hint of differences (Xu et al. 2025): ``MSE(ReLU(BN(conv(ds))), dt)``, mean over all numbers; weight 100.

    ``maps`` is f2 as in the authors' code. Their ReLU leaves the negative half of all differences out of reach;
    ``use_relu=false`` does not. ``on="features"`` compares what a cache of logits and features has: the convolution is
    a linear layer then.
    """

    name = "ckd_hint"
    default_kd_weight = 100.0
    limits: ClassVar[Mapping[str, Limit]] = CHOICES | {"use_relu": Limit(kind=bool)}

    def __init__(
        self,
        *,
        pos: int = 1,
        neg: int = 1,
        on: Literal["maps", "features"] = "maps",
        maps: str = "2",
        teacher_maps: str = "same",
        use_relu: bool = True,
    ) -> None:
        super().__init__(pos=pos, neg=neg, on=on, maps=maps, teacher_maps=teacher_maps, use_relu=use_relu)

    def head(self, student: MapShape, teacher: MapShape, *, generator: torch.Generator) -> nn.Module:
        """FitNets' regressor."""
        return Regressor(student, teacher, use_relu=self.hyper["use_relu"], generator=generator)


class CKDVID(ComparedFeatures):
    """VID of differences (Xu et al. 2025): ``((mu(ds) - dt)^2 / var + log var) / 2``, mean over all numbers; weight 1.

    Summed over maps. ``maps`` are all but the stem's, as in the authors' code.
    """

    name = "ckd_vid"
    limits: ClassVar[Mapping[str, Limit]] = CHOICES

    def __init__(
        self,
        *,
        pos: int = 1,
        neg: int = 1,
        on: Literal["maps", "features"] = "maps",
        maps: str = "1-",
        teacher_maps: str = "same",
    ) -> None:
        super().__init__(pos=pos, neg=neg, on=on, maps=maps, teacher_maps=teacher_maps)

    def head(self, student: MapShape, teacher: MapShape, *, generator: torch.Generator) -> nn.Module:
        """VID's regressor and variance."""
        return VID().part_of(student, teacher, generator=generator)


class CKDCC(ComparedFeatures):
    """CC of differences of penultimate features (Xu et al. 2025), as RepDistiller has it; weight 0.02.

    ``|E ds_p - F dt_p| . |E ds_p+1 - F dt_p+1|``, mean over neighbouring comparisons, with linear layers E and F to
    ``width`` numbers. The paper of CC (Peng et al. 2019) compares kernel matrices instead.
    """

    name = "ckd_cc"
    default_kd_weight = 0.02
    limits: ClassVar[Mapping[str, Limit]] = GROUPS | {"width": Limit(kind=int, low=1)}

    def __init__(self, *, pos: int = 1, neg: int = 1, width: int = 128) -> None:
        super().__init__(pos=pos, neg=neg, on="features", maps="last", teacher_maps="same", width=width)

    def head(self, student: MapShape, teacher: MapShape, *, generator: torch.Generator) -> nn.Module:
        """Both embeddings."""
        return CorrelationHead(student, teacher, width=self.hyper["width"], generator=generator)


class CorrelationHead(nn.Module):
    """CC as in RepDistiller: the product of the absolute errors of neighbours, summed over D, mean over neighbours.

    Both sides pass a linear layer of their own to ``width`` numbers first; both are trained.
    """

    def __init__(self, student: MapShape, teacher: MapShape, *, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.embed_s, self.embed_t = (
            embedding(math.prod(shape), width, generator=generator) for shape in (student, teacher)
        )

    def forward(self, student_PCHW: Tensor, teacher_PCHW: Tensor) -> Tensor:
        """Scalar; of two comparisons at least."""
        return errors_of_neighbours(self.embed_s(student_PCHW.flatten(1)), self.embed_t(teacher_PCHW.flatten(1)))
