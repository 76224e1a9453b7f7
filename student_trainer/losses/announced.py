"""The pairs of maps that a loss with trainable parts was told of, and whether its batches hold such maps.

Shape key: B batch, C channels, H height, W width.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor

from shared.errors import InputError
from student_trainer.losses.base import maps_of
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.facts import MapShape, TrainingFacts

ShapePair = tuple[MapShape, MapShape]
"""(student, teacher) shapes of two maps that are compared."""


def announced_maps(facts: TrainingFacts, *, name: str) -> list[ShapePair]:
    """(student, teacher) shapes of the maps that loss ``name`` compares, pair by pair."""
    student, teacher = facts.student_maps, facts.teacher_maps
    if not student or len(student) != len(teacher):
        raise InputError(
            f"{name}: {len(student)} maps of the student and {len(teacher)} of the teacher are announced;"
            " give student_maps and teacher_maps in TrainingFacts, as many of both"
        )
    return list(zip(student, teacher, strict=True))


def announced_widths(facts: TrainingFacts, *, name: str) -> tuple[int, int]:
    """(student, teacher) widths of the features that loss ``name`` compares."""
    if facts.student_width is None or facts.teacher_width is None:
        raise InputError(
            f"{name}: the features' widths are not known; give student_width and teacher_width in TrainingFacts"
        )
    return facts.student_width, facts.teacher_width


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
