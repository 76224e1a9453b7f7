"""Files that appear complete or not at all, and survive power loss once written."""

import errno
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from cache.layout import PARTIAL
from shared.errors import CorruptCacheError, DiskFullError, StorageError


def write_atomic(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Write ``parts`` beside ``path``, make them durable, and rename them into place.

    The rename itself is durable after `sync_folder`: until then a power loss may bring back the file from before.
    Raises `DiskFullError` when there is no room, `StorageError` when the disk fails; ``path`` is then as it was.
    """
    partial = path.with_name(path.name + PARTIAL)
    with disk_full_named(path):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for part in parts:
                    _write_all(file.fileno(), memoryview(part))
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            # Half a chunk takes the room that is missing, and a file that failed to sync is never synced again.
            partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of an indented JSON document, left alone where it says the same already."""
    text = json.dumps(value, indent=2, allow_nan=False).encode() + b"\n"
    if path.exists() and path.read_bytes() == text:
        return
    write_atomic(path, [text])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON document of ours; raises `CorruptCacheError` where it is not one."""
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptCacheError(f"{path} is not JSON ({error}); restore it from a copy of the cache") from error
    if not isinstance(value, dict):
        raise CorruptCacheError(f"{path} holds no JSON object; restore it from a copy of the cache")
    return value


def make_folders(path: Path) -> None:
    """Create ``path`` and its parents durably."""
    missing = [folder for folder in [path, *path.parents] if not folder.exists()]
    with disk_full_named(path):
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    with disk_full_named(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_room(folder: Path, *, size_bytes: int) -> None:
    """Write and sync so much into a file without a name, which nobody has to clean up.

    Raises `DiskFullError` where there is no room, `StorageError` when the disk fails.
    """
    with disk_full_named(folder), TemporaryFile(dir=folder, buffering=0) as file:
        _write_all(file.fileno(), memoryview(bytes(size_bytes)))
        os.fsync(file.fileno())


def _write_all(descriptor: int, data: memoryview) -> None:
    data = data.cast("B")
    while data:
        data = data[os.write(descriptor, data) :]


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """Turn the system's word for a full disk into a `DiskFullError` that names ``path``, others into `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no room to write {path}; nothing was lost: make room and try again") from error
        reason = error.strerror or type(error).__name__
        raise StorageError(f"cannot write {path} ({reason}): check the disk and its permissions") from error
