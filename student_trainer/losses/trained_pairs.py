"""Losses that train a part of their own for each pair of feature maps: how the parts are made, kept and summed.

Shape key: B batch, C channels, H height, W width.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from shared.errors import InputError
from student_trainer.losses.base import DistillLoss, maps_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import MapShape, TrainingFacts

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d | nn.ConvTranspose2d)


class TrainedPairs(DistillLoss):
    """The sum over pairs of maps of ``part(student map, teacher map)``; `part_of` makes the part of a pair."""

    needs: tuple[str, ...] = ("student_maps", "teacher_maps")

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self._channels: list[tuple[int, int]] = []

    def part_of(self, student: MapShape, teacher: MapShape, *, generator: torch.Generator) -> nn.Module:
        """The part of one pair of maps with these shapes, drawn from ``generator``; InputError where none fits."""
        raise NotImplementedError

    def start(self, facts: TrainingFacts) -> None:
        """Parts drawn from the seed; InputError where the facts do not suffice."""
        pairs = list(zip(facts.student_maps, facts.teacher_maps, strict=False))
        if not pairs or len(facts.student_maps) != len(facts.teacher_maps):
            raise InputError(
                f"{self.name}: it makes weights for pairs of maps, and TrainingFacts has {len(facts.student_maps)} of"
                f" the student and {len(facts.teacher_maps)} of the teacher; give as many student_maps as teacher_maps"
            )
        generator = torch.Generator().manual_seed(facts.seed)
        self.parts = nn.ModuleList([self.part_of(student, teacher, generator=generator) for student, teacher in pairs])
        self._channels = [(student[0], teacher[0]) for student, teacher in pairs]

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        if not self.parts:
            raise InputError(
                f"{self.name} has no weights yet: call loss.start(TrainingFacts(...)) once before training"
            )
        pairs = maps_of(batch)
        found = [(student.shape[1], teacher.shape[1]) for student, teacher in pairs]
        if found != self._channels:
            raise InputError(
                f"{self.name}: the batch's maps have (student, teacher) channels {found};"
                f" start() was told {self._channels}"
            )
        return torch.stack([part(*pair) for part, pair in zip(self.parts, pairs, strict=True)]).sum()


def drawn_layer(kind: Callable[..., Layer], *sizes: int, generator: torch.Generator, **options: Any) -> Layer:
    """``kind(*sizes, **options)`` initialised as torch does, but from ``generator``."""
    layer = kind(*sizes, **options, device="meta")
    layer.to_empty(device="cpu")
    draw_weights(layer, generator=generator)
    return layer


def draw_weights(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, *, generator: torch.Generator) -> None:
    """As torch does, but from ``generator``."""
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    if layer.bias is not None:
        bound = 1 / math.sqrt(layer.weight[0].numel())
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
