"""Disks that are full, fail, cannot lock, or flip a bit: always an error that says what to do, and nothing lost."""

import errno
import random
import shutil
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import httpx
import pytest
from disk_faults import Fault, FaultyProcesses, Outcome
from kept_rows import COMMIT_ROWS, Told, check_store

from cache.verify import find_damage
from cache.writer import CacheWriter

CALLS = "write,fsync,rename,truncate,mkdir,unlink"
FILL = "from teacher_server.cli import main; main()"
LOGIT_CACHE = "from cache.cli import main; main()"


def read_calls(log: Path) -> list[tuple[str, Path]]:
    """Kind and path (the old one of a rename) of the calls in a log."""
    lines = [line.split("\t") for line in log.read_text().splitlines()]
    return [(kind, Path(path)) for kind, path, _ in lines]


def first_of_each_kind(calls: list[tuple[str, Path]]) -> list[int]:
    """Numbers of the calls that are the first to do something to a file of that name.

    But for its removal: where SQLite cannot remove what it has no more use for, it leaves it.
    """
    first: dict[tuple[str, str], int] = {}
    for number, (kind, path) in enumerate(calls, start=1):
        if kind != "unlink" or path.name.endswith(".json"):
            first.setdefault((kind, path.name), number)
    return list(first.values())


class Life:
    """A second life of commit_rows.py, always from the same state, on a disk that fails."""

    def __init__(self, faulty: FaultyProcesses, folder: Path) -> None:
        self.faulty, self.path, self.log = faulty, folder / "store", folder / "log"
        self._before = folder / "before"
        self._told = Told()
        self._told.hear(faulty.run(COMMIT_ROWS, self._before, 1, 1, "small", fault=Fault(root=self._before)))
        assert self.live(Fault(root=self.path, calls=CALLS, log=self.log)).code == 0
        self.calls = read_calls(self.log)
        self.points = first_of_each_kind(self.calls)

    def live(self, fault: Fault) -> Outcome:
        shutil.rmtree(self.path, ignore_errors=True)
        shutil.copytree(self._before, self.path)
        self.told = deepcopy(self._told)
        outcome = self.faulty.run(COMMIT_ROWS, self.path, 2, 5, "small", fault=fault)
        self.told.hear(outcome)
        return outcome

    def fail(self, point: int, *, code: int, sticky: bool) -> Outcome:
        """The life with an error at one call, or from it on; checked for what it kept."""
        fault = Fault(root=self.path, calls=CALLS, at=point, action=str(code), sticky=sticky)
        outcome = self.live(fault)
        check_store(self.path, told=self.told)
        return outcome


@pytest.fixture(scope="module")
def life(faulty: FaultyProcesses, tmp_path_factory: pytest.TempPathFactory) -> Life:
    return Life(faulty, tmp_path_factory.mktemp("life"))


def fails_well(outcome: Outcome, *, code: int) -> bool:
    """Whether a process ended by an error of ours that names what to do; what can wait is only logged."""
    if outcome.code == 0:
        return "not folded: " in outcome.err or "the write-ahead log stays: " in outcome.err
    error = outcome.err.strip().splitlines()[-1]
    if error.startswith("shared.errors.DiskFullError: "):
        return code == errno.ENOSPC and "nothing was lost: make room and try again" in error
    return error.startswith("shared.errors.StorageError: ") and "check the disk and its permissions" in error


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("sticky", [False, True])
def test_a_failing_call_is_an_error_and_nothing_is_lost(life: Life, code: int, sticky: bool) -> None:
    for point in random.Random(2 * code + sticky).sample(life.points, 6):
        outcome = life.fail(point, code=code, sticky=sticky)
        assert fails_well(outcome, code=code), (life.calls[point - 1], outcome)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("sticky", [False, True])
def test_every_kind_of_failing_call_is_an_error_and_nothing_is_lost(life: Life, code: int, sticky: bool) -> None:
    others = {number for number, (kind, _) in enumerate(life.calls, start=1) if kind != "unlink"} - set(life.points)
    for point in [*life.points, *random.Random(code).sample(sorted(others), 40)]:
        outcome = life.fail(point, code=code, sticky=sticky)
        assert fails_well(outcome, code=code), (life.calls[point - 1], outcome)


