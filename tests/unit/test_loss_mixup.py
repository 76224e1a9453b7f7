"""Mixup: what it draws, and that its value is the weighted mean of two errors."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from student_trainer.losses import DistillBatch, TrainingFacts, build_loss
from student_trainer.losses.base import DistillLoss


def started(*, seed: int = 0, **hyper: object) -> DistillLoss:
    loss = build_loss("mixup", **hyper)
    loss.start(TrainingFacts(seed=seed, classes=5, rows=torch.arange(8), labels=torch.arange(8)))
    return loss


def drawn(loss: DistillLoss, count: int) -> tuple[Tensor, Tensor]:
    mix = loss.mix(count, size=(8, 8))
    assert mix is not None
    return mix.pair


def batch_of(count: int) -> DistillBatch:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, count, 5, generator=generator, dtype=torch.float64).unbind()
    mix = (torch.tensor([2, 0, 3, 1]), torch.tensor([0.1, 0.9, 0.5, 1.0], dtype=torch.float64))
    return DistillBatch(student_logits=student, teacher_logits=teacher, mix=mix)


def test_a_mix_is_one_weight_and_a_permutation_as_the_batch_expects_them() -> None:
    partner, weight = drawn(started(), 64)
    assert partner.dtype == torch.int64
    assert weight.dtype == torch.float32
    assert sorted(partner.tolist()) == list(range(64))
    assert partner.tolist() != list(range(64))
    assert len(set(weight.tolist())) == 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_weights_follow_the_beta_distribution(alpha: float) -> None:
    loss = started(alpha=alpha)
    weights = torch.tensor([float(drawn(loss, 2)[1][0]) for _ in range(4000)])
    expected = torch.distributions.Beta(alpha, alpha)
    assert float(weights.mean()) == pytest.approx(float(expected.mean), abs=4 * float(expected.stddev) / 4000**0.5)
    assert float(weights.var()) == pytest.approx(float(expected.variance), rel=0.12)


def test_another_seed_draws_other_mixes_and_a_restored_state_the_next_ones() -> None:
    first, other = started(seed=1), started(seed=2)
    assert drawn(first, 50)[0].tolist() != drawn(other, 50)[0].tolist()
    resumed = started(seed=1)
    resumed.load_state_dict(first.state_dict())
    assert [item.tolist() for item in drawn(resumed, 9)] == [item.tolist() for item in drawn(first, 9)]


def test_the_target_of_cross_entropy_is_the_mix_of_two_answers() -> None:
    batch = batch_of(4)
    assert batch.teacher_logits is not None
    assert batch.mix is not None
    partner, weight = batch.mix
    answers = batch.teacher_logits.softmax(dim=1)
    target = weight[:, None] * answers + (1 - weight[:, None]) * answers[partner]
    expected = -(target * batch.student_logits.log_softmax(dim=1)).sum() / 4
    torch.testing.assert_close(started()(batch), expected)


def test_the_divergence_is_mixed_from_that_to_each_answer() -> None:
    batch = batch_of(4)
    assert batch.teacher_logits is not None
    assert batch.mix is not None
    partner, weight = batch.mix
    kl = build_loss("kl", temperature=2.0)
    expected = 0.0
    for row, other in enumerate(partner.tolist()):
        for answer, share in ((row, float(weight[row])), (other, 1 - float(weight[row]))):
            pair = DistillBatch(
                student_logits=batch.student_logits[[row]], teacher_logits=batch.teacher_logits[[answer]]
            )
            expected += share * float(kl(pair)) / 4
    assert float(started(target="kl", temperature=2.0)(batch)) == pytest.approx(expected, rel=1e-12)


def test_a_weight_of_one_is_the_loss_without_mixing() -> None:
    batch = batch_of(4)
    assert batch.mix is not None
    whole = replace(batch, mix=(batch.mix[0], torch.ones(4)))
    torch.testing.assert_close(
        started(target="kl", temperature=3.0)(whole), build_loss("kl", temperature=3.0)(replace(batch, mix=None))
    )
