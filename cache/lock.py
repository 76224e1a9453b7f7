"""One process writes a cache: an exclusive lock that ends with its process, and names it to the second."""

import errno
import fcntl
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from cache.atomic_file import disk_full_named
from cache.layout import LOCK
from shared.errors import CacheLockedError, InputError


class WriterLock:
    """Held from construction to `release` or the end of the process, kill -9 included."""

    def __init__(self, path: Path) -> None:
        """Lock the cache at ``path``; raises `CacheLockedError` naming the process that holds it.

        Raises `InputError` on a file system whose locks fail, or exclude nobody.
        """
        file = path / LOCK
        with disk_full_named(file):
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(path)
            if _is_free(file):
                raise InputError(f"{path} is on a file system whose locks exclude nobody; use a local disk")
            with disk_full_named(file):
                _write_owner(self._descriptor)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _take(self, path: Path) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The kind of lock that SQLite takes.
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(f"{path} is on a file system without locks ({error}); use a local disk") from error
            holder = os.pread(self._descriptor, 4096, 0).decode(errors="replace")
            raise CacheLockedError(f"{path} is being written by {_describe(holder)}; stop it first") from error

    def release(self) -> None:
        """Let the next process write."""
        os.close(self._descriptor)


def _is_free(file: Path) -> bool:
    """Whether somebody else could lock what is locked: network and user-space file systems may say yes to everyone."""
    descriptor = os.open(file, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _write_owner(descriptor: int) -> None:
    owner = {
        "pid": os.getpid(),
        "command": " ".join(sys.argv)[:1000],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode(), 0)


def _describe(holder: str) -> str:
    try:
        owner = json.loads(holder)
        return f"process {owner['pid']} ({owner['command']}, since {owner['started']})"
    except (ValueError, KeyError, TypeError):
        # Between taking the lock and writing these lines there is a moment.
        return "another process"
