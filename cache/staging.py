"""A folder or file that appears whole or not at all: made beside its place, then renamed into it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache.atomic_file import disk_full_named, make_folders, sync_folder
from cache.layout import LOCK, PARTIAL
from cache.lock import WriterLock
from shared.errors import InputError


def check_absent(target: Path) -> None:
    """Raise `InputError` for a place that is taken, unless by an empty folder: nothing is ever written over."""
    taken = any(target.iterdir()) if target.is_dir() else target.exists() or target.is_symlink()
    if taken:
        raise InputError(f"{target} exists: name another place, or remove it first")


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """A new folder to fill; it becomes ``target``, which must be absent or empty, where the block ends without error.

    What an interrupted attempt left is dropped; raises `CacheLockedError` while another process makes the same folder.
    """
    check_absent(target)
    target = target.absolute()
    staging = target.with_name(target.name + PARTIAL)
    with disk_full_named(target):
        make_folders(staging)
        lock = WriterLock(staging)
        try:
            folder = staging / target.name
            shutil.rmtree(folder, ignore_errors=True)
            make_folders(folder)
            yield folder
            # A new cache's writer has left: its lock names nobody any more.
            (folder / LOCK).unlink(missing_ok=True)
            for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
                sync_folder(inner)
            check_absent(target)
            folder.replace(target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            lock.release()


@contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """The name of a file to write; it becomes ``target``, which must be absent, where the block ends without error."""
    check_absent(target)
    target = target.absolute()
    if target.is_dir() or not target.parent.is_dir():
        raise InputError(f"{target} cannot be made: name a file in a folder that exists")
    partial = target.with_name(target.name + PARTIAL)
    with disk_full_named(target):
        try:
            yield partial
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(target)
            sync_folder(target.parent)
        finally:
            partial.unlink(missing_ok=True)
