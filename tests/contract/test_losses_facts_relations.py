"""The identities of facts.json about relations, maps and memories."""

from dataclasses import replace

import pytest
import torch
from map_batches import batch_of, started
from torch import Tensor
from torch.nn import functional

from student_trainer.losses import DistillBatch, TrainingFacts, build_loss


def features_of(student: Tensor, teacher: Tensor) -> DistillBatch:
    return DistillBatch(student_logits=student, student_features=student, teacher_features=teacher)


def test_f9_rkd_ignores_shift_rotation_and_scale_of_either_side() -> None:
    generator = torch.Generator().manual_seed(9)
    student, teacher, square = (torch.randn(8, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    rotation = torch.linalg.qr(square).Q
    loss = build_loss("rkd")
    expected = loss(features_of(student, teacher))
    torch.testing.assert_close(loss(features_of(3.0 * student @ rotation + 5.0, teacher)), expected)
    torch.testing.assert_close(loss(features_of(student, 0.1 * teacher @ rotation - 2.0)), expected)


def test_f11_the_two_codes_of_ofd_are_the_same_per_sample_for_margins_below_0() -> None:
    batch = batch_of([(4, 4, 4)], [(4, 4, 4)])
    authors = started("ofd", batch, maps="1", divisor=1.0)(batch)
    other = started("ofd", batch, maps="1", divisor=1.0, form="mdistiller")(batch)
    torch.testing.assert_close(authors, other)


def test_f12_sp_divides_rows_by_their_euclidean_length() -> None:
    generator = torch.Generator().manual_seed(12)
    student, teacher = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))

    def by(p: int) -> Tensor:
        own, other = (functional.normalize(one @ one.T, p=p, dim=1) for one in (student, teacher))
        return (own - other).square().sum() / 36

    value = build_loss("sp", on="features")(features_of(student, teacher))
    torch.testing.assert_close(value, by(2))
    assert float(value) != pytest.approx(float(by(1)), rel=0.01)


def test_f13_the_gradient_of_crd_takes_the_constants_as_given() -> None:
    rows = torch.arange(6)
    loss = build_loss("crd", negatives=3, width=4)
    loss.start(TrainingFacts(seed=1, classes=2, rows=rows, labels=rows % 2, student_width=3, teacher_width=3))
    loss.double()
    generator = torch.Generator().manual_seed(13)
    student, teacher = (torch.randn(2, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    contrast = torch.tensor([[0, 1, 3, 5], [1, 0, 2, 4]])
    batch = replace(features_of(student.requires_grad_(), teacher), rows=rows[:2])
    value = loss(batch, contrast=contrast)  # the first batch sets the constants
    (gradient,) = torch.autograd.grad(value, student)
    again = build_loss("crd", negatives=3, width=4)
    again.start(TrainingFacts(seed=1, classes=2, rows=rows, labels=rows % 2, student_width=3, teacher_width=3))
    again.double()
    with torch.no_grad():
        again(batch, contrast=contrast)
        step = torch.zeros_like(student)
        step[0, 1] = 1e-6
        ahead, behind = (
            again(replace(features_of(student + sign * step, teacher), rows=rows[:2]), contrast=contrast)
            for sign in (1, -1)
        )
    assert float(gradient[0, 1]) == pytest.approx(float((ahead - behind) / 2e-6), rel=1e-6)
