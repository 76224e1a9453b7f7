"""Losses that train a part of their own for each pair of feature maps: how the parts are made, kept and summed.

Shape key: B batch, C channels, H height, W width.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from student_trainer.losses.announced import ShapePair, announced_maps, maps_as_announced
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import MapShape, TrainingFacts

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv2d | nn.ConvTranspose2d)


class TrainedPairs(DistillLoss):
    """The sum over pairs of maps of ``part(student map, teacher map)``; `part_of` makes the part of a pair."""

    needs: tuple[str, ...] = ("student_maps", "teacher_maps")

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self._shapes: list[ShapePair] | None = None

    def part_of(self, student: MapShape, teacher: MapShape, *, generator: torch.Generator) -> nn.Module:
        """The part of one pair of maps with these shapes, drawn from ``generator``; InputError where none fits."""
        raise NotImplementedError

    def start(self, facts: TrainingFacts) -> None:
        """Parts drawn from the seed; InputError where the facts do not suffice."""
        self._shapes = announced_maps(facts, name=self.name)
        generator = torch.Generator().manual_seed(facts.seed)
        self.parts = nn.ModuleList([self.part_of(*shapes, generator=generator) for shapes in self._shapes])

    def value(self, batch: DistillBatch) -> Tensor:
        """Scalar."""
        pairs = maps_as_announced(batch, self._shapes, name=self.name)
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
