"""The ledger is held to the rows that were asked about, and the time left to the work."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cache.writer import CacheWriter
from shared.datasets.spec import open_dataset
from shared.errors import MissingRowsError
from shared.fake_teacher import FakeTeacher
from student_trainer.sweep import progress
from student_trainer.sweep.asking import Asked, RunCounts, Spending
from student_trainer.sweep.audit import LedgerMismatchError, check_ledger, teacher_accuracy
from student_trainer.sweep.progress import Tally

TEACHER = FakeTeacher(classes=10)


def test_counts_that_follow_from_the_rows_are_accepted(answered: Path, spendings: tuple[Spending, ...]) -> None:
    check_ledger(COUNTED, cache=answered, spendings=spendings, own=True)


@pytest.mark.parametrize(
    ("run", "wrong", "sentence"),
    [
        ("small", {"charged": 3}, "run small consumed 4 answers and was charged 3"),
        ("small", {"teacher_calls": 5, "attempts": 5}, "needs at most 4 calls of 4, and its ledger has 5"),
        ("large", {"attempts": 3}, "its ledger has 4 in 3 attempts"),
        ("large", {"teacher_calls": 3}, "8 distinct answers took 7 teacher calls"),
    ],
)
def test_every_count_that_does_not_is_found(
    answered: Path, spendings: tuple[Spending, ...], run: str, wrong: dict[str, int], sentence: str
) -> None:
    runs = COUNTED.runs | {run: replace(COUNTED.runs[run], **wrong)}
    with pytest.raises(LedgerMismatchError, match=sentence):
        check_ledger(replace(COUNTED, runs=runs), cache=answered, spendings=spendings, own=True)


def test_a_call_outside_the_runs_is_found(answered: Path, spendings: tuple[Spending, ...]) -> None:
    with pytest.raises(LedgerMismatchError, match="the runs make 8 calls, in all 9"):
        check_ledger(replace(COUNTED, teacher_calls=9), cache=answered, spendings=spendings, own=True)


def test_a_row_without_an_answer_is_named(answered: Path, spendings: tuple[Spending, ...]) -> None:
    np.save(spendings[0].rows, np.array([0, 1, 2, 50]))
    with pytest.raises(MissingRowsError, match="50"):
        check_ledger(COUNTED, cache=answered, spendings=spendings, own=True)


def test_the_teachers_accuracy_comes_from_its_answers(answered: Path) -> None:
    digits = open_dataset("digits/train")
    rows_N = np.arange(8)
    logits_NC = TEACHER.answer(digits.images(rows_N))["logits"].astype(np.float16)
    right = (logits_NC.argmax(axis=1) == digits.labels[:8]).mean()
    assert teacher_accuracy(answered, teacher=TEACHER.description.id, test_set=digits, rows_N=rows_N) == right
    beyond = np.arange(9)
    assert teacher_accuracy(answered, teacher=TEACHER.description.id, test_set=digits, rows_N=beyond) is None


def test_what_was_asked_reads_back_as_itself() -> None:
    assert Asked.read(COUNTED.attributes()) == COUNTED


def test_the_time_left_is_that_of_the_work_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Iterator[float] = iter([100.0, 110.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    tally = Tally("trials", tasks=3, work=1000)
    tally.move("a", done=50)
    tally.finish("a", work=200)
    tally.move("b", done=50)
    # A quarter of the work took 10 s.
    assert tally.left_s == pytest.approx(30.0)
    assert (tally.finished, tally.running) == (1, "b")


COUNTED = Asked(
    teacher=TEACHER.description.id,
    attempts=9,
    teacher_calls=8,
    runs={
        "small": RunCounts(budget=4, attempts=5, teacher_calls=4, charged=4),
        "large": RunCounts(budget=8, attempts=4, teacher_calls=4, charged=8),
    },
)


@pytest.fixture
def spendings(tmp_path: Path) -> tuple[Spending, ...]:
    made = []
    for name, count in (("small", 4), ("large", 8)):
        path = tmp_path / f"{name}.npy"
        np.save(path, np.arange(count))
        made.append(Spending(name=name, budget=count, dataset="digits/train", rows=path, views=(0,)))
    return tuple(made)


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    """A cache with the answers to the first eight digits."""
    digits, rows = open_dataset("digits/train"), list(range(8))
    path = tmp_path / "cache"
    with CacheWriter.open(path) as writer:
        writer.adopt(
            writer.open_cache(TEACHER.description, digits.description, {"logits": "float16"}),
            keys=digits.keys[rows],
            rows=rows,
            views=[0] * len(rows),
            labels=digits.labels[rows],
            outputs={"logits": TEACHER.answer(digits.images(rows))["logits"]},
        )
    return path
