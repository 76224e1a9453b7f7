"""RKD_n: a fixed projection of differences, between a scalar relation and CKD."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss

FACTS = TrainingFacts(seed=7, classes=12, rows=torch.arange(8), labels=torch.zeros(8), student_width=5, teacher_width=5)


def started(dims: int, *, facts: TrainingFacts = FACTS, **hyper: object) -> DistillLoss:
    loss = build_loss("rkd_n", dims=dims, **hyper)
    loss.start(facts)
    return loss.double()


def batch_of(count: int = 6, *, seed: int = 0) -> DistillBatch:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, count, 12, generator=generator, dtype=torch.float64)
    features = torch.randn(2, count, 5, generator=generator, dtype=torch.float64)
    return DistillBatch(
        student_logits=logits[0].requires_grad_(),
        teacher_logits=logits[1],
        student_features=features[0],
        teacher_features=features[1],
    )


def projection_of(loss: DistillLoss) -> Tensor:
    directions: Tensor = loss.state_dict()["projection"]
    return directions


def test_all_directions_are_ckds_teacher_term() -> None:
    found, expected = batch_of(), batch_of()
    ours, theirs = started(12)(found), build_loss("ckd", w_cls=0)(expected)
    ours.backward()
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.student_logits.grad, expected.student_logits.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dims", [1, 4, 11])
def test_fewer_directions_compare_the_projected_differences_of_every_pair(dims: int) -> None:
    loss, batch = started(dims), batch_of()
    directions = projection_of(loss)
    assert directions.shape == (12, dims)
    torch.testing.assert_close(directions.T @ directions, torch.eye(dims, dtype=torch.float64), rtol=0, atol=1e-6)
    assert batch.teacher_logits is not None
    student, teacher = batch.student_logits @ directions, batch.teacher_logits @ directions
    errors = [
        ((student[i] - student[j]) - (teacher[i] - teacher[j])).square().mean()
        for i in range(6)
        for j in range(6)
        if i != j
    ]
    torch.testing.assert_close(loss(batch), torch.stack(errors).mean(), rtol=1e-12, atol=0)


def test_the_number_of_directions_does_not_change_the_loss_on_average() -> None:
    batch = batch_of()
    found = [started(3, facts=replace(FACTS, seed=seed))(batch).item() for seed in range(2000)]
    assert sum(found) / 2000 == pytest.approx(started(12)(batch).item(), rel=0.03)


def test_the_directions_come_from_the_seed_and_go_on_after_a_restored_state() -> None:
    first, again, other = started(4), started(4), started(4, facts=replace(FACTS, seed=8))
    assert torch.equal(projection_of(first), projection_of(again))
    assert not torch.equal(projection_of(first), projection_of(other))
    other.load_state_dict(first.state_dict())
    assert torch.equal(other(batch_of()), first(batch_of()))


def test_features_of_one_width_are_projected_too() -> None:
    batch = batch_of()
    assert batch.student_features is not None
    as_logits = DistillBatch(student_logits=batch.student_features, teacher_logits=batch.teacher_features)
    torch.testing.assert_close(started(5, on="features")(batch), build_loss("ckd", w_cls=0)(as_logits))


def test_what_cannot_be_projected_is_refused() -> None:
    with pytest.raises(InputError, match=r"call loss\.start"):
        build_loss("rkd_n")(batch_of())
    with pytest.raises(InputError, match="dims=13 is more than the 12 dimensions of logits"):
        started(13)
    with pytest.raises(InputError, match="5 wide and the teacher's 6; use on=logits"):
        started(2, facts=replace(FACTS, teacher_width=6), on="features")
    with pytest.raises(InputError, match="at least 2 samples"):
        started(1)(batch_of(1))
    with pytest.raises(InputError, match=r"12 \(student\) and 12 \(teacher\) numbers; start\(\) was told 9"):
        started(2, facts=replace(FACTS, classes=9))(batch_of())
