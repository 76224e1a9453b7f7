"""FT: the paraphraser learns from the teacher alone, and the student's training leaves it as it is."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from map_batches import batch_of, started
from torch import Tensor, nn
from torch.nn import functional

from shared.errors import InputError
from student_trainer.losses import DistillBatch
from student_trainer.losses.base import DistillLoss


def said(count: int) -> DistillBatch:
    """The teacher's channels are active each by its own amount, as after a ReLU."""
    batch = batch_of([(4, 4, 4)], [(8, 4, 4)], count=count)
    (teacher,) = batch.teacher_maps
    return replace(batch, teacher_maps=(0.3 * teacher.abs() + torch.arange(8.0)[:, None, None] / 4,))


BATCH = said(6)


def answers(epoch: int) -> Iterator[DistillBatch]:
    yield said(4 + epoch % 2)


def error_of(loss: DistillLoss) -> float:
    """How far the paraphraser is from giving back the teacher's map."""
    encoder, decoder = (loss.get_submodule(f"paraphraser.{name}") for name in ("encoder", "decoder"))
    (teacher,) = BATCH.teacher_maps
    return float(functional.mse_loss(decoder(encoder(teacher)), teacher))


def prepared(**hyper: Any) -> DistillLoss:
    loss = started("ft", BATCH, init_lr=0.05, **hyper)
    loss.prepare(answers)
    return loss


def test_the_paraphraser_learns_to_give_the_teachers_maps_back() -> None:
    assert error_of(prepared(init_epochs=100)) < 0.2 * error_of(started("ft", BATCH))


def test_preparing_twice_gives_the_same_bits() -> None:
    first, second = (prepared(init_epochs=2).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(
        first["paraphraser.encoder.0.weight"], started("ft", BATCH).state_dict()["paraphraser.encoder.0.weight"]
    )


def test_only_the_translator_is_trained_with_the_student() -> None:
    loss = prepared(init_epochs=1)
    loss(BATCH).backward()
    trained = {name for name, parameter in loss.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in loss.named_parameters() if name.startswith("translator.")}
    assert trained == {name for name, parameter in loss.named_parameters() if parameter.requires_grad}


def test_a_paraphraser_that_diverges_is_an_error() -> None:
    loss = started("ft", BATCH, init_lr=1e6)
    with pytest.raises(InputError, match=r"the paraphraser's loss is (inf|nan); choose an init_lr below 1e"):
        loss.prepare(answers)


def test_the_code_has_the_published_rate_of_the_teachers_channels() -> None:
    shapes = {name: tuple(value.shape) for name, value in started("ft", BATCH, rate=0.25).state_dict().items()}
    assert shapes["paraphraser.encoder.3.weight"] == (2, 8, 3, 3)
    assert shapes["paraphraser.decoder.6.weight"] == (8, 8, 3, 3)
    assert shapes["translator.encoder.6.weight"] == (2, 2, 3, 3)
    assert shapes["translator.encoder.7.running_mean"] == (2,)
    assert started("ft", BATCH, rate=0.01).get_parameter("translator.encoder.6.weight").shape[0] == 1


@pytest.mark.parametrize("factor", ["attention", "whole"])
def test_a_code_of_zeros_gives_a_small_gradient(factor: str) -> None:
    own = torch.zeros(2, 3, 4, 4, requires_grad=True)
    batch = DistillBatch(
        student_logits=torch.zeros(2, 2), student_maps=(own,), teacher_maps=(torch.rand(2, 3, 4, 4) - 0.5,)
    )
    loss = started("ft", batch, factor=factor, rate=1)
    loss.translator = nn.Identity()
    loss(batch).backward()
    gradient: Tensor | None = own.grad
    assert gradient is not None
    assert float(gradient.abs().max()) < 1


def bare_value(own: Tensor, other: Tensor, **hyper: Any) -> float:
    """Of two codes, without what makes codes of maps."""
    batch = DistillBatch(student_logits=own.new_zeros(len(own), 2), student_maps=(own,), teacher_maps=(other,))
    loss = started("ft", batch, **hyper)
    loss.translator, loss.paraphraser = nn.Identity(), nn.Module()
    loss.paraphraser.encoder = nn.Identity()
    return float(loss(batch).detach())


@pytest.mark.parametrize(("p1", "p2"), [(1, 1), (3, 1), (4, 3)])
def test_a_factor_is_a_mean_of_powers(p1: int, p2: int) -> None:
    own, other = torch.rand(2, 3, 4, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    factors = [functional.normalize((one**p1).mean(dim=1).flatten(1)) for one in (own, other)]
    expected = float(((factors[0] - factors[1]).abs() ** p2).mean())
    assert bare_value(own, other, p1=p1, p2=p2) == pytest.approx(expected)


def test_more_than_one_map_is_refused() -> None:
    with pytest.raises(InputError, match="one map of the student with one of the teacher, not 2"):
        started("ft", batch_of([(4, 4, 4)] * 2, [(8, 4, 4)] * 2))
