"""Sums of losses: weights, stages and warm-ups, whose maps are whose, what is left out."""

import logging
from dataclasses import replace

import pytest
import torch

from shared.errors import InputError
from student_trainer.losses import DistillBatch, TrainingFacts, build_loss

SHAPES = ((4, 8, 8), (6, 4, 4), (8, 2, 2))
FACTS = TrainingFacts(
    seed=0,
    classes=5,
    rows=torch.arange(6),
    labels=torch.arange(6) % 5,
    student_maps=SHAPES,
    teacher_maps=SHAPES,
)


def batch_of(count: int = 6) -> DistillBatch:
    generator = torch.Generator().manual_seed(3)
    maps = [tuple(torch.randn(count, *shape, generator=generator) for shape in SHAPES) for _ in range(2)]
    return DistillBatch(
        student_logits=torch.randn(count, 5, generator=generator, requires_grad=True),
        teacher_logits=torch.randn(count, 5, generator=generator),
        labels=torch.arange(count) % 5,
        student_maps=maps[0],
        teacher_maps=maps[1],
    )


@pytest.mark.parametrize(
    ("name", "hyper", "expected"),
    [
        ("kl+mse", {}, 0.1),
        ("kl+dkd", {}, 1.0),
        ("fitnets+ckd", {}, 0.0),
        ("kl+mse", {"mse.target": "both"}, 0.0),
        ("fitnets+ckd", {"ckd.weight": 0}, 1.0),
    ],
)
def test_cross_entropy_has_the_largest_weight_asked_for_unless_a_loss_trains_on_labels_itself(
    name: str, hyper: dict[str, object], expected: float
) -> None:
    assert build_loss(name, **hyper).default_ce_weight == expected


def test_a_loss_of_weight_0_asks_for_nothing_and_finishes_nothing() -> None:
    loss = build_loss("kl+fitnets+ckd", **{"fitnets.weight": 0, "ckd.weight": 0, "ckd.offset": "calibrate"})
    assert loss.needs == ("teacher_logits",)
    assert not loss.finishes
    assert loss.settings["fitnets.weight"] == 0
    torch.testing.assert_close(loss(batch_of()), 0.9 * build_loss("kl")(batch_of()))


def test_a_loss_that_trains_alone_first_makes_the_others_wait() -> None:
    loss = build_loss("nst+kl", **{"nst.weight": 2})
    staged = build_loss("fsp+kl", **{"fsp.init_epochs": 2, "fsp.maps": "0-", "fsp.weight": 3})
    loss.begin_epoch(0)
    assert (loss.ce_factor, loss.kd_factor) == (1.0, 1.0)
    batch = batch_of()
    for epoch in (0, 1):
        staged.begin_epoch(epoch)
        assert (staged.ce_factor, staged.kd_factor) == (0.0, 1.0)
        torch.testing.assert_close(staged(batch), 3 * build_loss("fsp")(batch))
    staged.begin_epoch(2)
    assert (staged.ce_factor, staged.kd_factor) == (1.0, 1.0)
    torch.testing.assert_close(staged(batch), 0.9 * build_loss("kl")(batch))


def test_stages_that_are_over_leave_nothing_to_add() -> None:
    loss = build_loss("ab+fsp", **{"ab.init_epochs": 1, "fsp.init_epochs": 2})
    factors = []
    for epoch in range(3):
        loss.begin_epoch(epoch)
        factors.append((loss.ce_factor, loss.kd_factor))
    assert factors == [(0.0, 1.0), (0.0, 1.0), (1.0, 0.0)]


def test_a_warm_up_within_a_sum_is_of_its_own_loss_only() -> None:
    loss, batch = build_loss("kl+dkd", **{"dkd.warmup_epochs": 4}), batch_of()
    loss.begin_epoch(0)
    expected = 0.9 * build_loss("kl")(batch) + 0.25 * build_loss("dkd")(batch)
    torch.testing.assert_close(loss(batch), expected)


def test_each_loss_gets_its_own_maps() -> None:
    loss = build_loss("at+nst", **{"at.maps": "1", "at.reads": "maps", "nst.maps": "0,2"})
    asked = loss.teacher_outputs(student_maps=3, offered=[f"maps.{number}" for number in range(3)])
    assert asked == {"teacher_maps": ("maps.1", "maps.0", "maps.2")}
    assert loss.student_map_names(3) == ("maps.1", "maps.0", "maps.2")
    batch, order = batch_of(), (1, 0, 2)
    given = replace(
        batch,
        student_maps=tuple(batch.student_maps[number] for number in order),
        teacher_maps=tuple(batch.teacher_maps[number] for number in order),
    )
    expected = 1000 * build_loss("at", reads="maps")(
        replace(batch, student_maps=batch.student_maps[1:2], teacher_maps=batch.teacher_maps[1:2])
    ) + 50 * build_loss("nst")(
        replace(batch, student_maps=batch.student_maps[::2], teacher_maps=batch.teacher_maps[::2])
    )
    torch.testing.assert_close(loss(given), expected)


def test_a_sum_that_was_not_told_whose_maps_are_whose_is_refused() -> None:
    with pytest.raises(InputError, match=r"fitnets\+vid must know whose maps are whose: call loss.teacher_outputs"):
        build_loss("fitnets+vid").start(FACTS)


def test_a_loss_that_learns_from_the_teacher_first_does_so_in_a_sum() -> None:
    loss = build_loss("kl+ft", **{"ft.maps": "2", "ft.init_epochs": 1})
    loss.teacher_outputs(student_maps=3, offered=["logits", "maps.2"])
    batch = batch_of()
    loss.start(replace(FACTS, student_maps=SHAPES[2:], teacher_maps=SHAPES[2:]))
    answers = DistillBatch(student_logits=torch.zeros(6, 5), teacher_maps=batch.teacher_maps[2:])
    before = {name: value.clone() for name, value in loss.state_dict().items() if "paraphraser" in name}
    loss.prepare(lambda _epoch: [answers])
    assert before
    assert any(not torch.equal(value, loss.state_dict()[name]) for name, value in before.items())


def test_an_offset_that_others_train_too_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build_loss("fitnets+ckd", **{"ckd.offset": "calibrate"})
        assert not caplog.records
        build_loss("kl+ckd", **{"ckd.offset": "calibrate"})
    assert "ckd sets the offset of the logits by its own target, which kl trained" in caplog.text
