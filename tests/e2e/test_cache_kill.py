"""A writer killed at any moment loses no acknowledged answer and computes none twice.

Real processes kill themselves with SIGKILL at the n-th write, fsync or rename below the cache's folder, SQLite's
included; every other one in the middle of a write. The points are drawn over whole lives: opening, single commits,
large ones, folds of tails and of whole blocks, closing.
"""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cache.reader import CacheReader
from cache.verify import find_damage
from cache.writer import CacheWriter
from shared.descriptions import DatasetDescription, TeacherDescription

COMMIT_ROWS = (Path(__file__).parent.parent / "faults" / "commit_rows.py").read_text()
FILL = "from teacher_server.cli import main; main()"
FOLD = "from cache.cli import main; main()"
ROWS = 400_000
LARGEST = 800
"""Rows of the largest batch in commit_rows.py."""
SHOWN_TWICE = 7
"""Every row divisible by this shows the pixels of the row before it."""
BATCHES_IN_FLIGHT = 3
"""Of a fill."""
FILL_BATCH = 4


def picture(row: int) -> int:
    return row - 1 if row % SHOWN_TWICE == 0 and row else row


@dataclass
class Told:
    """What the processes said before they died."""

    acknowledged: set[int] = field(default_factory=set)
    numbers: dict[int, int] = field(default_factory=dict)
    """Row -> the life that paid for it."""
    kills: int = 0

    def hear(self, outcome: Any) -> None:
        assert outcome.code in (0, -9), outcome.err
        self.kills += outcome.code == -9
        for line in outcome.out.splitlines():
            kind, *words = line.split()
            if kind == "ack":
                rows = [int(word) for word in words[1:]]
                self.acknowledged |= set(rows)
                if words[0] != "known":
                    self.numbers |= dict.fromkeys(rows, int(words[0]))


def kill_point(chance: random.Random, *, calls: int) -> dict[str, Any]:
    return {"at": chance.randint(1, calls), "action": chance.choice(["kill", "torn"])}


def count_calls(log: Path) -> int:
    return len(log.read_text().splitlines())


def check_store(path: Path, *, told: Told) -> None:
    teacher = TeacherDescription(
        id="fake-000000000000", arch="fake", weights="", preprocessing={}, precision="float32", classes=4, features=2
    )
    dataset = DatasetDescription(
        name="toy/train", rows=ROWS, classes=("a", "b", "c", "d"), fingerprint="f", view_policy="crop1"
    )
    check_torn(path)
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(teacher, dataset)
        group = zarr.open_group(str(cache.folder), mode="r")
        assert {array.shape[0] for _, array in group.arrays()} == {cache.folded}
        assert not list(path.rglob("*.partial"))
        present = set(np.flatnonzero(cache.present()).tolist())
        assert told.acknowledged <= present
        assert cache.num_slots == len(present), "a row was kept twice"
        counts = writer.ledger_counts()
        distinct = {picture(row) for row in present}
        assert counts["teacher_calls"] == counts["runs"]["default"]["charged"] == len(distinct)
        assert 0 <= counts["attempts"] - counts["teacher_calls"] <= told.kills * LARGEST
    assert not list(find_damage(path))
    group = zarr.open_group(str(cache.folder), mode="r")
    arrays: dict[str, Any] = {name: array[:] for name, array in group.members()}
    assert {len(array) for array in arrays.values()} == {len(present)}
    rows = arrays["rows"].tolist()
    assert arrays["logits"][:, 0].tolist() == [picture(row) % 2048 for row in rows]
    assert [bytes(key) for key in arrays["keys"]] == [sha256(str(picture(row)).encode()).digest() for row in rows]
    kept = dict(zip(rows, arrays["logits"][:, 1].tolist(), strict=True))
    assert {row: kept[row] for row in told.numbers} == told.numbers, "an acknowledged answer was computed again"
    with CacheReader.open(path) as reader:
        answers = reader.gather(sorted(present))["logits"]
    said: dict[int, bytes] = {}
    for row, answer in zip(sorted(present), answers, strict=True):
        assert said.setdefault(picture(row), answer.tobytes()) == answer.tobytes()


def check_torn(path: Path) -> None:
    """Before anybody recovers: what a reader without the ledger sees is whole, every slot its own."""
    if not list(path.glob("data.zarr/*/*/*/zarr.json")):
        return
    with CacheReader.open(path) as reader:
        slots = np.arange(reader.num_slots)
        rows, _ = reader.rows_and_views(slots)
        assert len(set(rows.tolist())) == len(rows)
        logits = reader.gather(rows)["logits"] if len(rows) else np.zeros((0, 4))
        assert logits[:, 0].tolist() == [picture(row) % 2048 for row in rows.tolist()]
        keys = [sha256(str(picture(row)).encode()).digest() for row in rows.tolist()]
        assert [bytes(key) for key in reader.slot_keys(slots)] == keys


