"""Losses on CUDA: the values and gradients of the CPU, for whatever is not drawn on the device."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from student_trainer.losses import LOSSES, DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.negatives import Negatives

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

ROWS, CLASSES, BATCH = 40, 5, 8


def started(name: str, device: str) -> DistillLoss:
    loss = build_loss(name)
    rows = torch.arange(ROWS)
    facts = TrainingFacts(seed=1, classes=CLASSES, rows=rows, labels=rows % CLASSES, student_width=6, teacher_width=7)
    loss.start(facts)
    return loss.to(device)


def batch_of(device: str) -> DistillBatch:
    generator = torch.Generator().manual_seed(0)
    student, teacher, student_features, teacher_features = (
        torch.randn(BATCH, width, generator=generator).to(device) for width in (CLASSES, CLASSES, 6, 7)
    )
    return DistillBatch(
        student_logits=student.requires_grad_(),
        teacher_logits=teacher,
        labels=(torch.arange(BATCH) % CLASSES).to(device),
        rows=torch.arange(BATCH),  # rows and mix stay on the CPU, as the training loop gives them
        student_features=student_features.requires_grad_(),
        teacher_features=teacher_features,
        mix=(torch.arange(BATCH).roll(1), torch.full((BATCH,), 0.3)),
    )


def steps(name: str, device: str) -> list[Tensor]:
    """(value, gradients) of two steps, so that what the first one left behind counts."""
    loss, found = started(name, device), []
    options = {"contrast": torch.arange(BATCH * 17).view(BATCH, 17) % ROWS} if name == "crd" else {}
    for _ in range(2):
        batch = batch_of(device)
        value = loss(batch, **options)
        inputs = [batch.student_logits, batch.student_features, *loss.parameters()]
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        found += [value.detach(), *(item for item in gradients if item is not None)]
    return [tensor.cpu() for tensor in found]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_gives_on_cuda_what_it_gives_on_the_cpu(name: str) -> None:
    for found, expected in zip(steps(name, "cuda"), steps(name, "cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("count", [10, 1000])
def test_negatives_drawn_on_cuda_are_of_other_classes_and_as_many_as_asked(count: int) -> None:
    rows = torch.arange(ROWS)
    negatives = Negatives(rows_N=rows, labels_N=rows % CLASSES, count=count).to("cuda")
    counts = negatives.draw(rows.cuda(), seed=3).cpu()
    assert counts.sum(dim=1).eq(count).all()
    assert counts[(rows % CLASSES)[:, None] == rows % CLASSES].eq(0).all()


def test_a_state_saved_on_cuda_goes_on_there() -> None:
    first, resumed = started("crd", "cuda"), started("crd", "cuda")
    first(batch_of("cuda"))
    resumed.load_state_dict(first.state_dict())
    batch = replace(batch_of("cuda"), rows=torch.arange(BATCH) + 9)
    torch.testing.assert_close(resumed(batch), first(batch))
