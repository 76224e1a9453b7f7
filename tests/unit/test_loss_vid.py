"""VID: its variance begins as told and is trained."""

import math

import pytest
import torch

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss

SHAPES = ((4, 6, 6), (3, 6, 6))


def started(**hyper: object) -> DistillLoss:
    loss, rows = build_loss("vid", **hyper), torch.arange(4)
    loss.start(
        TrainingFacts(seed=1, classes=2, rows=rows, labels=rows % 2, student_maps=SHAPES[:1], teacher_maps=SHAPES[1:])
    )
    return loss


def batch_of(*, noise: float) -> DistillBatch:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(64, *shape, generator=generator) for shape in SHAPES)
    return DistillBatch(student_logits=torch.zeros(64, 2), student_maps=(student,), teacher_maps=(noise * teacher,))


@pytest.mark.parametrize("variance", [1e-3, 0.5, 5.0, 1000.0])
def test_the_variance_begins_as_told(variance: float) -> None:
    loss = started(init_pred_var=variance)
    for parameter in loss.parameters():
        if parameter.ndim == 4:
            parameter.detach().zero_()
    batch = batch_of(noise=2.0)
    error = batch.teacher_maps[0].double().square().mean()
    expected = (error / variance + math.log(variance)) / 2
    assert float(loss(batch).detach()) == pytest.approx(float(expected), rel=1e-4)


def test_the_variance_is_trained_to_that_of_what_cannot_be_predicted() -> None:
    loss = started()
    batch = batch_of(noise=0.5)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
    log_scale = loss.get_parameter("parts.0.log_scale").detach()
    variance = torch.nn.functional.softplus(log_scale) + 1e-5
    torch.testing.assert_close(variance, torch.full((3,), 0.25), rtol=0.1, atol=0)


def test_a_first_variance_below_its_least_is_refused() -> None:
    with pytest.raises(InputError, match=r"init_pred_var=1e-06 must be above eps=0\.001"):
        build_loss("vid", init_pred_var=1e-6, eps=1e-3)
