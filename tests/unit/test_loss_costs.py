"""What losses may cost: no tensor of all pairs, all angles or all negatives where the formula does not need it."""

import pytest
import torch
from live_memory import watched

from student_trainer.losses import DistillBatch, TrainingFacts, build_loss, rkd


def batch_of(count: int, *, classes: int = 10, width: int = 16) -> DistillBatch:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(count, classes, generator=generator) for _ in range(2))
    student_features, teacher_features = (torch.randn(count, width, generator=generator) for _ in range(2))
    return DistillBatch(
        student_logits=student.requires_grad_(),
        teacher_logits=teacher,
        labels=torch.arange(count) % classes,
        rows=torch.arange(count),
        student_features=student_features.requires_grad_(),
        teacher_features=teacher_features,
    )


def test_memory_is_what_is_held_at_once_and_known_tensors_are_not_counted() -> None:
    known = torch.ones(1000)
    with watched([known]) as memory:
        first = known * 2
        assert memory.peak_bytes == 4000
        second = first.view(10, 100) + 1
        del first
        third = second.add_(known.view(10, 100)).double()
        assert memory.peak_bytes == 12000
        known.mul_(2)
    assert (memory.peak_bytes, memory.numbers) == (12000, 1000)
    assert third.shape == (10, 100)


def test_memory_of_a_backward_pass_counts() -> None:
    weight = torch.ones(1000, requires_grad=True)
    with watched([weight]) as memory:
        (weight * weight).sum().backward()
    # The product, the gradient of each factor, and their sum.
    assert 8000 < memory.peak_bytes <= 3 * 4000 + 8


@pytest.mark.parametrize("weights", [{}, {"pos": 2}, {"w_cls": 0.0}])
def test_all_pairs_take_memory_and_work_by_samples_times_classes(weights: dict[str, float]) -> None:
    loss, totals = build_loss("ckd", **weights), []
    for count in (64, 128, 256):
        batch = batch_of(count)
        with watched() as largest:
            loss(batch).backward()
        assert largest.numbers <= count * 10
        totals.append(largest.total / count)
    assert max(totals) < 1.05 * min(totals)


def test_comparing_pairs_one_by_one_would_be_noticed() -> None:
    batch = batch_of(64)
    with watched() as largest:
        build_loss("ckd", w_kd=1.0)(batch).backward()
    assert largest.numbers >= 64 * 63 * 10


def test_no_tensor_of_the_angle_term_is_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rkd, "NUMBERS_AT_ONCE", 40 * 40 * 6)
    with watched() as largest:
        build_loss("rkd")(batch_of(40)).backward()
    assert largest.numbers <= 40 * 40 * 6


def test_contrasting_never_gathers_an_embedding_per_negative() -> None:
    count, rows, negatives, width = 16, 200, 500, 32
    loss = build_loss("crd", negatives=negatives, width=width)
    loss.start(
        TrainingFacts(
            seed=0,
            classes=10,
            rows=torch.arange(rows),
            labels=torch.arange(rows) % 10,
            student_width=16,
            teacher_width=16,
        )
    )
    with watched() as largest:
        loss(batch_of(count)).backward()
    assert largest.numbers <= max(count * negatives, rows * width)
