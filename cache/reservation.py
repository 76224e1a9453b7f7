"""A promise to call the teacher, counted before it is kept."""

from dataclasses import dataclass

from cache.handle import CacheHandle


@dataclass(eq=False, kw_only=True, slots=True)
class Reservation:
    """Calls that are counted as attempts; made by `CacheWriter.reserve`, settled by commit, fail or release."""

    run: str
    cache: CacheHandle
    calls: int
    left: int
    """Calls that were neither committed, failed nor released."""
