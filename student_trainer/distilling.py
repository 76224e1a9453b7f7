"""Where student and teacher meet: the batch that a loss is given, and what a loss does to a trained student.

Shape key: B batch, N training rows, C classes, D feature width.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from shared.models.features import find_head
from student_trainer.evaluate import Forward, logits_of
from student_trainer.job import Job
from student_trainer.losses.base import filled_fields, widen
from student_trainer.losses.batch import DistillBatch
from student_trainer.order import PREPARATION, drawn_views, epoch_batches
from student_trainer.student_outputs import StudentAnswer

ANSWERS_AT_ONCE = 512
"""Rows per request for answers outside the steps."""


class Step(NamedTuple):
    """One step's rows and what the student said about them."""

    positions: NDArray[np.int64]
    """int64 [B] among the training rows."""
    views: NDArray[np.int64]
    """int64 [B]: the teacher's views."""
    said: StudentAnswer
    """With gradient."""
    inputs: Tensor
    """float [B, 3, H, W]: what the student saw."""
    labels: Tensor
    """int64 [B]."""
    mix: tuple[Tensor, Tensor] | None
    """(partner int64 [B], weight float32 [B]) on the device, where the images were mixed."""
    soft_labels: Tensor | None = None
    """float [B, C]: in the place of the labels, where the view itself shows two rows."""


def cross_entropy_of(step: Step) -> Tensor:
    """Cross-entropy with the labels, mean over the batch; of mixed images with both labels by weight."""
    logits_BC = widen(step.said.logits)
    labels = step.labels if step.soft_labels is None else step.soft_labels
    if step.mix is None:
        return functional.cross_entropy(logits_BC, labels)
    partner_B, weight_B = step.mix
    own_B = functional.cross_entropy(logits_BC, labels, reduction="none")
    other_B = functional.cross_entropy(logits_BC, labels[partner_B], reduction="none")
    return (weight_B * own_B + (1 - weight_B) * other_B).mean()


def distill_batch(job: Job, step: Step) -> DistillBatch | None:
    """The batch as the loss sees it: its answered rows, where the loss needs a teacher; None if they are too few."""
    positions, views = step.positions, step.views
    batch = DistillBatch(
        student_logits=step.said.logits,
        labels=step.labels,
        student_features=step.said.features,
        student_maps=step.said.maps,
        student_inputs=step.inputs if "student_inputs" in job.objective.loss.needs else None,
        mix=step.mix,
        soft_labels=step.soft_labels,
    )
    answered_B = job.selection.answered[positions]
    if job.uses_teacher and not answered_B.all():
        if answered_B.sum() < job.objective.loss.min_rows:
            return None
        batch = batch.select(torch.from_numpy(np.flatnonzero(answered_B)).to(job.device))
        positions, views = positions[answered_B], views[answered_B]
    # On the host, where they came from: a loss that looks rows up does so there.
    about: dict[str, Any] = {"rows": torch.from_numpy(job.selection.train[positions]), "views": torch.from_numpy(views)}
    return replace(batch, **about, **(teacher_answers(job, positions, views=views) if job.uses_teacher else {}))


def teacher_answers(
    job: Job, positions: NDArray[np.int64], *, views: NDArray[np.int64], fields: Iterable[str] | None = None
) -> dict[str, Any]:
    """Fields of a batch that hold the teacher's answers, [B, ...] on the device; None: all that the loss needs."""
    if job.targets is None:
        return {}
    rows_B = job.selection.train[positions]

    def pixels() -> Sequence[NDArray[np.uint8]]:
        if job.config.image_size is not None:  # the device holds the student's size, the teacher sees the data set's
            return [
                job.train_set.rendered(row, view) for row, view in zip(rows_B.tolist(), views.tolist(), strict=True)
            ]
        on_device = torch.from_numpy(positions).to(job.device)
        return list(job.train_images.pixels(on_device, views, host_B=positions).cpu().numpy())

    answers = job.targets.gather(rows_B, views, pixels=pixels)
    wanted = job.outputs if fields is None else {field: job.outputs[field] for field in fields if field in job.outputs}
    constants = {"teacher_constants": job.constants} if "teacher_constants" in wanted else {}
    return filled_fields(wanted, answers=answers) | constants


def prepare_loss(job: Job, *, note_used: Callable[..., None]) -> None:
    """Let a loss that has to learn from the teacher first do so; ``note_used`` is told what it was given."""
    answered = np.flatnonzero(job.selection.answered)
    classes = len(job.train_set.classes)

    def answers(epoch: int) -> Iterator[DistillBatch]:
        """All answered rows once, in a new order."""
        draw = {"seed": job.config.seed, "epoch": epoch}
        views_N = drawn_views(job.teacher_views, count=len(answered), purpose=PREPARATION, **draw)
        for batch in epoch_batches(count=len(answered), batch=job.config.batch, least=2, purpose=PREPARATION, **draw):
            note_used(answered[batch], views=views_N[batch])
            zeros_BC = torch.zeros(len(batch), classes, device=job.device)
            yield DistillBatch(student_logits=zeros_BC, **teacher_answers(job, answered[batch], views=views_N[batch]))

    if job.objective.loss.prepares and job.uses_teacher:
        job.objective.loss.prepare(answers)


class Finisher:
    """What the loss does to the student's last layer after training: nothing for most losses."""

    def __init__(self, job: Job, *, forward: Forward) -> None:
        self._job = job
        self._forward = forward
        self._loss = job.objective.loss
        self._head = self._checked_head() if self._loss.finishes else None
        self._given: dict[str, Tensor] | None = None

    def apply(self) -> None:
        """Finish the student as it is now, with the answers of all answered rows to the first view."""
        if self._head is None:
            return
        job = self._job
        positions = np.flatnonzero(job.selection.answered)
        on_device = torch.from_numpy(positions).to(job.device)
        batch = DistillBatch(
            student_logits=self._student_logits()[on_device],
            labels=job.train_images.labels[on_device],
            **self._answers(positions),  # type: ignore[arg-type]
        )
        self._loss.finish(self._head, batch)

    @contextmanager
    def tried(self) -> Iterator[None]:
        """Finish the student within the block, to judge it as it will be used, and undo it after."""
        if self._head is None:
            yield
            return
        before = {name: value.clone() for name, value in self._head.state_dict().items()}
        self.apply()
        try:
            yield
        finally:
            self._head.load_state_dict(before)

    def _view(self) -> int:
        return self._job.teacher_views[0]

    def _student_logits(self) -> Tensor:
        view = self._view() if self._job.student_views == "same" else 0
        return logits_of(self._forward, self._job.student, self._job.train_images, view=view)

    def _answers(self, positions: NDArray[np.int64]) -> dict[str, Tensor]:
        """Answers to the first view for all answered rows; asked for once and kept."""
        if self._given is None:
            starts = range(0, len(positions), ANSWERS_AT_ONCE)
            parts = [positions[start : start + ANSWERS_AT_ONCE] for start in starts]
            # A last layer is finished by logits: all maps of all rows would fill the memory.
            answers = [
                teacher_answers(self._job, part, views=np.full(len(part), self._view()), fields=("teacher_logits",))
                for part in parts
            ]
            self._given = {name: torch.cat([answer[name] for answer in answers]) for name in answers[0]}
        return self._given

    def _checked_head(self) -> nn.Module:
        """The student's last layer, refused before training where the loss could not finish it."""
        student = self._job.student
        head = student.get_submodule(find_head(student, image_size=self._job.train_images.image_shape).name)
        self._loss.check_head(head)
        return head
