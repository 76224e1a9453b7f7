"""Who watches fills now: streams hold connections for hours, so there are only so many."""

from collections import Counter

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
