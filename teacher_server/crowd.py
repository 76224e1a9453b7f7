"""All open connections: how many there may be, which of them waits longest, and who is looked at for being slow."""

import asyncio
import logging
import resource
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from shared.errors import TeachonceError
from teacher_server.settings import TransportSettings

log = logging.getLogger(__name__)

SPARE_FILES = 256
"""For the cache, data sets and libraries, beside the connections."""
SPARE_CONNECTIONS = 64
"""Beyond the limit and all busy: these may still ask for health."""


class Member(Protocol):
    """What the crowd needs of a connection."""

    unread_bytes: int
    """Of answers, not yet taken by the client."""

    def abort(self) -> None:
        """End it at once."""

    def look(self, now_s: float) -> None:
        """Hold it to its deadlines."""


class Crowd:
    """Everyone who is connected; one per server."""

    def __init__(
        self, settings: TransportSettings, *, most_unread_bytes: int, refused: Callable[[TeachonceError], None]
    ) -> None:
        """``refused`` is told what no application saw."""
        self.settings = settings
        self.refused = refused
        self._limit = allowed_connections(settings.connections)
        self._most_unread_bytes = most_unread_bytes
        self._members: set[Member] = set()
        self._waiting: OrderedDict[Member, None] = OrderedDict()
        self._unread_bytes = 0

    def join(self, member: Member) -> bool:
        """Let one in, at the price of the one that has waited longest; False where there is no room at all."""
        if len(self._members) >= self._limit and self._waiting:
            oldest, _ = self._waiting.popitem(last=False)
            # Left already, though its socket closes a moment later: the next one must not cost another.
            self._members.discard(oldest)
            oldest.abort()
        self._members.add(member)
        self._waiting[member] = None
        return len(self._members) <= self._limit + SPARE_CONNECTIONS

    def leave(self, member: Member) -> None:
        """A connection is gone."""
        self._members.discard(member)
        self._waiting.pop(member, None)

    def waits(self, member: Member) -> None:
        """Nothing is being answered on it."""
        if member in self._members:
            self._waiting[member] = None

    def works(self, member: Member) -> None:
        """A request has arrived on it."""
        self._waiting.pop(member, None)

    @property
    def full(self) -> bool:
        """Whether only health is answered: too many are busy, or too much that was answered is not read."""
        return len(self._members) > self._limit or self._unread_bytes > self._most_unread_bytes

    async def watch(self) -> None:
        """Look at everyone, again and again, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.settings.look_every_s)
            now_s = loop.time()
            for member in list(self._members):
                member.look(now_s)
            self._unread_bytes = sum(member.unread_bytes for member in self._members)


def allowed_connections(wanted: int) -> int:
    """``wanted``, or as many as this process may have open; raises its own limit of files as far as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_CONNECTIONS + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = max(1, soft - SPARE_CONNECTIONS - SPARE_FILES)
    log.warning("at most %d connections instead of %d: the system allows %d open files", most, wanted, soft)
    return most
