"""OFD: let the student's maps follow the teacher's where the teacher is active, and stay below its margin elsewhere.

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
from student_trainer.losses.connectors import as_input, conv_norm
from student_trainer.losses.facts import TrainingFacts
from student_trainer.losses.hyper import Limit, MapChoice


class OFD(DistillLoss):
    """Heo et al. 2019, "overhaul": ``sum over maps i of partial(s, max(t, margin)) / 2^(n - 1 - i) / B / divisor``.

    s are the student's maps after a 1x1 convolution and a batch norm, t the teacher's, both before the activation;
    ``partial(s, t)`` sums ``(s - t)^2`` over places where ``t > 0`` or ``s > t``. Each channel's margin is the mean of
    what is negative there, from the teacher's batch norm. ``divisor`` is the authors' 1000 for CIFAR-100, which makes
    their weight 1 (10000 for ImageNet); the maps' weights are their code's.

    ``form="mdistiller"`` differs only where a margin is above 0, which a batch norm never gives; its weight 0.001 is
    the divisor. As there, a teacher's map of another size is average-pooled to the student's.
    """

    name = "ofd"
    default_ce_weight = 1.0
    limits: ClassVar[dict[str, Limit]] = {
        "divisor": Limit(kind=float, low=0.0, above=True),
        "form": Limit(kind=str, choices=("authors", "mdistiller")),
        "maps": Limit(kind=MapChoice),
        "teacher_maps": Limit(kind=MapChoice),
    }
    needs = ("student_maps", "teacher_maps", "teacher_constants")
    before_activation = True

    def __init__(
        self,
        *,
        divisor: float = 1000.0,
        form: Literal["authors", "mdistiller"] = "authors",
        maps: str = "1-",
        teacher_maps: str = "same",
    ) -> None:
        super().__init__()
        hyper = self.read_hyper({"divisor": divisor, "form": form, "maps": maps, "teacher_maps": teacher_maps})
        self.divisor: float = hyper["divisor"]
        self.partial = {"authors": partial, "mdistiller": partial_of_mdistiller}[hyper["form"]]
        self.maps, self.teacher_maps = hyper["maps"], hyper["teacher_maps"]
        if self.teacher_maps == "last" or (self.maps, self.teacher_maps) == ("last", "same"):
            raise InputError("ofd takes margins by the maps' numbers: choose maps by number, such as 3 or 1-, not last")
        self.Connectors = nn.ModuleList()
        self._shapes: Sequence[ShapePair] | None = None

    def start(self, facts: TrainingFacts) -> None:
        """Connectors, drawn from the seed, and margins; InputError where the teacher gives none for a map."""
        self._shapes = announced_maps(facts, name=self.name)
        for place, margin_1C11 in enumerate(self._margins(facts), start=1):
            self.register_buffer(f"margin{place}", margin_1C11)
        generator = torch.Generator().manual_seed(facts.seed)
        widths = ((student[0], teacher[0]) for student, teacher in self._shapes)
        self.Connectors = nn.ModuleList(conv_norm(*pair, generator=generator) for pair in widths)
        self.min_rows = least_rows(facts.student_maps)

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        pairs = maps_as_announced(batch, self._shapes, name=self.name)
        terms = []
        for place, (student_BCHW, teacher_BCHW) in enumerate(pairs):
            connector = self.Connectors[place]
            own_BCHW = connector(as_input(student_BCHW, connector))
            other_BCHW = functional.adaptive_avg_pool2d(teacher_BCHW, own_BCHW.shape[2:]).to(own_BCHW.dtype)
            margin_1C11 = self.get_buffer(f"margin{place + 1}").to(own_BCHW.dtype)
            terms.append(self.partial(own_BCHW, other_BCHW, margin_1C11) / 2 ** (len(pairs) - 1 - place))
        return torch.stack(terms).sum() / (len(batch.student_logits) * self.divisor)

    def _margins(self, facts: TrainingFacts) -> list[Tensor]:
        """[1, C, 1, 1] of each of the teacher's maps."""
        found = []
        for number, (channels, _, _) in zip(self._numbers(facts), facts.teacher_maps, strict=True):
            margin_C = facts.teacher_constants.get(f"margins.{number}")
            if margin_C is None or margin_C.shape != (channels,):
                known = [name for name in facts.teacher_constants if name.startswith("margins.")]
                raise InputError(
                    f"ofd needs margins.{number} [{channels}] of the teacher's map {number}, from a batch norm;"
                    f" the teacher's constants have {', '.join(known) or 'no margins'}"
                )
            found.append(margin_C.detach().clone()[None, :, None, None])
        return found

    def _numbers(self, facts: TrainingFacts) -> tuple[int, ...]:
        """Of the teacher's maps, as the hyper-parameters name them."""
        count = len(facts.student_maps)
        if self.teacher_maps != "same":
            own = tuple(range(count))
        elif self.maps.endswith("-"):
            first = int(self.maps.rstrip("-"))
            own = tuple(range(first, first + count))
        else:
            own = MapChoice(self.maps).numbers(10**9)
        numbers = MapChoice(self.teacher_maps).of_teacher(own, beside=self.maps, highest=None)
        if len(numbers) != count:
            raise InputError(f"ofd: {count} maps are announced, and maps={self.maps} are {len(numbers)}")
        return numbers


def partial(student_BCHW: Tensor, teacher_BCHW: Tensor, margin_1C11: Tensor) -> Tensor:
    """The authors' sum over all places."""
    target_BCHW = torch.maximum(teacher_BCHW, margin_1C11)
    above_BCHW = student_BCHW - target_BCHW
    counts_BCHW = (above_BCHW > 0) | (target_BCHW > 0)
    return torch.where(counts_BCHW, above_BCHW, 0).square().sum()


def partial_of_mdistiller(student_BCHW: Tensor, teacher_BCHW: Tensor, margin_1C11: Tensor) -> Tensor:
    """The same in three cases, of which two hold at once where ``0 < t <= margin``."""
    above_BCHW = student_BCHW - teacher_BCHW
    counts_BCHW = (teacher_BCHW > 0) | ((above_BCHW > 0) & (teacher_BCHW > margin_1C11))
    low_BCHW = torch.where(teacher_BCHW <= margin_1C11, functional.relu(student_BCHW - margin_1C11), 0)
    return torch.where(counts_BCHW, above_BCHW, 0).square().sum() + low_BCHW.square().sum()
