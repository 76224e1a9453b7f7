"""Whose fill is next: owners take turns, and none has more places at once than its share."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count


class Turns:
    """Places that are few; who has none waits, one owner after another."""

    def __init__(self, places: int, *, share: int) -> None:
        """``share``: most places that one owner has at a time."""
        self._free = places
        self._share = share
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Event]] = {}
        """By owner."""
        self._turns = count(1)
        self._last: dict[str, int] = {}
        """Number of each owner's last turn."""

    @asynccontextmanager
    async def turn(self, owner: str) -> AsyncIterator[None]:
        """A place from when it is free until the block ends."""
        admitted = asyncio.Event()
        self._waiting.setdefault(owner, deque()).append(admitted)
        self._admit()
        try:
            await admitted.wait()
            yield
        finally:
            self._leave(owner, admitted)
            self._admit()

    def _leave(self, owner: str, admitted: asyncio.Event) -> None:
        if admitted.is_set():
            self._free += 1
            self._held[owner] -= 1
            return
        # Cancelled while it waited.
        self._waiting[owner].remove(admitted)
        if not self._waiting[owner]:
            del self._waiting[owner]

    def _admit(self) -> None:
        while self._free and (owner := self._next()) is not None:
            self._waiting[owner].popleft().set()
            if not self._waiting[owner]:
                del self._waiting[owner]
            self._free -= 1
            self._held[owner] += 1
            self._last[owner] = next(self._turns)

    def _next(self) -> str | None:
        able = [owner for owner in self._waiting if self._held[owner] < self._share]
        return min(able, key=lambda owner: (self._held[owner], self._last.get(owner, 0)), default=None)
