"""The API keys as their file has them now: read again when it changes, so that a key ends without a restart."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from shared.errors import TeachonceError
from teacher_server.key_file import read_keys
from teacher_server.keys import ApiKey

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Seconds until a file that could not be read is tried again unchanged: the reason may lie elsewhere."""
LOOK_EVERY_S = 1.0
Look = tuple[int, ...]
"""What tells one state of a file from the next; empty where there is none."""


class KeyRing:
    """Keys of one file; one that cannot be read leaves them as they were."""

    def __init__(
        self, path: Path, *, admit: Callable[[ApiKey], None], dropped: Callable[[str], None] = lambda _: None
    ) -> None:
        """``admit`` makes the runs and the budget of a key in the ledger. Raises what it and `read_keys` raise.

        ``dropped`` is called, on the loop, with each name that is in the file no more.
        """
        self._path = path
        self._admit = admit
        self._dropped = dropped
        self._seen = self._look()
        self._failed: Look | None = None
        self._retry_s = 0.0
        self._turn = asyncio.Lock()
        self._keys = read_keys(path)
        for key in self._keys:
            admit(key)

    async def keys(self) -> tuple[ApiKey, ...]:
        """All keys that count now. Looking takes microseconds, so every call looks: a revoked key ends at once."""
        if self._is_due(self._look()):
            async with self._turn:
                if self._is_due(look := self._look()):
                    # The ledger may be in the middle of a commit.
                    before = self._keys
                    await asyncio.to_thread(self._reload, look)
                    for name in {key.name for key in before} - {key.name for key in self._keys}:
                        self._dropped(name)
        return self._keys

    async def watch(self) -> None:
        """Look now and then, for ever: a key ends also while nobody asks anything."""
        while True:
            await self.keys()
            await asyncio.sleep(LOOK_EVERY_S)

    def _look(self) -> Look:
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size

    def _is_due(self, look: Look) -> bool:
        return look != self._seen and (look != self._failed or monotonic() >= self._retry_s)

    def _reload(self, look: Look) -> None:
        try:
            found = read_keys(self._path)
        except TeachonceError as error:
            self._put_off(look, trouble=f"the API keys from before stay: {error}")
            return
        self._keys = tuple(key for key in found if self._is_admitted(key, look=look))
        if len(self._keys) == len(found):
            log.info("read %d API keys from %s again", len(self._keys), self._path)
            self._seen, self._failed = look, None

    def _is_admitted(self, key: ApiKey, *, look: Look) -> bool:
        if key in self._keys:
            return True
        try:
            self._admit(key)
        except TeachonceError as error:
            self._put_off(look, trouble=f"the API key {key.name} does not count yet: {error}")
            return False
        return True

    def _put_off(self, look: Look, *, trouble: str) -> None:
        """Try again later; told once."""
        if look != self._failed:
            log.error("%s", trouble)
        self._failed, self._retry_s = look, monotonic() + RETRY_S
