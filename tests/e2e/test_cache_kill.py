"""A writer killed at any moment loses no acknowledged answer and computes none twice.

Real processes kill themselves with SIGKILL at the n-th write, fsync or rename below the cache's folder, SQLite's
included; every other one in the middle of a write. The points are drawn over whole lives: opening, single commits,
large ones, folds of tails and of whole blocks, closing.
"""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk_faults import Fault, FaultyProcesses
from kept_rows import COMMIT_ROWS, Told, check_store

from cache.reader import CacheReader
from cache.verify import find_damage
from cache.writer import CacheWriter

FILL = "from teacher_server.cli import main; main()"
FOLD = "from cache.cli import main; main()"
BATCHES_IN_FLIGHT = 3
"""Of a fill."""
FILL_BATCH = 4


def kill_point(chance: random.Random, *, calls: int) -> dict[str, Any]:
    return {"at": chance.randint(1, calls), "action": chance.choice(["kill", "torn"])}


def count_calls(log: Path) -> int:
    return len(log.read_text().splitlines())


def live(faulty: FaultyProcesses, told: Told, *arguments: object, fault: Fault) -> None:
    outcome = faulty.run(COMMIT_ROWS, *arguments, fault=fault)
    assert outcome.code in (0, -9), outcome.err
    told.hear(outcome)


def kill_again_and_again(path: Path, faulty: FaultyProcesses, *, lives: int, seed: int, every: int) -> None:
    log = path.with_suffix(".log")
    chance = random.Random(seed)
    told = Told()
    live(faulty, told, path, 1, seed, fault=Fault(root=path, log=log))
    calls = count_calls(log)
    for life in range(2, lives + 2):
        fault = Fault(root=path, **kill_point(chance, calls=calls))
        live(faulty, told, path, life, seed * 1000 + life, fault=fault)
        if life % every == 0:
            check_store(path, told=told)
    check_store(path, told=told)
    assert told.ends > lives // 2


def test_no_kill_loses_an_acknowledged_answer_or_repeats_a_call(faulty: FaultyProcesses, memory_path: Path) -> None:
    kill_again_and_again(memory_path / "store", faulty, lives=10, seed=1, every=5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(12))
def test_no_kill_of_many_loses_an_acknowledged_answer_or_repeats_a_call(
    faulty: FaultyProcesses, memory_path: Path, seed: int
) -> None:
    kill_again_and_again(memory_path / "store", faulty, lives=60, seed=100 + seed, every=6)


def fill_until_done(pictures: Path, path: Path, faulty: FaultyProcesses, *, seed: int) -> int:
    """Kill a fill until one gets through; returns how often it was killed."""
    chance = random.Random(seed)
    options = ["--teacher", "fake:10", "--dataset", f"folder:{pictures}", "--batch", FILL_BATCH]
    whole, log = path.with_name("whole"), path.with_name("log")
    assert faulty.run(FILL, "fill", "--cache", whole, *options, fault=Fault(root=whole, log=log)).code == 0
    calls = count_calls(log)
    kills = 0
    while True:
        fault = Fault(root=path, **kill_point(chance, calls=calls))
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
    faulty: FaultyProcesses, pictures: Path, memory_path: Path, seed: int
) -> None:
    assert fill_until_done(pictures, memory_path / "store", faulty, seed=seed)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(100, 160))
def test_many_fills_that_are_killed_end_as_one_that_was_not(
    faulty: FaultyProcesses, pictures: Path, memory_path: Path, seed: int
) -> None:
    fill_until_done(pictures, memory_path / "store", faulty, seed=seed)


def kill_a_fold(path: Path, faulty: FaultyProcesses, *, points: int | None, seed: int) -> None:
    """Kill the fold of one cache at some of its points, or at all of them, each time from the same state."""
    before, log = path.with_name("before"), path.with_name("log")
    told = Told()
    # The first fold leaves a tail that the second continues.
    live(faulty, told, before, 1, seed, fault=Fault(root=before))
    live(faulty, told, before, 2, seed, "leave", fault=Fault(root=before))
    shutil.copytree(before, path)
    assert faulty.run(FOLD, "fold", path, fault=Fault(root=path, log=log)).code == 0
    calls = count_calls(log)
    chosen = range(1, calls + 1) if points is None else random.Random(seed).sample(range(1, calls + 1), points)
    for point in chosen:
        for action in ("kill", "torn") if points is None else ("torn",):
            shutil.rmtree(path)
            shutil.copytree(before, path)
            outcome = faulty.run(FOLD, "fold", path, fault=Fault(root=path, at=point, action=action))
            assert outcome.code == -9
            check_store(path, told=told)


def test_a_fold_that_is_killed_moves_nothing_or_all(faulty: FaultyProcesses, memory_path: Path) -> None:
    kill_a_fold(memory_path / "store", faulty, points=6, seed=5)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_fold_that_is_killed_at_every_point_moves_nothing_or_all(faulty: FaultyProcesses, memory_path: Path) -> None:
    kill_a_fold(memory_path / "store", faulty, points=None, seed=6)
