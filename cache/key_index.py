"""Key -> number of the first answer to these pixels: 8 bytes per key, and a dict for the latest.

Shape key: n keys.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.layout import Bytes
from cache.ledger_schema import SLOT_BITS

MERGE_AT = 65_536
"""Latest keys that are sorted together."""
PIECE = 1 << 20
"""Keys read at once."""
HALF = 32
"""Bits of a slot; as many of a key's beginning stand before it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Keys of one cache."""

    base: int
    """Number of its slot 0."""
    packed: NDArray[np.uint64]
    """First 32 bits of the key, then its slot, ascending."""


class KeyIndex:
    """Holds no whole key but the latest: ``key_of`` reads that of a number, to tell those that begin alike apart."""

    def __init__(self, key_of: Callable[[int], bytes]) -> None:
        self._key_of = key_of
        self._runs: list[_Run] = []
        self._recent: dict[bytes, int] = {}

    def __len__(self) -> int:
        return sum(len(run.packed) for run in self._runs) + len(self._recent)

    def get(self, key: bytes) -> int | None:
        """The number of a key, None where it is unknown."""
        found = self._recent.get(key)
        return self._search(key) if found is None else found

    def add(self, key: bytes, number: int) -> None:
        """Remember a key that is not known yet; ``key_of`` knows it from now on."""
        self._recent[key] = number
        if len(self._recent) >= MERGE_AT:
            keys = np.frombuffer(b"".join(self._recent), dtype=np.uint8).reshape(-1, 32)
            numbers = np.fromiter(self._recent.values(), dtype=np.int64, count=len(self._recent))
            caches = numbers >> SLOT_BITS
            for cache in np.unique(caches).tolist():
                chosen = caches == cache
                slots = numbers[chosen] & ((1 << SLOT_BITS) - 1)
                self._add_run(cache << SLOT_BITS, _packed(keys[chosen], slots))
            self._recent = {}

    def extend(self, keys: Bytes, *, base: int, first_slot: int, without: Collection[int] = ()) -> None:
        """Remember keys [n, 32] of slots first_slot, first_slot + 1, ... but for some; ``base`` numbers slot 0."""
        skipped = np.array(sorted(without), dtype=np.int64)
        parts = []
        for start in range(0, len(keys), PIECE):
            part = keys[start : start + PIECE]
            slots = np.arange(first_slot + start, first_slot + start + len(part))
            if len(skipped):
                kept = ~np.isin(slots, skipped)
                part, slots = part[kept], slots[kept]
            parts.append(_packed(part, slots))
        if parts:
            self._add_run(base, np.concatenate(parts))

    def _add_run(self, base: int, packed: NDArray[np.uint64]) -> None:
        packed.sort()
        runs = [*self._runs, _Run(base, packed)]
        # Runs of one cache grow geometrically: few of them, and each key is moved a few times only.
        while len(runs) > 1 and runs[-2].base == base and len(runs[-2].packed) < 2 * len(runs[-1].packed):
            merged = np.concatenate([runs[-2].packed, runs[-1].packed])
            merged.sort()
            runs[-2:] = [_Run(base, merged)]
        self._runs = runs

    def _search(self, key: bytes) -> int | None:
        beginning = int.from_bytes(key[:4])
        for run in self._runs:
            at = int(np.searchsorted(run.packed, np.uint64(beginning << HALF)))
            while at < len(run.packed):
                found = int(run.packed[at])
                if found >> HALF != beginning:
                    break
                number = run.base + (found & ((1 << HALF) - 1))
                if self._key_of(number) == key:
                    return number
                at += 1
        return None


def _packed(keys: Bytes, slots: NDArray[np.int64]) -> NDArray[np.uint64]:
    beginnings = np.ascontiguousarray(keys[:, :4]).view(">u4").reshape(-1).astype(np.uint64)
    packed: NDArray[np.uint64] = (beginnings << np.uint64(HALF)) | slots.astype(np.uint64)
    return packed
