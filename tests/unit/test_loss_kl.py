"""KL at its limits: infinite, huge and tiny temperatures, in the precision that losses are computed in."""

import pytest
import torch
from torch import Tensor

from student_trainer.losses import DistillBatch, build_loss


def pair(*, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    student, teacher = (scale * torch.randn(6, 20, generator=generator) for _ in range(2))
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def outcome(student: Tensor, teacher: Tensor, **hyper: object) -> tuple[Tensor, Tensor]:
    value = build_loss("kl", **hyper)(DistillBatch(student_logits=student, teacher_logits=teacher))
    return value.detach(), torch.autograd.grad(value, student)[0]


@pytest.mark.parametrize("scale", ["tau2", "max"])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_infinite_temperature_has_the_gradient_that_its_authors_write_by_hand(scale: str, size: float) -> None:
    student, teacher = pair(scale=size)
    value, gradient = outcome(student, teacher, temperature=float("inf"), scale=scale)
    difference = (student - teacher).detach()
    total = difference.sum(dim=1, keepdim=True)
    torch.testing.assert_close(gradient, (20 * difference - total) / 20**2 / 6, rtol=1e-12, atol=1e-12 * size)
    centred = difference - total / 20
    torch.testing.assert_close(value, centred.square().sum() / (2 * 20 * 6), rtol=1e-12, atol=0)


@pytest.mark.parametrize("temperature", [1e3, 1e5, 1e7, 9e8, 1e9, 1e200])
def test_large_temperatures_lose_nothing_to_rounding_in_float32(temperature: float) -> None:
    """Far from the limit by no more than 1/T times the logits, where rounding would make it noise."""
    student, teacher = pair(dtype=torch.float32)
    value, gradient = outcome(student, teacher, temperature=temperature)
    limit, limit_gradient = outcome(student.double(), teacher.double(), temperature="inf")
    allowed = 4 / temperature + 1e-6
    assert float(value) == pytest.approx(float(limit), rel=allowed)
    assert float((gradient - limit_gradient).abs().max()) <= allowed * float(limit_gradient.abs().max())
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("temperature", [1e-3, 1e-6, 1e-35, 1e-300])
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_tiny_temperatures_match_the_largest_logits(temperature: float, size: float) -> None:
    student, teacher = pair(scale=size, dtype=torch.float32)
    value, gradient = outcome(student, teacher, temperature=temperature, scale="max")
    largest = [torch.eye(20)[one.argmax(dim=1)] for one in (student, teacher)]
    torch.testing.assert_close(6 * gradient, largest[0] - largest[1], rtol=0, atol=1e-6)
    behind = student.amax(dim=1) - student[torch.arange(6), teacher.argmax(dim=1)]
    torch.testing.assert_close(value, behind.mean().detach(), rtol=1e-5, atol=1e-2 * min(temperature, 1))
    vanishing = outcome(student, teacher, temperature=temperature)[1]
    torch.testing.assert_close(vanishing, temperature * gradient, rtol=1e-5, atol=1e-30)


def test_near_ties_of_large_logits_are_told_apart() -> None:
    gap, temperature = 2.0**-10, 1e-3  # the distance of two float32 numbers near 1e4
    student = torch.tensor([[1e4, 1e4 - gap, 0.0]], requires_grad=True)
    gradient = outcome(student, torch.tensor([[0.0, 0.0, 1e4]]), temperature=temperature, scale="max")[1]
    first = torch.sigmoid(torch.tensor(gap / temperature))
    torch.testing.assert_close(gradient, torch.stack([first, 1 - first, torch.tensor(-1.0)])[None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1e3, 1e5, 1e8])
@pytest.mark.parametrize("size", [1e4, 1e6, 1e9])
def test_huge_logits_at_large_temperatures_stay_finite(size: float, temperature: float, dtype: torch.dtype) -> None:
    student, teacher = pair(scale=size, dtype=dtype)
    value, gradient = outcome(student, teacher, temperature=temperature)
    soft = [(one.detach().double() / temperature).log_softmax(dim=1) for one in (student, teacher)]
    probabilities = [one.exp() for one in soft]
    expected = temperature * (probabilities[0] - probabilities[1]) / 6
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-5, atol=1e-7 * temperature)
    divergence = temperature**2 * (probabilities[1] * (soft[1] - soft[0])).sum(dim=1).mean()
    torch.testing.assert_close(value.double(), divergence, rtol=1e-5, atol=1e-14 * temperature**2)
