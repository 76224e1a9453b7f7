"""When answers move into Zarr: whole blocks soon after they are full, the rest when asked or after a quiet time."""

import logging
from collections.abc import Sequence
from pathlib import Path
from threading import RLock

from cache.fold import fold_block
from cache.handle import CacheHandle
from cache.layout import BLOCK_SLOTS
from cache.ledger import Ledger
from cache.opening import Teachers
from cache.publish import Documents, cache_documents, ledger_documents, write_documents
from shared.errors import TeachonceError

log = logging.getLogger(__name__)

MOST_BLOCKS_WAITING = 2
"""Full blocks of one cache in memory; a commit that makes more waits until they are folded."""


class Folding:
    """One fold at a time, beside commits and reads."""

    def __init__(self, path: Path, *, teachers: Teachers, ledger: Ledger, lock: RLock) -> None:
        """``lock`` is the writer's."""
        self.turn = RLock()
        """Held by whoever writes Zarr files; always taken before the writer's lock, never while holding it."""
        self._path = path
        self._teachers = teachers
        self._ledger = ledger
        self._lock = lock
        self._due = False

    def note(self, handles: Sequence[CacheHandle]) -> bool:
        """Caches have grown: whether a block is full, for a thread that has the time for `fold_due`."""
        full = [handle for handle in handles if _waiting_blocks(handle)]
        self._due = self._due or bool(full)
        return bool(full)

    def is_behind(self, handles: Sequence[CacheHandle]) -> bool:
        """Whether so much waits that whoever commits should call `fold_due` first."""
        return any(_waiting_blocks(handle) > MOST_BLOCKS_WAITING for handle in handles)

    def fold_due(self) -> None:
        """Fold blocks that are full. Trouble is logged: answers are durable in the journal, the next commit retries."""
        with self.turn:
            due, self._due = self._due, False
            if not due:
                return
            try:
                for handle in self._loaded():
                    while _waiting_blocks(handle):
                        self._fold_block(handle)
            except (TeachonceError, OSError) as error:
                log.warning("not folded: %s", error)

    def fold(self, cache: CacheHandle | None = None) -> None:
        """Fold all that is committed now, of one cache or of all; raises `DiskFullError`, nothing is lost."""
        with self.turn:
            with self._lock:
                handles = self._teachers.load_all() if cache is None else [cache]
                ends = [handle.num_slots for handle in handles]
            for handle, end in zip(handles, ends, strict=True):
                while handle.folded < end:
                    self._fold_block(handle)
                self._publish(handle)

    def fold_rest(self) -> None:
        """`fold` if anything of the caches in use is not folded yet."""
        if any(handle.folded < handle.num_slots for handle in self._loaded()):
            self.fold()

    def publish_ledger(self) -> None:
        """Copy the ledger's sums into the root group, for readers without the ledger."""
        with self.turn:
            with self._lock:
                documents = ledger_documents(self._path, ledger=self._ledger)
            write_documents(documents)

    def _loaded(self) -> list[CacheHandle]:
        with self._lock:
            return self._teachers.loaded()

    def _fold_block(self, handle: CacheHandle) -> None:
        fold_block(handle, ledger=self._ledger, lock=self._lock)
        self._publish(handle)

    def _publish(self, handle: CacheHandle) -> None:
        with self._lock:
            documents: Documents = cache_documents(
                self._path, record=self._teachers.record(handle), folded=handle.folded, ledger=self._ledger
            )
        write_documents(documents)


def _waiting_blocks(handle: CacheHandle) -> int:
    return len(handle.tail) // BLOCK_SLOTS
