"""DIST: parts that are switched off, the relation by divergence, and a derivative written by hand."""

import pytest
import torch
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses import DistillBatch, build_loss
from student_trainer.losses.dist import pearson


def batch_of(count: int = 5, classes: int = 7, *, scale: float = 2.0) -> DistillBatch:
    generator = torch.Generator().manual_seed(1)
    student, teacher = (scale * torch.randn(count, classes, dtype=torch.float64, generator=generator) for _ in range(2))
    return DistillBatch(student_logits=student.requires_grad_(), teacher_logits=teacher)


def value_of(batch: DistillBatch, **hyper: object) -> Tensor:
    value: Tensor = build_loss("dist", **hyper)(batch)
    return value


@pytest.mark.parametrize("relation", ["pearson", "kl"])
def test_each_part_counts_by_its_weight_and_none_where_it_is_0(relation: str) -> None:
    batch = batch_of()
    rows, columns = (value_of(batch, relation=relation, **weights) for weights in ({"gamma": 0}, {"beta": 0}))
    both = value_of(batch, relation=relation, beta=0.3, gamma=1.7)
    torch.testing.assert_close(both, 0.3 * rows + 1.7 * columns)
    assert float(rows.detach()) != float(columns.detach())
    with pytest.raises(InputError, match="at least one must be above 0"):
        build_loss("dist", beta=0, gamma=0, relation=relation)


def test_divergence_between_rows_is_kl() -> None:
    batch = batch_of()
    expected = build_loss("kl", temperature=3.0)(batch)
    torch.testing.assert_close(value_of(batch, temperature=3.0, gamma=0, relation="kl"), expected)


def test_divergence_between_columns_compares_how_each_class_spreads_over_the_samples() -> None:
    batch = batch_of()
    assert batch.teacher_logits is not None
    student, teacher = ((logits / 3).softmax(dim=1) for logits in (batch.student_logits, batch.teacher_logits))
    student, teacher = student / student.sum(dim=0), teacher / teacher.sum(dim=0)
    expected = 9 * (teacher * (teacher / student).log()).sum() / 7
    torch.testing.assert_close(value_of(batch, temperature=3.0, beta=0, relation="kl"), expected)


def test_an_epsilon_of_divergence_is_refused() -> None:
    with pytest.raises(InputError, match="eps has no effect with relation=kl"):
        build_loss("dist", relation="kl", eps=1e-6)


@pytest.mark.parametrize(
    "hyper", [{"gamma": 0}, {"beta": 0}, {"eps": 0.1}, {"relation": "kl"}, {"relation": "kl", "beta": 0}]
)
@pytest.mark.parametrize("count", [1, 5])
def test_the_derivative_is_that_of_the_value(hyper: dict[str, object], count: int) -> None:
    batch = batch_of(count)

    def value(student: Tensor) -> Tensor:
        return value_of(DistillBatch(student_logits=student, teacher_logits=batch.teacher_logits), **hyper)

    assert torch.autograd.gradcheck(value, (batch.student_logits,), atol=1e-7)


@pytest.mark.parametrize("dim", [0, 1])
def test_correlation_is_that_of_the_definition(dim: int) -> None:
    batch = batch_of()
    assert batch.teacher_logits is not None
    student, teacher = batch.student_logits.detach(), batch.teacher_logits
    pairs = zip(student.unbind(1 - dim), teacher.unbind(1 - dim), strict=True)
    expected = torch.stack([torch.corrcoef(torch.stack(one))[0, 1] for one in pairs])
    torch.testing.assert_close(pearson(student, teacher, dim=dim, eps=1e-30)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_rows_and_columns_have_a_gradient_that_eps_bounds(dtype: torch.dtype) -> None:
    teacher = torch.randn(4, 6, generator=torch.Generator().manual_seed(2)).to(dtype)
    student = torch.zeros(4, 6, dtype=dtype, requires_grad=True)
    value = value_of(DistillBatch(student_logits=student, teacher_logits=teacher))
    (gradient,) = torch.autograd.grad(value, student)
    assert float(value.detach()) == pytest.approx(2)
    assert 1e4 < float(gradient.abs().max()) < 1e8
