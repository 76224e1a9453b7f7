"""FT: let the student say in its own words what an autoencoder has found in the teacher's last map.

Shape key: B batch, C channels, H height, W width, F numbers of a factor.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses.announced import ShapePair, announced_maps, least_rows, maps_as_announced, not_started
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.connectors import as_input, drawn
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.hyper import Limit, MapChoice
from student_trainer.losses.map_sizes import at_one_size

LEAK = 0.1
"""Slope of the leaky ReLUs below 0."""
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
"""Of the paraphraser's own training, as in RepDistiller."""
SHORT = 1e-12
"""Factors shorter than this are as good as zero: their direction is noise."""


class FT(DistillLoss):
    """Kim et al. 2018: ``mean(|unit(factor of s) - unit(factor of t)|^p2)``, over all elements.

    t is the code that a paraphraser, an autoencoder of convolutions with ``rate`` times the channels, makes of the
    teacher's last map; s is what a translator, trained with the student, makes of the student's. The smaller size
    counts: the larger is average-pooled. ``factor="attention"`` is RepDistiller's (weight 200): the mean over channels
    of ``code^p1`` at every place, at length 1. ``factor="whole"`` is the paper's (and torchdistill's): the whole code
    at length 1. Where a factor is zero, its unit is zero (torchdistill: NaN).

    The paraphraser is trained on the teacher's maps alone, before the student: ``init_epochs`` epochs of SGD with
    ``init_lr``, mean squared error; 30 and 0.01 are RepDistiller's (0.05 there for networks other than ResNets), whose
    paraphraser has no batch norm. It then stays as it is.

    Where the teacher has another number of maps than the student, ``teacher_maps="last"`` compares the last of both.
    """

    name = "ft"
    default_ce_weight = 1.0
    default_kd_weight = 200.0
    limits: ClassVar[dict[str, Limit]] = {
        "p1": Limit(kind=int, low=1, high=4),
        "p2": Limit(kind=int, low=1, high=4),
        "rate": Limit(kind=float, low=0.0, above=True),
        "factor": Limit(kind=str, choices=("attention", "whole")),
        "init_epochs": Limit(kind=int, low=1),
        "init_lr": Limit(kind=float, low=0.0, above=True),
        "maps": Limit(kind=MapChoice),
        "teacher_maps": Limit(kind=MapChoice),
    }
    needs = ("student_maps", "teacher_maps")
    prepares = True

    def __init__(
        self,
        *,
        p1: int = 2,
        p2: int = 1,
        rate: float = 0.5,
        factor: Literal["attention", "whole"] = "attention",
        init_epochs: int = 30,
        init_lr: float = 0.01,
        maps: str = "last",
        teacher_maps: str = "same",
    ) -> None:
        super().__init__()
        given = {"p1": p1, "p2": p2, "rate": rate, "factor": factor, "init_epochs": init_epochs, "init_lr": init_lr}
        hyper = self.read_hyper(given | {"maps": maps, "teacher_maps": teacher_maps})
        self.p1: int = hyper["p1"]
        self.p2: int = hyper["p2"]
        self.rate: float = hyper["rate"]
        self.whole = hyper["factor"] == "whole"
        self.init_epochs: int = hyper["init_epochs"]
        self.init_lr: float = hyper["init_lr"]
        self.maps, self.teacher_maps = hyper["maps"], hyper["teacher_maps"]
        self.paraphraser: Paraphraser | None = None
        self.translator: nn.Module | None = None
        self._shapes: Sequence[ShapePair] | None = None

    def start(self, facts: TrainingFacts) -> None:
        """Paraphraser and translator, drawn from the seed; InputError where not one map of each is announced."""
        self._shapes = announced_maps(facts, name=self.name)
        if len(self._shapes) != 1:
            raise InputError(f"ft compares one map of the student with one of the teacher, not {len(self._shapes)}")
        generator = torch.Generator().manual_seed(facts.seed)
        ((own, _, _), (other, _, _)) = self._shapes[0]
        code = max(1, int(other * self.rate))
        # Its own training comes first, in `prepare`; the student's never changes it.
        self.paraphraser = drawn(lambda: Paraphraser(other, code=code), generator=generator).requires_grad_(False)
        self.translator = drawn(lambda: Translator(own, code=code), generator=generator)
        self.min_rows = least_rows(facts.student_maps)

    def prepare(self, answers: Callable[[int], Iterable[DistillBatch]]) -> None:
        """Train the paraphraser to give back the teacher's maps."""
        if self.paraphraser is None:
            raise not_started(self.name)
        network = self.paraphraser.requires_grad_(True)
        optimizer = torch.optim.SGD(network.parameters(), lr=self.init_lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
        for epoch in range(self.init_epochs):
            for batch in answers(epoch):
                self._step(network, batch, optimizer=optimizer)
        # Nor may gradients that are left change it in the student's first step.
        optimizer.zero_grad()
        network.requires_grad_(False)

    def _step(self, network: "Paraphraser", batch: DistillBatch, *, optimizer: torch.optim.Optimizer) -> None:
        """One step of the paraphraser's training."""
        (teacher_BCHW,) = batch.teacher_maps
        weight = next(network.parameters())
        teacher_BCHW = teacher_BCHW.detach().to(device=weight.device, dtype=weight.dtype)
        error = functional.mse_loss(network.decoder(network.encoder(teacher_BCHW)), teacher_BCHW)
        if not torch.isfinite(error):
            raise InputError(
                f"ft: the paraphraser's loss is {float(error.detach())}; choose an init_lr below {self.init_lr:g}"
            )
        optimizer.zero_grad()
        torch.autograd.backward(error)
        optimizer.step()

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        ((student_BCHW, teacher_BCHW),) = maps_as_announced(batch, self._shapes, name=self.name)
        if self.translator is None or self.paraphraser is None:
            raise not_started(self.name)
        own_BCHW = self.translator(as_input(student_BCHW, self.translator))
        with torch.no_grad():
            code_BCHW = self.paraphraser.encoder(as_input(teacher_BCHW, self.paraphraser)).to(own_BCHW.dtype)
        own_BF, code_BF = (self._factor(one) for one in at_one_size(own_BCHW, code_BCHW))
        return (own_BF - code_BF).abs().pow(self.p2).mean()

    def _factor(self, code_BCHW: Tensor) -> Tensor:
        """At length 1, or zero."""
        numbers_BF = (code_BCHW if self.whole else code_BCHW.pow(self.p1).mean(dim=1)).flatten(1)
        length_B1: Tensor = torch.linalg.vector_norm(numbers_BF, dim=1, keepdim=True)
        return numbers_BF / length_B1.where(length_B1 > SHORT, 1)


class Paraphraser(nn.Module):
    """An autoencoder of three convolutions each way, all of one size."""

    def __init__(self, width: int, *, code: int) -> None:
        super().__init__()
        down = (nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, code, 3, padding=1))
        up = (nn.ConvTranspose2d(code, code, 3, padding=1), nn.ConvTranspose2d(code, width, 3, padding=1))
        self.encoder = _leaky(*down, nn.Conv2d(code, code, 3, padding=1), norms=False)
        self.decoder = _leaky(*up, nn.ConvTranspose2d(width, width, 3, padding=1), norms=False)


class Translator(nn.Module):
    """Three convolutions, each with a batch norm, from the student's map to the paraphraser's code."""

    def __init__(self, width: int, *, code: int) -> None:
        super().__init__()
        convs = (nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, code, 3, padding=1))
        self.encoder = _leaky(*convs, nn.Conv2d(code, code, 3, padding=1), norms=True)

    def forward(self, x: Tensor) -> Tensor:
        """The code."""
        code: Tensor = self.encoder(x)
        return code


def _leaky(*convs: nn.Conv2d | nn.ConvTranspose2d, norms: bool) -> nn.Sequential:
    """Each with a batch norm, or what does nothing in its place so that names stay the published ones, and a ReLU."""
    layers: list[nn.Module] = []
    for conv in convs:
        layers += [
            conv,
            nn.BatchNorm2d(conv.out_channels) if norms else nn.Identity(),
            nn.LeakyReLU(LEAK, inplace=True),
        ]
    return nn.Sequential(*layers)
