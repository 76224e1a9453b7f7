"""The controls of comparing: logit matching, midpoint and label targets, and the identities that tie them to ckd."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from student_trainer.losses import DistillBatch, build_loss


def batch_of(count: int = 6, classes: int = 5) -> DistillBatch:
    generator = torch.Generator().manual_seed(count)
    student, teacher = torch.randn(2, count, classes, generator=generator, dtype=torch.float64).unbind()
    labels = torch.randint(classes, (count,), generator=generator)
    return DistillBatch(student_logits=student.requires_grad_(), teacher_logits=teacher, labels=labels)


def gradient(batch: DistillBatch, name: str, **hyper: object) -> Tensor:
    (found,) = torch.autograd.grad(build_loss(name, **hyper)(batch), batch.student_logits)
    return found


def onehot(batch: DistillBatch) -> Tensor:
    assert batch.labels is not None
    return torch.eye(batch.student_logits.shape[1], dtype=torch.float64)[batch.labels]


def midpoint(batch: DistillBatch) -> Tensor:
    assert batch.teacher_logits is not None
    return (batch.teacher_logits + onehot(batch)) / 2


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_each_target_of_mse_is_what_its_name_says(reduction: str) -> None:
    batch = batch_of()
    factor = 1 if reduction == "mean" else 5
    teacher = factor * functional.mse_loss(batch.student_logits, batch.teacher_logits)
    labels = factor * functional.mse_loss(batch.student_logits, onehot(batch))
    expected = {
        "teacher": teacher,
        "labels": labels,
        "both": teacher + labels,
        "midpoint": factor * functional.mse_loss(batch.student_logits, midpoint(batch)),
    }
    for target, value in expected.items():
        torch.testing.assert_close(build_loss("mse", target=target, reduction=reduction)(batch), value)


def test_mse_asks_only_for_what_its_target_uses() -> None:
    needs = {target: build_loss("mse", target=target).needs for target in ("teacher", "labels", "midpoint", "both")}
    both = ("teacher_logits", "labels")
    assert needs == {"teacher": both[:1], "labels": both[1:], "midpoint": both, "both": both}


def test_matching_both_has_twice_the_gradient_of_matching_their_midpoint() -> None:
    batch = batch_of()
    torch.testing.assert_close(gradient(batch, "mse", target="both"), 2 * gradient(batch, "mse", target="midpoint"))
    batch_error = build_loss("mse", target="both")(batch) - 2 * build_loss("mse", target="midpoint")(batch)
    assert batch.teacher_logits is not None
    apart = functional.mse_loss(batch.teacher_logits, onehot(batch)) / 2
    torch.testing.assert_close(batch_error, apart)


def test_all_pairs_with_labels_are_midpoint_matching_with_a_free_offset() -> None:
    batch = batch_of(7)
    offset = (midpoint(batch) - batch.student_logits).mean(dim=0).detach()
    moved = DistillBatch(
        student_logits=batch.student_logits + offset, teacher_logits=batch.teacher_logits, labels=batch.labels
    )
    # 2 n / (n - 1) for either of the two terms, and both together are twice the midpoint's.
    factor = 2 * 2 * 7 / 6
    expected = factor * gradient_without_offset(moved)
    torch.testing.assert_close(gradient(batch, "ckd"), expected)
    apart = midpoint(batch) - onehot(batch)
    constant = factor * (apart - apart.mean(dim=0)).square().mean()
    torch.testing.assert_close(
        build_loss("ckd")(batch), factor * build_loss("mse", target="midpoint")(moved) + constant
    )


def gradient_without_offset(moved: DistillBatch) -> Tensor:
    """Of midpoint matching where the offset follows the student: the gradient's mean over samples is taken out."""
    logits = moved.student_logits.detach().requires_grad_()
    found = gradient(
        DistillBatch(student_logits=logits, teacher_logits=moved.teacher_logits, labels=moved.labels),
        "mse",
        target="midpoint",
    )
    return found - found.mean(dim=0)


def test_lm_is_half_the_mean_squared_error() -> None:
    batch = batch_of()
    expected = (batch.student_logits - batch.teacher_logits).square().sum(dim=1).mean() / (2 * 5)
    torch.testing.assert_close(build_loss("lm")(batch), expected)
    torch.testing.assert_close(2 * gradient(batch, "lm"), gradient(batch, "mse"))
