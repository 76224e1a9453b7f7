"""A toy teacher's caches, and `logit-cache` as a process, killed at any step: for the tests of its commands."""

import os
import subprocess
import sys
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import zarr

from cache.info import describe_cache
from cache.verify import find_damage
from cache.writer import CacheHandle, CacheWriter, ModelCall
from shared.descriptions import DatasetDescription, TeacherDescription

TEACHER = TeacherDescription(
    id="toy-0123456789ab", arch="toy", weights="", preprocessing={}, precision="float32", classes=4, features=2
)
TRAIN = DatasetDescription(
    name="toy/train", rows=30_000, classes=("a", "b", "c", "d"), fingerprint="f", view_policy="crop1"
)
OTHER = DatasetDescription(
    name="toy/other", rows=30_000, classes=("a", "b", "c", "d"), fingerprint="g", view_policy="crop1"
)
BLOCK = 8192
BEGAN_S = 1_700_000_000

KILLED = r"""
import os, signal, sqlite3, sys
from pathlib import Path

left = int(sys.argv.pop(1))

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

connect = sqlite3.connect

def traced(*arguments, **named):
    database = connect(*arguments, **named)
    database.set_trace_callback(step)
    return database

from cache.cli import main

sqlite3.connect = traced
os.fsync, os.write, os.link = counted(os.fsync), counted(os.write), counted(os.link)
Path.replace, Path.rename, Path.unlink = counted(Path.replace), counted(Path.rename), counted(Path.unlink)
main()
"""
"""`logit-cache` that kills itself just before its k-th step: a write, an fsync, a rename, an SQL statement."""


def logit_cache(*arguments: object, kill_at: int | None = None) -> subprocess.CompletedProcess[str]:
    program = "from cache.cli import main; main()" if kill_at is None else KILLED
    before = [] if kill_at is None else [str(kill_at)]
    return subprocess.run(
        [sys.executable, "-c", program, *before, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=90,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def succeed(*arguments: object) -> str:
    done = logit_cache(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: object, code: int = 2) -> str:
    done = logit_cache(*arguments)
    assert done.returncode == code, (done.stdout, done.stderr)
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def key_of(picture: int) -> bytes:
    return sha256(f"picture {picture}".encode()).digest()


def keys_of(rows: Sequence[int]) -> np.ndarray:
    return np.frombuffer(b"".join(map(key_of, rows)), dtype=np.uint8).reshape(-1, 32)


def said(rows: Sequence[int], *, shift: float = 0.0) -> dict[str, np.ndarray]:
    """What the teacher answers: exact in float16, and another for every row."""
    rows_B = np.asarray(rows)
    logits = np.stack([rows_B % 2048, rows_B // 2048, rows_B % 3, rows_B % 5], axis=1).astype(np.float32) + shift
    return {"logits": logits, "features": logits[:, :2] / 2}


def ask(
    path: Path,
    rows: Sequence[int],
    *,
    run: str = "study",
    budget: int | None = None,
    dataset: DatasetDescription = TRAIN,
    shift: float = 0.0,
) -> None:
    """Commit answers, in batches of 1024, as a server does."""
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(TEACHER, dataset)
        writer.ensure_run(run, budget)
        for first in range(0, len(rows), 1024):
            batch = rows[first : first + 1024]
            commit(writer, cache, batch, run=run, shift=shift)


def commit(
    writer: CacheWriter,
    cache: CacheHandle,
    rows: Sequence[int],
    *,
    run: str,
    shift: float = 0.0,
    owner: str = "local",
) -> None:
    """Calls for the pixels that nobody asked about, a slot of their own for the others."""
    known = {row: place for row in rows if (place := writer.find(TEACHER.id, key_of(row), cache=cache)) is not None}
    if known:
        writer.alias(cache, run=run, owner=owner, items=[(row, 0, row % 4, place) for row, place in known.items()])
    fresh = [row for row in rows if row not in known]
    if fresh:
        reservation = writer.reserve(run=run, owner=owner, cache=cache, calls=len(fresh))
        writer.commit(
            cache,
            run=run,
            reservation=reservation,
            keys=keys_of(fresh),
            rows=fresh,
            views=[0] * len(fresh),
            labels=[row % 4 for row in fresh],
            outputs=said(fresh, shift=shift),
            call=model_call(len(fresh), began_s=BEGAN_S + fresh[0]),
        )


def model_call(images: int, *, began_s: float = BEGAN_S) -> ModelCall:
    """A batch that took a quarter of a second."""
    return ModelCall(began_s=began_s, duration_s=0.25, images=images, device="toy", versions={"toylib": "1.0"})


def group_of(path: Path, dataset: DatasetDescription = TRAIN) -> Path:
    return path / "data.zarr" / TEACHER.id / dataset.name


def check_answers(path: Path, rows: Sequence[int], dataset: DatasetDescription = TRAIN) -> None:
    """Exactly these rows are answered, each with its own answer, read with zarr alone."""
    assert list(find_damage(path)) == []
    group = zarr.open_group(str(group_of(path, dataset)), mode="r")
    arrays = {name: array[:] for name, array in group.members()}
    assert sorted(arrays["rows"].tolist()) == sorted(rows)
    np.testing.assert_array_equal(arrays["logits"].astype(np.float32), said(arrays["rows"])["logits"])
    np.testing.assert_array_equal(arrays["features"].astype(np.float32), said(arrays["rows"])["features"])
    assert arrays["labels"].tolist() == (arrays["rows"] % 4).tolist()
    np.testing.assert_array_equal(arrays["keys"], keys_of(arrays["rows"].tolist()))


def costs(path: Path, run: str = "study") -> tuple[int, int, int]:
    """Attempts, teacher calls and charged answers of a run."""
    counts = describe_cache(path)["budgets"][run]
    return counts["attempts"], counts["teacher_calls"], counts["charged"]


def flip(file: Path, at: int = 5) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1
    file.write_bytes(data)
