"""The order in which answers reach the disk, read off a log of every write, fsync and rename below a cache's folder.

Nothing is renamed, counted, acknowledged or thrown away before the bytes that it stands for are synced.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from disk_faults import Fault, FaultyProcesses
from kept_rows import COMMIT_ROWS

COMMAND = "from cache.cli import main; main()"
FILL = "from teacher_server.cli import main; main()"
LOGGED = "write,fsync,rename,unlink,mkdir,truncate"


@dataclass
class Disk:
    """Replays a log, and says what a power loss could take away at each moment."""

    store: Path
    printed: Path
    """Folder of what the program prints."""
    known_files: set[Path] = field(default_factory=set)
    unsynced_files: set[Path] = field(default_factory=set)
    """Written since they were last synced."""
    unsynced_names: dict[Path, set[str]] = field(default_factory=dict)
    """Folder -> names that appeared or changed since the folder was last synced."""
    uncounted: set[Path] = field(default_factory=set)
    """Folders of arrays with chunks that no commit has counted since they were durable."""
    counted_next: set[Path] = field(default_factory=set)
    """Of these, the ones whose chunks were durable when the commit began that is being written now."""
    seen: Counter[str] = field(default_factory=Counter)

    @property
    def ledger(self) -> Path:
        return self.store / "ledger.sqlite3"

    @property
    def log(self) -> Path:
        return self.store / "ledger.sqlite3-wal"

    def replay(self, lines: list[str]) -> Iterator[str]:
        """Violations, with the number of the call."""
        for number, line in enumerate(lines, start=1):
            kind, name, new_name = line.split("\t")
            path = Path(name)
            if self.printed in path.parents:
                found = self.on_print()
            # What may be lost: it remembers keys of files, and computes them again.
            elif self.store / "index" not in (path, *path.parents):
                found = getattr(self, f"on_{kind}")(path, *([Path(new_name)] if new_name else []))
            else:
                continue
            yield from (f"call {number}, {line!r}: {violation}" for violation in found)

    def on_print(self) -> Iterator[str]:
        self.seen["acknowledged"] += 1
        if self.log in self.unsynced_files or self.log.name in self.unsynced_names.get(self.store, ()):
            yield "acknowledged before the commit was synced"

    def on_write(self, path: Path) -> Iterator[str]:
        begun = path in self.unsynced_files
        self.unsynced_files.add(path)
        if path not in self.known_files:
            self.known_files.add(path)
            self.unsynced_names.setdefault(path.parent, set()).add(path.name)
        if path == self.log and not begun:
            self.counted_next = {folder for folder in self.uncounted if not self.can_lose_chunks(folder)}
        elif path == self.ledger and self.log in self.unsynced_files:
            yield "the ledger is written before its log is synced"

    def on_fsync(self, path: Path) -> Iterator[str]:
        if path == self.log and path in self.unsynced_files:
            self.seen["commits"] += 1
            self.uncounted -= self.counted_next
        self.unsynced_files.discard(path)
        self.unsynced_names.pop(path, None)
        yield from ()

    def on_rename(self, old: Path, new: Path) -> Iterator[str]:
        if old in self.unsynced_files:
            yield "renamed before it was synced"
        self.unsynced_files.discard(old)
        if new.name.startswith("c."):
            self.seen["chunks"] += 1
            self.uncounted.add(new.parent)
        elif new.name == "zarr.json":
            self.seen["documents"] += 1
            if new.parent in self.uncounted:
                yield "a document counts chunks before a commit does, or before they are durable"
            for folder in new.parents:
                if folder.name in self.unsynced_names.get(folder.parent, ()):
                    yield f"{folder} itself can be lost"
        self.unsynced_names.setdefault(new.parent, set()).add(new.name)

    def can_lose_chunks(self, folder: Path) -> bool:
        return any(name.startswith(("c.", "crc32c")) for name in self.unsynced_names.get(folder, ()))

    def on_mkdir(self, path: Path) -> Iterator[str]:
        self.unsynced_names.setdefault(path.parent, set()).add(path.name)
        yield from ()

    def on_unlink(self, path: Path) -> Iterator[str]:
        self.known_files.discard(path)
        if path == self.log and self.ledger in self.unsynced_files:
            yield "the log is thrown away before the ledger is synced"
        yield from ()

    on_truncate = on_unlink


@pytest.fixture
def logged(faulty: FaultyProcesses, tmp_path: Path) -> Callable[..., Disk]:
    """Runs a program on the store, and returns its replayed calls; none of them is out of order."""
    store = tmp_path.resolve() / "store"

    def run(program: str, *arguments: object) -> Disk:
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        # The common folder of the store and of what the program prints.
        root = faulty.folder.resolve().parent
        outcome = faulty.run(program, *arguments, fault=Fault(root=root, calls=LOGGED, log=log))
        assert outcome.code == 0, outcome.err
        disk = Disk(store, printed=faulty.folder.resolve())
        assert not list(disk.replay(log.read_text().splitlines()))
        return disk

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def test_rows_are_acknowledged_after_their_commit_is_synced(logged: Callable[..., Disk], store: Path) -> None:
    disk = logged(COMMIT_ROWS, store, 1, 1, "small")
    assert disk.seen["acknowledged"] >= 10
    # A batch takes one commit to be paid for and one to be kept.
    assert disk.seen["commits"] >= 20
    assert disk.seen["chunks"] >= 6
    # Opening, and every fold.
    assert disk.seen["documents"] >= 14


def test_a_fold_is_synced_chunks_first_then_the_mark_then_the_shapes(logged: Callable[..., Disk], store: Path) -> None:
    for number in (1, 2):
        logged(COMMIT_ROWS, store, number, number, "leave", "small")
    assert not list(store.rglob("c.*"))
    disk = logged(COMMAND, "fold", store)
    assert disk.seen["chunks"] == 6
    assert disk.seen["documents"] > 6


def test_a_fill_is_synced_in_the_same_order(logged: Callable[..., Disk], store: Path, pictures: Path) -> None:
    options = ["--teacher", "fake:10", "--dataset", f"folder:{pictures}", "--batch", 8]
    disk = logged(FILL, "fill", "--cache", store, *options)
    assert disk.seen["chunks"] == 6
    assert disk.seen["commits"] >= 6
