"""Small networks between student and teacher: built for the maps announced, drawn from a loss's own generator.

Shape key: B batch, C channels, H height, W width.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from shared.errors import InputError
from student_trainer.losses.base import maps_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import MapShape, TrainingFacts
from student_trainer.losses.trained_pairs import draw_weights, drawn_layer

ShapePair = tuple[MapShape, MapShape]
"""(student, teacher) shapes of two maps that are compared."""


Network = TypeVar("Network", bound=nn.Module)


def drawn(build: Callable[[], Network], *, generator: torch.Generator) -> Network:
    """What ``build`` makes of convolutions and batch norms, initialised as torch does, but from ``generator``."""
    with torch.device("meta"):
        network = build()
    network.to_empty(device="cpu")
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_parameters()
        elif isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            draw_weights(part, generator=generator)
    return network


def conv_norm(width_in: int, width_out: int, *, generator: torch.Generator) -> nn.Sequential:
    """A 1x1 convolution without bias, weights of variance 2 / ``width_out``, and a batch norm."""
    conv = drawn_layer(nn.Conv2d, width_in, width_out, kernel_size=1, bias=False, generator=generator)
    nn.init.normal_(conv.weight, std=math.sqrt(2 / width_out), generator=generator)
    return nn.Sequential(conv, nn.BatchNorm2d(width_out))


def announced_maps(facts: TrainingFacts, *, name: str) -> list[ShapePair]:
    """(student, teacher) shapes of the maps that loss ``name`` compares, pair by pair."""
    student, teacher = facts.student_maps, facts.teacher_maps
    if not student or len(student) != len(teacher):
        raise InputError(
            f"{name}: {len(student)} maps of the student and {len(teacher)} of the teacher are announced;"
            " give student_maps and teacher_maps in TrainingFacts, as many of both"
        )
    return list(zip(student, teacher, strict=True))


def maps_as_announced(
    batch: DistillBatch, shapes: Sequence[ShapePair] | None, *, name: str
) -> list[tuple[Tensor, Tensor]]:
    """`maps_of` the batch; InputError where their channels are not those of ``shapes``, or nothing was announced."""
    if shapes is None:
        raise not_started(name)
    pairs = maps_of(batch)
    found = [(student.shape[1], teacher.shape[1]) for student, teacher in pairs]
    told = [(student[0], teacher[0]) for student, teacher in shapes]
    if found != told:
        raise InputError(f"{name}: (student, teacher) maps have {found} channels; start() was told {told}")
    return pairs


def not_started(name: str) -> InputError:
    """What a loss with trainable parts raises that has none yet."""
    return InputError(f"{name} has no trainable parts yet: call loss.start(TrainingFacts(...)) once before training")


def least_rows(shapes: Iterable[MapShape]) -> int:
    """The smallest batch that batch norms of maps of these shapes can be trained with: of one place, two samples."""
    return 2 if any(height * width == 1 for _, height, width in shapes) else 1


def as_input(values: Tensor, network: nn.Module) -> Tensor:
    """``values`` in the precision of the network's weights; unchanged where it has none."""
    weight = next(network.parameters(), None)
    return values if weight is None else values.to(weight.dtype)
