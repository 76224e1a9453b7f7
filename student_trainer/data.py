"""Cached teacher answers for your own training loop, around any map-style data set of (image, label).

    reader = CacheReader.open("CACHE", dataset="cifar100/train")
    dataset = CachedTeacherDataset(my_dataset, reader=reader, transform=to_tensor)
    for batch in CachedTeacherLoader(dataset, batch_size=64, shuffle=True, num_workers=2):
        loss = build_loss("kl")(batch.distill(model(batch.images)))

A loss may want more of teacher and student, and train parts of its own; all that is seen to by

    student = StudentOutputs(model, loss=loss, image_size=(32, 32))
    loader = CachedTeacherLoader.for_loss(loss, dataset, student=student, batch_size=64, shuffle=True)
    optimizer = SGD([*student.parameters(), *loss.parameters()], lr=0.05)
    for batch in loader:
        said = student(batch.images)
        value = loss(batch.distill(said.logits, student_features=said.features, student_maps=said.maps))

Images are loaded by the workers; answers are gathered in the main process, one gather per batch.
Shape key: B batch, C classes, D feature width, H height, W width.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from shared.errors import OutputNotCachedError
from shared.outputs import CONSTANTS
from student_trainer.announcement import TeacherSide, facts_of
from student_trainer.cached_rows import CachedTeacherDataset, Item
from student_trainer.lacking import Origin, lacking_outputs
from student_trainer.losses.base import DistillLoss, filled_fields, output_names
from student_trainer.losses.batch import DistillBatch
from student_trainer.losses.mix import Mix
from student_trainer.student_outputs import StudentOutputs

__all__ = ["CachedTeacherDataset", "CachedTeacherLoader", "TeacherBatch"]


class LossAnswers(dict[str, Tensor]):
    """A teacher's outputs by name, which knows the field of a `DistillBatch` that a loss wants each of them in."""

    def __init__(self, outputs: Mapping[str, Tensor], *, fields: Mapping[str, Sequence[str]]) -> None:
        super().__init__(outputs)
        self.fields = fields


class TeacherBatch(NamedTuple):
    """One batch of a `CachedTeacherLoader`, by name or as ``images, labels, rows, views, teacher``."""

    images: Any
    """The images as collated, usually a Tensor [B, ...]."""
    labels: Tensor
    """int64 [B]."""
    rows: Tensor
    """int64 [B]."""
    views: Tensor
    """int64 [B]."""
    teacher: Mapping[str, Tensor]
    """The teacher's outputs by name, [B, ...], in the cache's dtype."""

    def distill(
        self,
        student_logits: Tensor,
        *,
        student_features: Tensor | None = None,
        student_maps: Sequence[Tensor] = (),
        student_inputs: Tensor | None = None,
        mix: Mix | None = None,
        teacher_constants: Mapping[str, Tensor] | None = None,
    ) -> DistillBatch:
        """What a loss is given, on the device of the student's logits; it says what it lacks.

        ``student_maps`` are those that the loss compares, and ``student_inputs`` the tensor that the student saw, which
        required gradients. ``mix`` is what `DistillLoss.mix` said and the images were mixed by; ``teacher_constants``
        are those of the loader.
        """
        device = student_logits.device
        sent = {name: value.to(device, non_blocking=True) for name, value in self.teacher.items()}
        # Only the loss knows which it wants as maps where there are maps and maps before their activation.
        fields = self.teacher.fields if isinstance(self.teacher, LossAnswers) else None
        answers = DistillBatch.teacher_fields(sent) if fields is None else filled_fields(fields, answers=sent)
        constants = None
        if teacher_constants:
            constants = {name: value.to(device, non_blocking=True) for name, value in teacher_constants.items()}
        return DistillBatch(
            student_logits=student_logits,
            student_features=student_features,
            student_maps=tuple(student_maps),
            student_inputs=student_inputs,
            labels=self.labels.to(device, non_blocking=True),
            rows=self.rows,
            views=self.views,
            mix=None if mix is None else mix.pair,
            teacher_constants=constants,
            **answers,  # type: ignore[arg-type]
        )


class CachedTeacherLoader:
    """A DataLoader over a `CachedTeacherDataset` that adds the teacher's answers to every batch.

    ``options`` are those of `torch.utils.data.DataLoader`: batch_size, shuffle, num_workers, generator, ...
    """

    def __init__(self, dataset: CachedTeacherDataset, *, outputs: Sequence[str] = ("logits",), **options: Any) -> None:
        self._dataset = dataset
        self._outputs = tuple(outputs)
        self._fields: Mapping[str, Sequence[str]] | None = None
        self._loader: DataLoader[Item] = DataLoader(dataset, **options)

    @classmethod
    def for_loss(
        cls,
        loss: DistillLoss,
        dataset: CachedTeacherDataset,
        *,
        student: StudentOutputs,
        seed: int = 0,
        **options: Any,
    ) -> Self:
        """A loader of what ``loss`` needs, which is told about the training: it may make weights and memories.

        ``student`` is ``StudentOutputs(network, loss=loss, image_size=(H, W))``, and what to call with the images; give
        ``loss.parameters()`` to the optimizer too. Raises `OutputNotCachedError` where the cache lacks an output.
        """
        reader = dataset.reader
        outputs = loss.teacher_outputs(student_maps=student.map_count, offered=reader.forms)
        names = output_names(outputs)
        lacking = lacking_outputs(names, reader=reader)
        if lacking:
            raise OutputNotCachedError(Origin().remedy(lacking, reader=reader))
        loader = cls(dataset, outputs=[name for name in names if name != CONSTANTS], **options)
        loader._fields = outputs
        teacher = TeacherSide(
            outputs=outputs, forms=reader.forms, features=reader.teacher.features, constants=loader.constants
        )
        classes, rows_N = reader.teacher.classes, np.asarray(dataset.rows)
        labels_N = reader.labels(rows_N, view=dataset.views[0])
        loss.start(
            facts_of(seed=seed, classes=classes, rows_N=rows_N, labels_N=labels_N, student=student, teacher=teacher)
        )
        if loss.prepares:
            loss.prepare(loader.without_student)
        return loader

    @cached_property
    def constants(self) -> Mapping[str, Tensor]:
        """What the teacher says once for all rows, by name; empty where the cache does not keep it."""
        return {name: torch.from_numpy(np.array(array)) for name, array in self._dataset.reader.constants.items()}

    def without_student(self, _epoch: int = 0) -> Iterator[DistillBatch]:
        """All rows once, for a loss that learns from the teacher first; the student's logits are zeros."""
        classes = self._dataset.reader.teacher.classes
        for batch in self:
            yield batch.distill(torch.zeros(len(batch.labels), classes), teacher_constants=self.constants)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[TeacherBatch]:
        for images, labels, rows, views in self._loader:
            arrays = self._dataset.reader.gather(rows.numpy(), view=views.numpy(), outputs=self._outputs)
            teacher = {name: torch.from_numpy(array) for name, array in arrays.items()}
            if self._fields is not None:
                teacher = LossAnswers(teacher, fields=self._fields)
            yield TeacherBatch(images=images, labels=labels, rows=rows, views=views, teacher=teacher)
