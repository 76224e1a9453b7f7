"""DKD: the label left out exactly, its warm-up, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from shared.errors import InputError
from student_trainer.losses import DistillBatch, build_loss


def batch_of(classes: int, *, scale: float = 1.0) -> DistillBatch:
    generator = torch.Generator().manual_seed(3)
    student, teacher = (scale * torch.randn(4, classes, generator=generator).double() for _ in range(2))
    labels = torch.tensor([0, classes - 1, classes // 2, 0])
    return DistillBatch(student_logits=student.requires_grad_(), teacher_logits=teacher, labels=labels)


def test_the_label_is_left_out_of_the_others() -> None:
    batch = batch_of(6)
    assert batch.teacher_logits is not None
    assert batch.labels is not None
    total = torch.zeros((), dtype=torch.float64)
    for student, teacher, label in zip(batch.student_logits, batch.teacher_logits, batch.labels, strict=True):
        others = [index for index in range(6) if index != label]
        own, target = ((logits[others] / 3).softmax(dim=0) for logits in (student, teacher))
        total = total + (target * (target / own).log()).sum()
    torch.testing.assert_close(build_loss("dkd", alpha=0, beta=1, temperature=3.0)(batch), 9 * total / 4)


@pytest.mark.parametrize("part", [{"beta": 0}, {"alpha": 0}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_logits_have_finite_values_and_the_gradient_of_one_hot_outputs(
    part: dict[str, float], dtype: torch.dtype
) -> None:
    student = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    batch = DistillBatch(
        student_logits=student,
        teacher_logits=torch.tensor([[-1e4, 0.0, 1e4]], dtype=dtype),
        labels=torch.tensor([0]),
    )
    value = build_loss("dkd", temperature=1.0, **part)(batch)
    (gradient,) = torch.autograd.grad(value, student)
    if "beta" in part:  # label against the rest: all of the student's is on the label, all of the teacher's is not
        expected_value, expected = 1e4, torch.tensor([[1.0, 0.0, -1.0]], dtype=dtype)
    else:  # the rest: both on the last class
        expected_value, expected = 0.0, torch.zeros(1, 3, dtype=dtype)
    assert float(value.detach()) == expected_value
    torch.testing.assert_close(gradient, expected)


def test_two_classes_have_no_others_to_compare() -> None:
    batch = batch_of(2)
    value = build_loss("dkd", alpha=0)(batch)
    assert float(value.detach()) == 0
    assert not torch.autograd.grad(value, batch.student_logits)[0].any()
    torch.testing.assert_close(build_loss("dkd")(batch), build_loss("kl")(batch))


def test_the_loss_warms_up_over_the_first_epochs() -> None:
    loss, constant = build_loss("dkd", warmup_epochs=4), build_loss("dkd", warmup_epochs=0)
    factors = []
    for epoch in range(6):
        loss.begin_epoch(epoch)
        constant.begin_epoch(epoch)
        factors.append(loss.kd_factor)
        assert constant.kd_factor == 1
    assert factors == [0.25, 0.5, 0.75, 1, 1, 1]
    assert build_loss("dkd").defaults()["warmup_epochs"] == 20


def test_what_has_no_single_label_or_no_other_class_is_refused() -> None:
    batch = batch_of(3)
    with pytest.raises(InputError, match="one label per sample"):
        build_loss("dkd")(replace(batch, soft_labels=torch.ones(4, 3) / 3))
    with pytest.raises(InputError, match="at least 2 classes"):
        build_loss("dkd")(batch_of(1))
    with pytest.raises(InputError, match="at least one must be above 0"):
        build_loss("dkd", alpha=0, beta=0)
