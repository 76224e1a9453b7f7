"""Batches, views, splits and learning rates: from the seed alone, complete, and never too small."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import InputError, UnknownNameError
from student_trainer.config import TrainConfig
from student_trainer.order import ORDER, SPLIT, TEACHER_VIEWS, derived_seed, drawn_views, epoch_batches, split_rows
from student_trainer.schedule import learning_rate


def config(**changes: object) -> TrainConfig:
    return TrainConfig(**{"dataset": "digits", "student": "zoo:resnet8", "out": Path("run"), **changes})  # type: ignore[arg-type]


@given(count=st.integers(2, 300), batch=st.integers(2, 70), least=st.integers(1, 5), epoch=st.integers(0, 3))
def test_every_position_is_in_exactly_one_batch_and_no_later_batch_is_too_small(
    count: int, batch: int, least: int, epoch: int
) -> None:
    batches = epoch_batches(count=count, batch=batch, least=least, seed=1, epoch=epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert all(len(part) >= min(least, batch) for part in batches[1:])
    assert all(len(part) == batch for part in batches[:-1])


def test_an_epoch_s_order_follows_from_seed_and_epoch_and_nothing_else() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return epoch_batches(count=50, batch=64, least=2, seed=seed, epoch=epoch)[0].tolist()

    assert first(1, 2) == first(1, 2)
    assert first(1, 2) != first(1, 3)
    assert first(1, 2) != first(2, 2)


def test_the_streams_of_one_seed_differ() -> None:
    assert derived_seed(0, purpose=SPLIT) != derived_seed(0, purpose=ORDER)


def test_a_last_image_alone_joins_the_batch_before() -> None:
    assert [len(part) for part in epoch_batches(count=65, batch=32, least=2, seed=0, epoch=0)] == [32, 33]
    assert [len(part) for part in epoch_batches(count=66, batch=32, least=2, seed=0, epoch=0)] == [32, 32, 2]


def test_views_are_drawn_from_the_list_and_all_of_it_is_used() -> None:
    views = drawn_views((0, 5, 9), count=500, seed=3, epoch=0, purpose=TEACHER_VIEWS)
    assert set(views.tolist()) == {0, 5, 9}
    assert drawn_views((7,), count=3, seed=3, epoch=0, purpose=TEACHER_VIEWS).tolist() == [7, 7, 7]


def test_held_out_rows_are_a_part_of_the_rows_and_of_no_batch() -> None:
    rows = np.arange(100, 200)
    train, val = split_rows(rows, part=0.2, seed=5)
    assert len(val) == 20
    assert sorted([*train.tolist(), *val.tolist()]) == rows.tolist()
    assert len(split_rows(rows, part=0.0, seed=5)[1]) == 0


def test_step_falls_at_epochs_and_at_parts_of_all_epochs() -> None:
    by_epoch = config(epochs=240, lr=1.0, milestones=(150, 180, 210))
    by_part = config(epochs=240, lr=1.0, milestones=(0.625, 0.75, 0.875))
    for epoch, expected in ((0, 1.0), (149.9, 1.0), (150, 0.1), (180, 0.01), (239, 0.001)):
        assert learning_rate(by_epoch, epoch=epoch) == pytest.approx(expected)
        assert learning_rate(by_part, epoch=epoch) == pytest.approx(expected)


def test_a_part_that_floats_cannot_write_falls_at_its_epoch() -> None:
    assert learning_rate(config(epochs=30, lr=1.0, milestones=(0.1,)), epoch=3) == pytest.approx(0.1)


def test_cosine_ends_at_zero_and_is_half_way_down_in_the_middle() -> None:
    cosine = config(epochs=10, lr=0.2, schedule="cosine")
    assert [learning_rate(cosine, epoch=epoch) for epoch in (0, 5, 10)] == pytest.approx([0.2, 0.1, 0.0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"epochs": 0}, InputError, "--epochs 0 is too small; use 1 or more"),
        ({"batch": 1}, InputError, "--batch 1 is too small"),
        ({"lr": 0}, InputError, "--lr 0 is out of range; use above 0"),
        ({"lr": float("nan")}, InputError, "--lr nan is out of range"),
        ({"momentum": 1.0}, InputError, "--momentum 1.0"),
        ({"momentum": 0.0, "nesterov": True}, InputError, "--nesterov True is out of range; use a momentum above 0"),
        ({"val": 1.0}, InputError, "--val 1.0 is out of range"),
        ({"kd_weight": -1.0}, InputError, "--kd-weight"),
        ({"milestones": (0.0,)}, InputError, "--milestones"),
        ({"sample": 0}, InputError, "--sample 0"),
        ({"schedule": "linear"}, UnknownNameError, "--schedule 'linear' is unknown; known: step, cosine"),
        ({"student_views": "matched"}, UnknownNameError, "known: same, fresh, clean"),
        ({"precision": "float64"}, UnknownNameError, "known: float32, bfloat16, float16"),
        ({"device": "tpu"}, UnknownNameError, "known: auto, cpu, cuda"),
        ({"missing": "fetch", "cache": "folder"}, InputError, "--missing fetch needs --cache http"),
        ({"cache": "folder", "teacher": "fake:10"}, InputError, "--cache and --teacher exclude each other"),
        ({"rows": Path("rows.npy"), "sample": 3}, InputError, "--rows and --sample exclude each other"),
    ],
)
def test_a_setting_out_of_range_is_named(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        config(**changes)


def test_what_does_not_decide_the_result_may_change_between_resumes() -> None:
    first = config(out=Path("a"), resume=False, command="x", tensorboard=True)
    second = config(out=Path("b"), resume=True, command="y", tensorboard=False)
    assert first.deciding_settings() == second.deciding_settings()
    assert first.deciding_settings() != config(lr=0.1).deciding_settings()
