"""AB: let the student's neurons be active where the teacher's are, before any classification.

Shape key: B batch, C channels, H height, W width.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses.announced import ShapePair, announced_maps, least_rows, maps_as_announced
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.connectors import as_input
from student_trainer.losses.facts import MapShape, TrainingFacts
from student_trainer.losses.fitnets import convolution
from student_trainer.losses.hyper import Limit, MapChoice


class AB(DistillLoss):
    """Heo et al. 2019: ``scale * sum over maps i of w_i * mean over B of sum(relu(margin - sign * s)^2)``.

    s are the student's maps after a connector, ``sign`` is 1 where the teacher's map is above 0 and -1 elsewhere, both
    before the activation. ``w_i = 2^(i - n + 1)``: 1 for the last of n maps, half for each before it;
    ``layers="equal"`` and ``scale=1`` give torchdistill's sum. ``scale`` is 3/1000 in the authors' code and in
    RepDistiller; the paper's equation has none of these factors.

    The first ``init_epochs`` epochs train with this loss alone, those after them with cross-entropy alone; 0: beside
    cross-entropy all along. 30 is RepDistiller's, which starts its learning rate anew for the second stage; the
    authors' second stage uses KL in the place of cross-entropy. The connectors are RepDistiller's: none where channels
    and height agree, else one convolution with bias that meets the teacher's size, and a batch norm (authors: always
    a 1x1 convolution and a batch norm).
    """

    name = "ab"
    default_ce_weight = 1.0
    limits: ClassVar[dict[str, Limit]] = {
        "margin": Limit(kind=float, low=0.0),
        "scale": Limit(kind=float, low=0.0, above=True),
        "layers": Limit(kind=str, choices=("halved", "equal")),
        "init_epochs": Limit(kind=int, low=0),
        "maps": Limit(kind=MapChoice),
        "teacher_maps": Limit(kind=MapChoice),
    }
    needs = ("student_maps", "teacher_maps")
    before_activation = True

    def __init__(
        self,
        *,
        margin: float = 1.0,
        scale: float = 0.003,
        layers: Literal["halved", "equal"] = "halved",
        init_epochs: int = 30,
        maps: str = "1-",
        teacher_maps: str = "same",
    ) -> None:
        super().__init__()
        given = {"margin": margin, "scale": scale, "layers": layers, "init_epochs": init_epochs}
        hyper = self.read_hyper(given | {"maps": maps, "teacher_maps": teacher_maps})
        self.margin: float = hyper["margin"]
        self.scale: float = hyper["scale"]
        self.base = 2.0 if hyper["layers"] == "halved" else 1.0
        self.init_epochs: int = hyper["init_epochs"]
        self.maps, self.teacher_maps = hyper["maps"], hyper["teacher_maps"]
        self.connectors = nn.ModuleList()
        self._shapes: Sequence[ShapePair] | None = None

    def start(self, facts: TrainingFacts) -> None:
        """Connectors, drawn from the seed."""
        generator = torch.Generator().manual_seed(facts.seed)
        self._shapes = announced_maps(facts, name=self.name)
        self.connectors = nn.ModuleList(_connector(pair, generator=generator) for pair in self._shapes)
        self.min_rows = least_rows(teacher for student, teacher in self._shapes if not _alike(student, teacher))

    def begin_epoch(self, epoch: int) -> None:
        """This loss alone, then cross-entropy alone."""
        self.train_alone(epoch, epochs=self.init_epochs)

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        pairs = maps_as_announced(batch, self._shapes, name=self.name)
        terms = []
        for place, ((student_BCHW, teacher_BCHW), connector) in enumerate(zip(pairs, self.connectors, strict=True)):
            crossed = self._crossed(connector(as_input(student_BCHW, connector)), teacher_BCHW)
            terms.append(crossed * self.base ** (place + 1 - len(pairs)))
        return self.scale / len(batch.student_logits) * torch.stack(terms).sum()

    def _crossed(self, student_BCHW: Tensor, teacher_BCHW: Tensor) -> Tensor:
        """The squares of how far the student's neurons are from the teacher's side of their boundary, summed."""
        if student_BCHW.shape != teacher_BCHW.shape:
            raise InputError(
                f"ab: a map of the student is {list(student_BCHW.shape)} after its connector, the teacher's"
                f" {list(teacher_BCHW.shape)}; choose maps of equal size, or of half or twice the size"
            )
        signed_BCHW = torch.where(teacher_BCHW > 0, student_BCHW, -student_BCHW)
        return functional.relu(self.margin - signed_BCHW).square().sum()


class ConvNorm(nn.Module):
    """A convolution to the teacher's channels and size, and a batch norm."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        self.conv = conv
        self.bn = nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Of [B, C, H, W]."""
        normed: Tensor = self.bn(self.conv(x))
        return normed


def _alike(student: MapShape, teacher: MapShape) -> bool:
    return student[:2] == teacher[:2]


def _connector(pair: ShapePair, *, generator: torch.Generator) -> nn.Module:
    return nn.Identity() if _alike(*pair) else ConvNorm(convolution(*pair, generator=generator))
