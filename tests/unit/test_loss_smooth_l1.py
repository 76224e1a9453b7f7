"""Smooth L1 is quadratic near the teacher and linear far from it."""

import pytest
import torch

from student_trainer.losses import DistillBatch, build_loss


@pytest.mark.parametrize(("beta", "expected"), [(1.0, [0.125, 1.5]), (4.0, [0.03125, 0.5]), (0.1, [0.45, 1.95])])
def test_small_differences_count_squared_and_large_ones_by_their_size(beta: float, expected: list[float]) -> None:
    batch = DistillBatch(student_logits=torch.tensor([[0.5, -2.0]]), teacher_logits=torch.zeros(1, 2))
    assert float(build_loss("smooth_l1", beta=beta)(batch)) == pytest.approx(sum(expected) / 2)
