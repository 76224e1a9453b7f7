"""Who watches fills now: streams hold connections for hours, so there are only so many."""

from collections import Counter
from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from shared.errors import UnavailableError

MOST_WATCHERS = 256
MOST_OF_ONE = 64
"""Of one key."""


class Watchers:
    """Open streams by owner."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def enter(self, owner: str) -> None:
        """Count one more; raises `UnavailableError`."""
        if self._open.total() >= MOST_WATCHERS or self._open[owner] >= MOST_OF_ONE:
            raise UnavailableError(
                f"{self._open[owner]} streams of {owner} watch fills already, {self._open.total()} in all; at most "
                f"{MOST_OF_ONE} and {MOST_WATCHERS} may: ask GET /v1/fills/ID now and then"
            )
        self._open[owner] += 1

    def leave(self, owner: str) -> None:
        """Count one less."""
        self._open[owner] -= 1


class FillStream(StreamingResponse):
    """One of the watchers from when it is made until it ends, however that comes about."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], *, watchers: Watchers, owner: str) -> None:
        """Raises `UnavailableError` where too many watch."""
        watchers.enter(owner)
        # The second header is for nginx, which would collect the events and send them together.
        super().__init__(events, headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        self._watchers, self._owner = watchers, owner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._watchers.leave(self._owner)
