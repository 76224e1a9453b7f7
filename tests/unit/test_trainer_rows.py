"""Which rows a run trains on: drawn, listed or all; with answers, without, or refused."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.datasets.base import ArrayDataset, SplitFacts
from shared.errors import InputError, MissingRowsError, RowRangeError
from shared.identity import sample_rows
from student_trainer.config import TrainConfig
from student_trainer.rows import Present, select_rows, wanted_rows


def dataset_of(count: int = 50) -> ArrayDataset:
    pixels = np.zeros((count, 2, 2, 3), dtype=np.uint8)
    facts = SplitFacts(name="toy/train", classes=["a"], labels=[0] * count, view_policy="crop1")
    return ArrayDataset(facts, pixels=pixels)


def config(**changes: object) -> TrainConfig:
    settings = {"dataset": "toy", "student": "zoo:resnet8", "out": Path("run"), "cache": "CACHE", **changes}
    return TrainConfig(**settings)  # type: ignore[arg-type]


def answered(*rows: int) -> Present:
    def present(asked: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.isin(asked, rows)

    return present


def test_all_rows_are_used_unless_some_are_chosen() -> None:
    assert wanted_rows(config(), dataset_of()).tolist() == list(range(50))


def test_a_sample_is_the_one_that_fill_draws() -> None:
    rows = wanted_rows(config(sample=7, sample_seed=3), dataset_of())
    assert rows.tolist() == sample_rows(num_rows=50, count=7, seed=3).tolist()


@pytest.mark.parametrize("text", ["3\n1\n4\n", "3, 1, 4", "[3, 1, 4]", "3 1\n4"])
def test_rows_are_read_from_text(tmp_path: Path, text: str) -> None:
    file = tmp_path / "rows.txt"
    file.write_text(text)
    assert wanted_rows(config(rows=file), dataset_of()).tolist() == [3, 1, 4]


def test_rows_are_read_from_npy(tmp_path: Path) -> None:
    file = tmp_path / "rows.npy"
    np.save(file, np.array([3, 1], dtype=np.int32))
    assert wanted_rows(config(rows=file), dataset_of()).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("1 50", RowRangeError, "row 50 is out of range: toy/train has rows 0 to 49"),
        ("1 -1", RowRangeError, "row -1 is out of range"),
        ("1 2 1", InputError, "names row 1 twice"),
        ("one", InputError, "cannot read rows"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, text: str, error: type[Exception], message: str) -> None:
    file = tmp_path / "rows.txt"
    file.write_text(text)
    with pytest.raises(error, match=message):
        wanted_rows(config(rows=file), dataset_of())


def test_more_rows_than_there_are_cannot_be_drawn() -> None:
    with pytest.raises(InputError, match="--sample 51 is more than the 50 rows"):
        wanted_rows(config(sample=51), dataset_of())


def test_a_missing_row_is_named_with_the_command_that_fills_it() -> None:
    present = answered(*range(1, 50))
    with pytest.raises(
        MissingRowsError, match=r"1 training rows of toy/train.*: 0; fill.*teacher-server fill"
    ) as caught:
        select_rows(config(val=0.0), dataset_of(), present=present)
    assert caught.value.rows == [0]


def test_rows_without_answers_may_validate() -> None:
    held_out = select_rows(config(val=0.2), dataset_of(), present=None).val
    present = answered(*(row for row in range(50) if row not in held_out))
    assert select_rows(config(val=0.2), dataset_of(), present=present).answered.all()


def test_skip_trains_and_validates_on_answered_rows_only() -> None:
    selection = select_rows(config(missing="skip", val=0.25), dataset_of(), present=answered(1, 2, 3, 4))
    assert len(selection.val) == 1
    assert sorted([*selection.train.tolist(), *selection.val.tolist()]) == [1, 2, 3, 4]


def test_label_only_keeps_all_rows_and_knows_which_are_answered() -> None:
    selection = select_rows(config(missing="label-only", val=0.0), dataset_of(), present=answered(5, 6))
    assert len(selection.train) == 50
    assert selection.train[selection.answered].tolist() == [5, 6]


@pytest.mark.parametrize("missing", ["skip", "label-only"])
def test_no_answered_row_at_all_is_an_error(missing: str) -> None:
    with pytest.raises(MissingRowsError, match="none of the"):
        select_rows(config(missing=missing), dataset_of(), present=answered())


def test_a_selection_s_summary_tells_any_other_rows_apart() -> None:
    def summary(*, missing: str, present: Present) -> str:
        return select_rows(config(missing=missing, val=0.0), dataset_of(), present=present).summary()

    few = summary(missing="skip", present=answered(1, 2, 3))
    assert few.startswith("3 rows, 3 answered, ")
    assert few == summary(missing="skip", present=answered(1, 2, 3))
    others = [("skip", answered(1, 2, 4)), ("label-only", answered(1, 2, 3)), ("label-only", answered(1, 2, 4))]
    assert len({few, *(summary(missing=missing, present=present) for missing, present in others)}) == 4


@pytest.mark.parametrize("loss_uses_teacher", [True, False])
def test_a_validation_part_that_leaves_no_training_row_is_named(loss_uses_teacher: bool) -> None:
    present = answered(*range(50)) if loss_uses_teacher else None
    with pytest.raises(InputError, match=r"--val 0\.99 leaves none of the 50 rows of toy/train for training"):
        select_rows(config(val=0.99), dataset_of(), present=present)


@pytest.mark.parametrize(
    ("dataset", "named"),
    [("digits", "digits/train"), ("digits/train", "digits/train"), ("toys=folder:a/toys", "toys=folder:a/toys/train")],
)
def test_the_command_that_fills_a_row_pays_for_the_training_split_only(dataset: str, named: str) -> None:
    with pytest.raises(MissingRowsError, match=f"fill --dataset {named} --cache"):
        select_rows(config(val=0.0, dataset=dataset), dataset_of(), present=answered(1))
