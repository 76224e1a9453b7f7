"""Key -> number of the first answer to these pixels: sorted arrays for the many, a dict for the latest.

Shape key: n keys.
"""

import numpy as np
from numpy.typing import NDArray

from cache.layout import Bytes

MERGE_AT = 65_536
"""Latest keys that are merged into the sorted arrays together."""


class KeyIndex:
    """About 48 bytes per key; the first number added for a key stays."""

    def __init__(self) -> None:
        self._prefixes: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._keys: Bytes = np.empty((0, 32), dtype=np.uint8)
        self._numbers: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._recent: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._numbers) + len(self._recent)

    def get(self, key: bytes) -> int | None:
        """The number of a key, None where it is unknown."""
        found = self._recent.get(key)
        return self._search(key) if found is None else found

    def add(self, key: bytes, number: int) -> None:
        """Remember a key that is not known yet."""
        self._recent[key] = number
        if len(self._recent) >= MERGE_AT:
            keys = np.frombuffer(b"".join(self._recent), dtype=np.uint8).reshape(-1, 32)
            numbers = np.fromiter(self._recent.values(), dtype=np.int64, count=len(self._recent))
            self._recent = {}
            self.extend(keys, numbers)

    def extend(self, keys: Bytes, numbers: NDArray[np.int64]) -> None:
        """Remember many distinct keys [n, 32] with their numbers [n]."""
        prefixes = _prefixes(keys)
        order = np.argsort(prefixes, kind="stable")
        at = np.searchsorted(self._prefixes, prefixes[order], side="right")
        self._prefixes = np.insert(self._prefixes, at, prefixes[order])
        self._keys = np.insert(self._keys, at, keys[order], axis=0)
        self._numbers = np.insert(self._numbers, at, numbers[order])

    def _search(self, key: bytes) -> int | None:
        if not len(self._prefixes):
            return None
        prefix = np.uint64(int.from_bytes(key[:8]))
        at = int(np.searchsorted(self._prefixes, prefix))
        # Keys that share a prefix lie side by side; the whole key decides.
        while at < len(self._prefixes) and self._prefixes[at] == prefix:
            if self._keys[at].tobytes() == key:
                return int(self._numbers[at])
            at += 1
        return None


def _prefixes(keys: Bytes) -> NDArray[np.uint64]:
    return np.ascontiguousarray(keys[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
