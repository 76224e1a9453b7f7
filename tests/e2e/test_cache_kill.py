"""A writer killed at any moment loses no acknowledged answer and computes none twice.

A real process commits batches, folds now and then, and kills itself with SIGKILL just before its k-th system-level step
(a write, an fsync, a rename, an SQL statement). The next one goes on in the same folder.
"""

import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import zarr

from cache.reader import CacheReader
from cache.writer import CacheWriter
from shared.descriptions import DatasetDescription, TeacherDescription

BATCH = 16
ROWS = 20_000
SHOWN_TWICE = 7
"""Every row divisible by this shows the pixels of the row before it."""

COMMITTER = r"""
import os, signal, sys
from hashlib import sha256
from pathlib import Path
import numpy as np

from cache.writer import CacheWriter
from shared.descriptions import DatasetDescription, TeacherDescription

path, steps, start = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
left = steps

def step(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(work):
    def wrapped(*arguments, **named):
        step()
        return work(*arguments, **named)
    return wrapped

os.fsync, os.write = counted(os.fsync), counted(os.write)
Path.replace = counted(Path.replace)

def picture(row):
    return row - 1 if row % 7 == 0 and row else row

writer = CacheWriter.open(path)
writer._ledger.database.set_trace_callback(step)
cache = writer.open_cache(
    TeacherDescription(id="fake-000000000000", arch="fake", weights="", preprocessing={}, precision="float32",
                       classes=4, features=2),
    DatasetDescription(name="toy/train", rows=20000,
                       classes=("a", "b", "c", "d"), fingerprint="f", view_policy="crop1"),
)
print("open", flush=True)
missing = np.flatnonzero(~cache.present()).tolist()
for number in range(start, start + 1000):
    rows, missing = missing[:16], missing[16:]
    keys = [sha256(str(picture(row)).encode()).digest() for row in rows]
    fresh = {}
    known = []
    for row, key in zip(rows, keys):
        place = writer.find("fake-000000000000", key)
        if place is not None:
            known.append((row, 0, row % 4, place))
        else:
            fresh.setdefault(key, []).append(row)
    if known:
        writer.alias(cache, run="default", items=known)
        print("ack", *(row for row, *_ in known), flush=True)
    if fresh:
        reservation = writer.reserve(run="default", cache=cache, calls=len(fresh))
        firsts = [group[0] for group in fresh.values()]
        said = np.array([[picture(row), number, 1, 2] for row in firsts], dtype=np.float32)
        writer.commit(
            cache, run="default", reservation=reservation,
            keys=np.frombuffer(b"".join(fresh), dtype=np.uint8).reshape(-1, 32),
            rows=firsts, views=[0] * len(firsts), labels=[row % 4 for row in firsts],
            outputs={"logits": said, "features": said[:, :2]},
            aliases=[(row, 0, row % 4, at) for at, group in enumerate(fresh.values()) for row in group[1:]],
        )
        print("ack", *(row for group in fresh.values() for row in group), flush=True)
    if number % 3 == 0:
        writer.fold()
"""


def picture(row: int) -> int:
    return row - 1 if row % SHOWN_TWICE == 0 and row else row


def commit_until_killed(path: Path, *, steps: int, start: int) -> set[int]:
    """Rows that were acknowledged before the process died."""
    command = [sys.executable, "-c", COMMITTER, str(path), str(steps), str(start)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {int(row) for kind, *rows in lines if kind == "ack" for row in rows}


def check_store(path: Path, *, acknowledged: set[int], kills: int) -> None:
    teacher = TeacherDescription(
        id="fake-000000000000", arch="fake", weights="", preprocessing={}, precision="float32", classes=4, features=2
    )
    dataset = DatasetDescription(
        name="toy/train", rows=ROWS, classes=("a", "b", "c", "d"), fingerprint="f", view_policy="crop1"
    )
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(teacher, dataset)
        group = zarr.open_group(str(cache.folder), mode="r")
        assert {array.shape[0] for _, array in group.arrays()} == {cache.folded}
        assert not list(path.rglob("*.partial"))
        present = set(np.flatnonzero(cache.present()).tolist())
        assert acknowledged <= present
        assert cache.num_slots == len(present), "a row was kept twice"
        counts = writer.ledger_counts()
        distinct = {picture(row) for row in present}
        assert counts["teacher_calls"] == counts["runs"]["default"]["charged"] == len(distinct)
        assert 0 <= counts["attempts"] - counts["teacher_calls"] <= kills * BATCH
    group = zarr.open_group(str(cache.folder), mode="r")
    arrays = {name: array[:] for name, array in group.members()}
    assert {len(array) for array in arrays.values()} == {len(present)}
    rows = arrays["rows"].tolist()
    assert arrays["logits"][:, 0].tolist() == [float(np.float16(picture(row))) for row in rows]
    assert [bytes(key) for key in arrays["keys"]] == [sha256(str(picture(row)).encode()).digest() for row in rows]
    with CacheReader.open(path) as reader:
        answers = reader.gather(sorted(present))["logits"]
    said = {}
    for row, answer in zip(sorted(present), answers, strict=True):
        assert said.setdefault(picture(row), answer.tobytes()) == answer.tobytes()


def kill_again_and_again(path: Path, *, kills: int, seed: int) -> None:
    random_steps = random.Random(seed)
    acknowledged: set[int] = set()
    for kill in range(1, kills + 1):
        acknowledged |= commit_until_killed(path, steps=random_steps.randrange(1, 700), start=kill * 1000)
        if kill % 4 == 0:
            check_store(path, acknowledged=acknowledged, kills=kill)
    assert acknowledged


def test_no_kill_loses_an_acknowledged_answer_or_repeats_a_call(tmp_path: Path) -> None:
    kill_again_and_again(tmp_path / "store", kills=8, seed=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10))
def test_no_kill_of_many_loses_an_acknowledged_answer_or_repeats_a_call(tmp_path: Path, seed: int) -> None:
    kill_again_and_again(tmp_path / "store", kills=40, seed=100 + seed)