def kill_again_and_again(path: Path, faulty: Any, make_fault: Callable, *, lives: int, seed: int, every: int) -> None:
    log = path.with_suffix(".log")
    chance = random.Random(seed)
    told = Told()
    told.hear(faulty.run(COMMIT_ROWS, path, 1, seed, fault=make_fault(root=path, log=log)))
    calls = count_calls(log)
    for life in range(2, lives + 2):
        fault = make_fault(root=path, **kill_point(chance, calls=calls))
        told.hear(faulty.run(COMMIT_ROWS, path, life, seed * 1000 + life, fault=fault))
        if life % every == 0:
            check_store(path, told=told)
    check_store(path, told=told)
    assert told.kills > lives // 2


def test_no_kill_loses_an_acknowledged_answer_or_repeats_a_call(
    faulty: Any, make_fault: Callable, tmp_path: Path
) -> None:
    kill_again_and_again(tmp_path / "store", faulty, make_fault, lives=12, seed=1, every=4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(12))
def test_no_kill_of_many_loses_an_acknowledged_answer_or_repeats_a_call(
    faulty: Any, make_fault: Callable, tmp_path: Path, seed: int
) -> None:
    kill_again_and_again(tmp_path / "store", faulty, make_fault, lives=60, seed=100 + seed, every=6)


def fill_until_done(pictures: Path, path: Path, faulty: Any, make_fault: Callable, *, seed: int) -> int:
    """Kill a fill until one gets through; returns how often it was killed."""
    chance = random.Random(seed)
    options = ["--teacher", "fake:10", "--dataset", f"folder:{pictures}", "--batch", FILL_BATCH]
    whole, log = path.with_name("whole"), path.with_name("log")
    assert faulty.run(FILL, "fill", "--cache", whole, *options, fault=make_fault(root=whole, log=log)).code == 0
    calls = count_calls(log)
    kills = 0
    while True:
        fault = make_fault(root=path, **kill_point(chance, calls=calls))
        outcome = faulty.run(FILL, "fill", "--cache", path, *options, fault=fault)
        assert outcome.code in (0, -9), outcome.err
        if outcome.code == 0:
            break
        kills += 1
    images = len(list(pictures.rglob("*.png")))
    with CacheWriter.open(path) as writer:
        counts = writer.ledger_counts()
    assert counts["teacher_calls"] == counts["runs"]["default"]["charged"] == images
    assert counts["attempts"] - images <= kills * BATCHES_IN_FLIGHT * FILL_BATCH
    assert not list(find_damage(path))
    rows = np.arange(images)
    with CacheReader.open(path) as killed, CacheReader.open(whole) as expected:
        assert killed.num_slots == images
        for name, values in expected.gather(rows).items():
            assert killed.gather(rows)[name].tobytes() == values.tobytes()
        assert killed.keys(rows).tobytes() == expected.keys(rows).tobytes()
    return kills


@pytest.mark.parametrize("seed", range(2))
def test_a_fill_that_is_killed_again_and_again_ends_as_one_that_was_not(
    faulty: Any, make_fault: Callable, pictures: Path, tmp_path: Path, seed: int
) -> None:
    assert fill_until_done(pictures, tmp_path / "store", faulty, make_fault, seed=seed)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 160))
def test_many_fills_that_are_killed_end_as_one_that_was_not(
    faulty: Any, make_fault: Callable, pictures: Path, tmp_path: Path, seed: int
) -> None:
    fill_until_done(pictures, tmp_path / "store", faulty, make_fault, seed=seed)


def kill_a_fold(path: Path, faulty: Any, make_fault: Callable, *, points: int | None, seed: int) -> None:
    """Kill the fold of one cache at some of its points, or at all of them, each time from the same state."""
    before, log = path.with_name("before"), path.with_name("log")
    told = Told()
    # The first fold leaves a tail that the second continues.
    told.hear(faulty.run(COMMIT_ROWS, before, 1, seed, fault=make_fault(root=before)))
    told.hear(faulty.run(COMMIT_ROWS, before, 2, seed, "leave", fault=make_fault(root=before)))
    shutil.copytree(before, path)
    assert faulty.run(FOLD, "fold", path, fault=make_fault(root=path, log=log)).code == 0
    calls = count_calls(log)
    chosen = range(1, calls + 1) if points is None else random.Random(seed).sample(range(1, calls + 1), points)
    for point in chosen:
        for action in ("kill", "torn") if points is None else ("torn",):
            shutil.rmtree(path)
            shutil.copytree(before, path)
            outcome = faulty.run(FOLD, "fold", path, fault=make_fault(root=path, at=point, action=action))
            assert outcome.code == -9
            check_store(path, told=told)


def test_a_fold_that_is_killed_moves_nothing_or_all(faulty: Any, make_fault: Callable, tmp_path: Path) -> None:
    kill_a_fold(tmp_path / "store", faulty, make_fault, points=8, seed=5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_fold_that_is_killed_at_every_point_moves_nothing_or_all(
    faulty: Any, make_fault: Callable, tmp_path: Path
) -> None:
    kill_a_fold(tmp_path / "store", faulty, make_fault, points=None, seed=6)