@pytest.mark.parametrize(
    ("name", "occurrence"),
    [
        ("ledger.sqlite3-wal", 0),
        ("ledger.sqlite3-wal", 9),
        ("ledger.sqlite3", 0),
        ("c.0.0.partial", 0),
        ("logits", 0),
        ("zarr.json.partial", 2),
    ],
)
def test_what_failed_to_sync_is_written_anew_before_it_is_synced_again(life: Life, name: str, occurrence: int) -> None:
    calls = enumerate(life.calls, start=1)
    point = [number for number, (kind, path) in calls if (kind, path.name) == ("fsync", name)][occurrence]
    life.log.unlink()
    life.live(Fault(root=life.path, calls=CALLS, at=point, action=str(errno.EIO), log=life.log))
    check_store(life.path, told=life.told)
    lines = [line.split("\t") for line in life.log.read_text().splitlines()]
    kind, failed, _ = lines[point - 1]
    assert (kind, Path(failed).name) == ("fsync", name)
    # A file is written or removed; a folder gets its files once more.
    later = [kind for kind, path, new in lines[point:] if path == failed or Path(new).parent == Path(failed)]
    assert not later or later[0] != "fsync", later


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["fold"], {"path": "data.zarr"}),
        (["fold"], {"path": "ledger.sqlite3-wal"}),
        (["fold"], {"calls": "fsync"}),
        (["fold"], {"calls": "write", "path": "writer.lock"}),
    ],
)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_command_on_a_failing_disk_says_what_to_do(
    faulty: FaultyProcesses, memory_path: Path, arguments: list[str], fault: dict[str, str], code: int
) -> None:
    path, told = memory_path / "store", Told()
    told.hear(faulty.run(COMMIT_ROWS, path, 1, 1, "leave", "small", fault=Fault(root=path)))
    fails = Fault(root=path, at=1, action=str(code), sticky=True, **fault)
    outcome = faulty.run(LOGIT_CACHE, *arguments, path, fault=fails)
    assert (outcome.code, outcome.out) == (1, "")
    assert "Traceback" not in outcome.err
    error = outcome.err.splitlines()[-1]
    assert error.startswith("error: "), outcome.err
    full = "no room to write" in error and "nothing was lost: make room and try again" in error
    assert full if code == errno.ENOSPC else "check the disk and its permissions" in error, outcome.err
    check_store(path, told=told)


def test_a_fill_on_a_full_disk_ends_with_1_and_goes_on_when_there_is_room(
    faulty: FaultyProcesses, pictures: Path, memory_path: Path
) -> None:
    path = memory_path / "store"
    command = ["fill", "--teacher", "fake:10", "--dataset", f"folder:{pictures}", "--cache", path, "--batch", 4]
    full = Fault(root=path, calls="write", path="-wal", at=60, action=str(errno.ENOSPC), sticky=True)
    outcome = faulty.run(FILL, *command, fault=full)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("error: no room to write"), outcome.err
    assert "Traceback" not in outcome.err
    with CacheWriter.open(path) as writer:
        first = writer.ledger_counts()
    assert 0 < first["teacher_calls"] < 40
    assert faulty.run(FILL, *command, fault=Fault(root=path)).code == 0
    with CacheWriter.open(path) as writer:
        counts = writer.ledger_counts()
    assert counts["teacher_calls"] == counts["runs"]["default"]["charged"] == 40
    assert counts["attempts"] - 40 == first["attempts"] - first["teacher_calls"] <= 3 * 4


@pytest.mark.parametrize(("code", "status"), [(errno.ENOSPC, 507), (errno.EIO, 500)])
def test_a_server_on_a_failing_disk_keeps_what_it_said_and_is_not_ready(  # noqa: PLR0917
    faulty: FaultyProcesses,
    launch_server: Callable,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    status: int,
) -> None:
    path, switch = tmp_path / "store", tmp_path / "failing"
    fails = Fault(root=path, at=1, action=str(code), sticky=True, switch=switch)
    with monkeypatch.context() as patched:
        for name, value in {**fails.environment(), "LD_PRELOAD": str(faulty.shim)}.items():
            patched.setenv(name, value)
        server = launch_server(path, "--dataset", f"folder:{pictures}")
    before = server.ask([0, 1, 2])
    assert before.status_code == 200
    switch.touch()
    refused = server.ask([2, 3, 4])
    assert refused.status_code == status, refused.text
    assert refused.json()["code"] == ("disk_full" if status == 507 else "storage_failed")
    if status == 507:
        ready = httpx.get(f"{server.url}/readyz", timeout=30)
        assert (ready.status_code, "disk is full" in ready.text) == (503, True)
        assert server.ask([0, 1, 2]).json()["logits"] == before.json()["logits"]
        switch.unlink()
        # Nobody asks a server that is not ready: it must find out by itself.
        deadline_s = time.monotonic() + 30
        while httpx.get(f"{server.url}/readyz", timeout=30).status_code != 200:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        assert server.ask([2, 3, 4]).status_code == 200
        assert server.stop() == 0
    else:
        assert server.process.wait(timeout=30) == 1
        log = server.log.read_text()
        assert "answers can no longer be kept" in log
        assert log.splitlines()[-1].startswith("error: ")
        assert "Traceback" not in log
        switch.unlink()
    assert not list(find_damage(path))
    again = launch_server(path, "--dataset", f"folder:{pictures}")
    answers = again.ask([0, 1, 2]).json()
    assert (answers["logits"], answers["cached"]) == (before.json()["logits"], [True] * 3)
    counts = again.ledger()
    assert counts["teacher_calls"] == (5 if status == 507 else 3)
    assert again.stop() == 0


@pytest.mark.parametrize(
    ("lock", "action"), [("flock", str(errno.ENOLCK)), ("flock", "pretend"), ("fcntl", str(errno.ENOLCK))]
)
def test_a_file_system_without_working_locks_is_refused(
    faulty: FaultyProcesses, tmp_path: Path, lock: str, action: str
) -> None:
    path = tmp_path / "store"
    fault = Fault(root=path, calls=lock, at=1, action=action, sticky=True)
    outcome = faulty.run(COMMIT_ROWS, path, 1, 1, fault=fault)
    assert outcome.code == 1
    error = outcome.err.strip().splitlines()[-1]
    assert error.startswith("shared.errors.InputError: ")
    assert "file system" in error
    assert "locks" in error
    assert "use a local disk" in error
    assert not outcome.out
