"""Batches with feature maps, and what a trainer announces of them: for tests of losses with parts of their own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.facts import MapShape

CLASSES = 10


def batch_of(
    student: Sequence[MapShape], teacher: Sequence[MapShape], *, count: int = 6, widths: tuple[int, int] = (7, 9)
) -> DistillBatch:
    """Normal numbers in float64, with features, logits and the teacher's constants."""
    generator = torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    constants = {"classifier.weight": drawn(CLASSES, widths[1]), "classifier.bias": drawn(CLASSES)}
    constants |= {f"margins.{number}": -drawn(shape[0]).abs() for number, shape in enumerate(teacher, start=1)}
    return DistillBatch(
        student_logits=drawn(count, CLASSES),
        teacher_logits=drawn(count, CLASSES),
        student_features=drawn(count, widths[0]),
        teacher_features=drawn(count, widths[1]),
        student_maps=tuple(drawn(count, *shape).requires_grad_() for shape in student),
        teacher_maps=tuple(drawn(count, *shape) for shape in teacher),
        teacher_constants=constants,
    )


def facts_of(batch: DistillBatch, *, seed: int = 0) -> TrainingFacts:
    """What the trainer says before the first of such batches."""
    return TrainingFacts(
        seed=seed,
        classes=CLASSES,
        rows=torch.arange(8),
        labels=torch.arange(8),
        student_width=_width(batch.student_features),
        teacher_width=_width(batch.teacher_features),
        student_maps=_shapes(batch.student_maps),
        teacher_maps=_shapes(batch.teacher_maps),
        teacher_constants=batch.teacher_constants or {},
    )


def started(name: str, batch: DistillBatch, *, seed: int = 0, **hyper: object) -> DistillLoss:
    """A loss that was told of such batches, in their precision."""
    loss = build_loss(name, **hyper)
    loss.start(facts_of(batch, seed=seed))
    return loss.to(batch.student_logits.dtype)


def _width(features: Tensor | None) -> int | None:
    return None if features is None else features.shape[1]


def _shapes(maps: tuple[Tensor, ...]) -> tuple[MapShape, ...]:
    return tuple((one.shape[1], one.shape[2], one.shape[3]) for one in maps)
