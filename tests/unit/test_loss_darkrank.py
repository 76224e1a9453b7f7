"""DarkRank: the likelihood of the teacher's order of neighbours."""

import math

import pytest
import torch
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses import DistillBatch, build_loss


def points(count: int, width: int, *, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def value(student: Tensor, teacher: Tensor, **hyper: object) -> Tensor:
    batch = DistillBatch(student_logits=student, student_features=student, teacher_features=teacher)
    result: Tensor = build_loss("darkrank", **hyper)(batch)
    return result


@pytest.mark.parametrize("neighbours", [2, 3, 20])
def test_it_is_the_negative_log_likelihood_of_drawing_neighbours_in_the_teachers_order(neighbours: int) -> None:
    student, teacher = points(6, 3, seed=0), points(6, 4, seed=1)
    total = 0.0
    for anchor in range(6):
        others = [other for other in range(6) if other != anchor]
        others.sort(key=lambda other: math.dist(teacher[anchor].tolist(), teacher[other].tolist()))
        chances = [
            math.exp(-1.5 * math.dist(student[anchor].tolist(), student[other].tolist()) ** 2)
            for other in others[:neighbours]
        ]
        for k in range(len(chances)):
            total -= math.log(chances[k] / sum(chances[k:])) / 6
    found = value(student, teacher, alpha=1.5, beta=2, neighbours=neighbours, normalise=False)
    assert float(found) == pytest.approx(total, rel=1e-12)


def test_lengths_of_samples_do_not_matter_by_default() -> None:
    student, teacher = points(6, 3, seed=0), points(6, 4, seed=1)
    lengths = torch.tensor([1, 2, 3, 4, 5, 1e4], dtype=torch.float64)[:, None]
    torch.testing.assert_close(value(lengths * student, lengths.flip(0) * teacher), value(student, teacher))
    assert float(value(2 * student, teacher, normalise=False)) > 2 * float(value(student, teacher, normalise=False))


def test_samples_at_one_point_keep_the_gradient_finite() -> None:
    student, teacher = points(6, 3, seed=0), points(6, 4, seed=1)
    student[1:4] = student[0]
    teacher[2] = teacher[3]
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(value(student, teacher, normalise=False), student)
    assert bool(gradient.isfinite().all())


def test_two_samples_have_no_order() -> None:
    with pytest.raises(InputError, match="at least 3 samples; this one has 2"):
        value(points(2, 3, seed=0), points(2, 3, seed=1))
