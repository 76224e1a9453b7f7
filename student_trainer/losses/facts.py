"""What a loss may know of the training before its first step: sizes, rows, the teacher's constants.

Shape key: N training rows with an answer, C classes, D feature width, H height, W width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

MapShape = tuple[int, int, int]
"""(channels, H, W) of a feature map."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TrainingFacts:
    """What is announced to `DistillLoss.start`. What a loss does not need may be left out."""

    seed: int
    """A loss that draws at random draws from this."""
    classes: int
    """C."""
    rows: Tensor
    """int64 [N], each once: every value that `DistillBatch.rows` will hold."""
    labels: Tensor
    """int64 [N], of ``rows``."""
    student_width: int | None = None
    """D of the student's features."""
    teacher_width: int | None = None
    """D of the teacher's features."""
    student_maps: tuple[MapShape, ...] = ()
    """Of the maps in `DistillBatch.student_maps`, in their order."""
    teacher_maps: tuple[MapShape, ...] = ()
    """Of the maps in `DistillBatch.teacher_maps`, in their order."""
    teacher_attention: tuple[tuple[int, int], ...] = ()
    """(H, W) of each in `DistillBatch.teacher_attention`."""
    teacher_constants: Mapping[str, Tensor] = field(default_factory=dict)
    """What the teacher says once: ``classifier.weight`` [C, D], ``classifier.bias`` [C], ``margins.K`` [channels]."""
