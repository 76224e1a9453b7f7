"""What a loss is told before training, gathered from the student, the teacher's answers and the rows.

Shape key: N training rows with an answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.outputs import OutputForm
from student_trainer.losses.facts import MapShape, TrainingFacts
from student_trainer.student_outputs import StudentOutputs


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TeacherSide:
    """What is known of a teacher's answers before the first of them is read."""

    outputs: Mapping[str, Sequence[str]]
    """Field of a batch -> the outputs that fill it, see `DistillLoss.teacher_outputs`."""
    forms: Mapping[str, OutputForm]
    """Of all outputs that can be had, by name."""
    features: int | None
    """Width of the features; None without a teacher."""
    constants: Mapping[str, Tensor]
    """What the teacher says once; empty where the loss does not need it."""


def facts_of(
    *,
    seed: int,
    classes: int,
    rows_N: NDArray[np.int64],
    labels_N: NDArray[np.int64],
    student: StudentOutputs,
    teacher: TeacherSide,
) -> TrainingFacts:
    """What `DistillLoss.start` is given."""
    sizes = [teacher.forms[name].attributes for name in teacher.outputs.get("teacher_attention", ())]
    return TrainingFacts(
        seed=seed,
        classes=classes,
        rows=torch.from_numpy(rows_N),
        labels=torch.from_numpy(labels_N),
        student_width=student.feature_width,
        teacher_width=teacher.features if "teacher_features" in teacher.outputs else None,
        student_maps=student.map_shapes,
        teacher_maps=tuple(_shape(teacher.forms[name].shape) for name in teacher.outputs.get("teacher_maps", ())),
        teacher_attention=tuple((size["height"], size["width"]) for size in sizes),
        teacher_constants=teacher.constants,
    )


def _shape(shape: Sequence[int]) -> MapShape:
    channels, height, width = shape
    return channels, height, width
