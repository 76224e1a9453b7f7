"""Logit standardisation compares rows whatever their offset and scale."""

import pytest
import torch

from shared.errors import InputError
from student_trainer.losses import DistillBatch, build_loss


def test_each_rows_offset_and_scale_are_ignored() -> None:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(4, 9, dtype=torch.float64, generator=generator) for _ in range(2))
    moved = torch.tensor([[0.3], [1.0], [7.0], [50.0]]) * student + torch.tensor([[-3.0], [0.0], [40.0], [1e3]])
    loss = build_loss("logit_std")
    expected = loss(DistillBatch(student_logits=student, teacher_logits=teacher))
    assert float(expected) > 0.1
    found = loss(DistillBatch(student_logits=moved, teacher_logits=teacher))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_a_constant_row_has_one_gradient_however_its_mean_is_rounded() -> None:
    teacher = torch.randn(1, 10, generator=torch.Generator().manual_seed(6))
    gradients = []
    for level in (0.0, 0.1, 1.7, -1234.567):
        student = torch.full((1, 10), level, requires_grad=True)
        value = build_loss("logit_std")(DistillBatch(student_logits=student, teacher_logits=teacher))
        gradients.append(torch.autograd.grad(value, student)[0])
    assert bool(gradients[0].any())
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-5, atol=1.0)


def test_one_class_is_refused() -> None:
    with pytest.raises(InputError, match="at least 2 classes"):
        build_loss("logit_std")(DistillBatch(student_logits=torch.ones(3, 1), teacher_logits=torch.ones(3, 1)))
