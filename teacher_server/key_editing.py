"""Changes to the file of API keys: one process at a time, all or nothing, readable by its owner alone."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cache.atomic_file import disk_full_named, make_folders, sync_folder
from cache.layout import PARTIAL
from cache.payer import LOCAL_OWNER
from shared.errors import InputError
from teacher_server.key_file import Entry, read_entries, read_keys

log = logging.getLogger(__name__)

PRIVATE = 0o600


@contextmanager
def editing(path: Path, *, make_folder: bool = False) -> Iterator[list[Entry]]:
    """The lines of a file, to be changed in place; written when the block ends, while no other process may.

    A file that is not there begins empty. Raises `InputError`, `StorageError` and `DiskFullError`.
    """
    # What a link points to is replaced, not the link.
    path = path.resolve()
    if make_folder:
        make_folders(path.parent)
    elif not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} to keep API keys in; make it first, or name another file")
    with _locked(path):
        entries = read_entries(path) if path.exists() else []
        before = list(entries)
        yield entries
        if entries != before or not path.exists():
            _replace(path, entries=entries)


def prepare_key_file(path: Path) -> None:
    """Make a missing file, without keys, and say in the log what is wrong with one; raises `InputError`."""
    if not path.exists():
        with editing(path, make_folder=True):
            pass
    keys = read_keys(path)
    if path.stat().st_mode & 0o077:
        log.warning("others can read the API keys in %s; run: chmod 600 %s", path, path)
    command = f"teacher-server key make NAME --file {path}"
    if not keys:
        log.warning("no API key in %s yet, so nobody may ask; make one: %s", path, command)
    if any(key.name == LOCAL_OWNER for key in keys):
        log.warning("%s holds plain keys, which may do everything; better ones are made by: %s", path, command)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = path.with_name(f"{path.name}.lock")
    with disk_full_named(lock):
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, PRIVATE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, *, entries: list[Entry]) -> None:
    partial = path.with_name(path.name + PARTIAL)
    with disk_full_named(path):
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, PRIVATE)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                _make_private(file.fileno(), path=path)
                file.writelines(f"{entry.text}\n" for entry in entries)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def _make_private(descriptor: int, *, path: Path) -> None:
    """Also where an interrupted command left the file; root leaves it with whoever owns the one before."""
    os.fchmod(descriptor, PRIVATE)
    with suppress(FileNotFoundError, PermissionError):
        owner = path.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
