"""One process writes a cache: an exclusive lock that ends with its process, and names it to the second."""

import errno
import fcntl
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from cache.layout import LOCK
from shared.errors import CacheLockedError, InputError


class WriterLock:
    """Held from construction to `release` or the end of the process, kill -9 included."""

    def __init__(self, path: Path) -> None:
        """Lock the cache at ``path``; raises `CacheLockedError` naming the process that holds it."""
        self._descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 4096, 0).decode(errors="replace")
            os.close(self._descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise InputError(f"{path} is on a file system without locks ({error}); use a local disk") from error
            raise CacheLockedError(f"{path} is being written by {_describe(holder)}; stop it first") from error
        owner = {
            "pid": os.getpid(),
            "command": " ".join(sys.argv)[:1000],
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(owner).encode(), 0)

    def release(self) -> None:
        """Let the next process write."""
        os.close(self._descriptor)


def _describe(holder: str) -> str:
    try:
        owner = json.loads(holder)
        return f"process {owner['pid']} ({owner['command']}, since {owner['started']})"
    except (ValueError, KeyError, TypeError):
        # Between taking the lock and writing these lines there is a moment.
        return "another process"
