"""A promise to call the teacher, counted before it is kept."""

from dataclasses import dataclass

from cache.handle import CacheHandle
from cache.payer import LOCAL_OWNER, Payer


@dataclass(frozen=True, kw_only=True, slots=True)
class CallRequest:
    """Calls that somebody wants to make."""

    run: str
    cache: CacheHandle
    calls: int
    owner: str = LOCAL_OWNER
    """Whose key asks."""

    @property
    def payer(self) -> Payer:
        """Who is counted and bounded."""
        return Payer(self.owner, self.run)


@dataclass(eq=False, kw_only=True, slots=True)
class Reservation:
    """Calls that are counted as attempts; made by `CacheWriter.reserve`, settled by commit, fail or release."""

    payer: Payer
    cache: CacheHandle
    calls: int
    left: int
    """Calls that were neither committed, failed nor released."""
