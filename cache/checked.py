"""An array that compares every block with its checksum before it hands out the first slot of it.

Shape key: B slots asked for, S slots.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.arrays import SlotArray
from cache.checksum import check_segments
from cache.layout import BLOCK_SLOTS, AnyArray, ArraySpec

Ints = NDArray[np.int64]


class CheckedArray:
    """As the array it wraps; raises `CorruptCacheError` for slots of a block that differs from its checksum."""

    def __init__(self, array: SlotArray, *, folder: Path, spec: ArraySpec, slots: int) -> None:
        self.slots = slots
        self.size_bytes = array.size_bytes
        self._array = array
        self._folder = folder
        self._spec = spec
        self._unchecked = np.ones(-(-slots // BLOCK_SLOTS), dtype=np.bool_)

    def take(self, slots: Ints, *, out: AnyArray) -> None:
        """See `SlotArray`."""
        blocks = np.unique(slots // BLOCK_SLOTS)
        self._check(blocks[self._unchecked[blocks]])
        self._array.take(slots, out=out)

    def head(self, slots: int) -> AnyArray:
        """See `SlotArray`."""
        self._check(np.flatnonzero(self._unchecked[: -(-slots // BLOCK_SLOTS)]))
        return self._array.head(slots)

    def will_need(self, slots: Ints) -> None:
        """See `SlotArray`."""
        self._array.will_need(slots)

    def _check(self, blocks: Ints) -> None:
        for block in blocks.tolist():
            first, end = block * BLOCK_SLOTS, min((block + 1) * BLOCK_SLOTS, self.slots)
            values = np.empty((end - first, *self._spec.shape), dtype=self._spec.numpy_dtype)
            self._array.take(np.arange(first, end, dtype=np.int64), out=values)
            check_segments(self._folder, first=first, values=values)
            self._unchecked[block] = False
