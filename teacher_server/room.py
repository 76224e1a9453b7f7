"""Whether the disk has room for more answers; after it was full, found out by trying."""

import asyncio
import logging
from pathlib import Path
from time import monotonic

from cache.atomic_file import check_room
from shared.errors import DiskFullError, StorageError

log = logging.getLogger(__name__)

ROOM_BYTES = 4 * 2**20
"""A few batches of answers."""
LOOK_AGAIN_S = 0.5
"""Least time between two looks: whoever may ask for health may not keep the disk busy."""


class DiskRoom:
    """What writing into a folder last came to."""

    def __init__(self, folder: Path) -> None:
        self.full = False
        """Whether the last answers found no room."""
        self._folder = folder
        self._look_again_s = 0.0

    async def look(self) -> None:
        """After a full disk, see whether there is room again.

        A server that says that it is not ready may be asked nothing else: it would never learn.
        """
        now_s = monotonic()
        if not self.full or now_s < self._look_again_s:
            return
        self._look_again_s = now_s + LOOK_AGAIN_S
        try:
            await asyncio.to_thread(check_room, self._folder, size_bytes=ROOM_BYTES)
        except (DiskFullError, StorageError) as error:
            log.warning("still not ready: %s", error)
        else:
            self.full = False
