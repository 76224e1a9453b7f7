"""Names that may be labels of a metric: the first hundred get one of their own, later ones share one."""

from collections.abc import Iterable
from threading import Lock

MOST_NAMES = 100
LATER = "(later)"
"""What later names share; no run and no key can be called so."""


class LabelNames:
    """In the order they were first seen, so that a name never moves into or out of the shared one."""

    def __init__(self) -> None:
        self._named: dict[str, None] = {}
        # Two may scrape at the same time.
        self._lock = Lock()

    def label(self, name: str) -> str:
        """The label of a name."""
        with self._lock:
            if len(self._named) < MOST_NAMES:
                self._named.setdefault(name)
            return name if name in self._named else LATER

    def own(self, names: Iterable[str]) -> list[str]:
        """Those of ``names`` with a label of their own."""
        return [name for name in names if self.label(name) == name]
