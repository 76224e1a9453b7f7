"""The slots that are not in whole blocks yet, in memory: what the journal holds, and the block it continues.

Shape key: B slots, A answer bytes of one slot.
"""

from collections.abc import Iterable
from copy import copy
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from cache.layout import BLOCK_SLOTS, INDEX_ARRAYS, AnyArray, ArraySpec, Bytes

PART_BYTES = 2 * 2**20
"""Answers of one part of a tail: small, so that making the next one keeps nobody waiting."""


class Entry(NamedTuple):
    """One slot, as the journal keeps it."""

    slot: int
    row: int
    view: int
    label: int
    key: bytes
    answers: bytes
    """Bytes of all outputs, one after another."""


class Tail:
    """Slots [start, start + len), ``start`` a multiple of the block. Parts are filled one by one, never moved."""

    def __init__(self, specs: tuple[ArraySpec, ...], *, start: int) -> None:
        """``specs``: the outputs, in the order of their bytes in an entry."""
        self.start = start
        self._specs = {spec.name: spec for spec in (*specs, *INDEX_ARRAYS)}
        ends = np.cumsum([spec.slot_bytes for spec in specs]).tolist()
        self._columns = dict(zip([spec.name for spec in specs], zip([0, *ends], ends, strict=False), strict=True))
        self._slot_bytes: int = ends[-1]
        self._part_slots = _part_slots(self._slot_bytes)
        self._parts: list[_Part] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def end(self) -> int:
        """One past the last slot."""
        return self.start + self._count

    def frozen(self) -> Self:
        """What is here now, to be read while others append: slots that are there never change."""
        frozen = copy(self)
        frozen._parts = list(self._parts)
        return frozen

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries in slot order."""
        for entry in entries:
            part, at = self._next_part(), self._count % self._part_slots
            part.answers[at] = np.frombuffer(entry.answers, dtype=np.uint8)
            part.index["labels"][at] = entry.label
            part.index["rows"][at] = entry.row
            part.index["views"][at] = entry.view
            part.index["keys"][at] = np.frombuffer(entry.key, dtype=np.uint8)
            self._count += 1

    def extend(self, arrays: dict[str, AnyArray]) -> None:
        """Add slots from whole arrays, outputs and index arrays by name."""
        done, count = 0, len(arrays["rows"])
        while done < count:
            part, at = self._next_part(), self._count % self._part_slots
            more = min(self._part_slots - at, count - done)
            for name, (first, last) in self._columns.items():
                values = np.ascontiguousarray(arrays[name][done : done + more])
                part.answers[at : at + more, first:last] = values.reshape(more, -1).view(np.uint8)
            for name, index in part.index.items():
                index[at : at + more] = arrays[name][done : done + more]
            done += more
            self._count += more

    def values(self, name: str, *, first: int, end: int) -> AnyArray:
        """Slots [first, end) of one array, a copy."""
        return self.take(name, np.arange(first, end))

    def take(self, name: str, slots: NDArray[np.int64]) -> AnyArray:
        """These slots of one array, a copy."""
        spec = self._specs[name]
        numbers, at = np.divmod(slots - self.start, self._part_slots)
        if len(numbers) == 1:
            return self._column(self._parts[int(numbers[0])], spec=spec)[at]
        values = np.empty((len(slots), *spec.shape), dtype=spec.numpy_dtype)
        for number in np.unique(numbers).tolist():
            chosen = numbers == number
            values[chosen] = self._column(self._parts[number], spec=spec)[at[chosen]]
        return values

    def after(self, start: int) -> Self:
        """The slots from the block that begins at ``start`` on; append to it and no longer to this one."""
        rest = copy(self)
        # Blocks are whole numbers of parts.
        rest._parts = self._parts[(start - self.start) // self._part_slots :]
        rest._count = self.end - start
        rest.start = start
        return rest

    def _column(self, part: "_Part", *, spec: ArraySpec) -> AnyArray:
        """One array of a part, a view."""
        if spec.name in part.index:
            return part.index[spec.name]
        first, last = self._columns[spec.name]
        # Reinterpreting bytes needs only the last axis to be contiguous.
        return part.answers[:, first:last].view(spec.numpy_dtype).reshape(-1, *spec.shape)

    def _next_part(self) -> "_Part":
        if self._count == len(self._parts) * self._part_slots:
            self._parts.append(_Part(self._part_slots, slot_bytes=self._slot_bytes))
        return self._parts[-1]


class _Part:
    """Room for some slots."""

    def __init__(self, slots: int, *, slot_bytes: int) -> None:
        # Zeroed by the kernel when first touched: making it takes no time.
        self.answers: Bytes = np.zeros((slots, slot_bytes), dtype=np.uint8)
        self.index = {spec.name: np.zeros((slots, *spec.shape), dtype=spec.numpy_dtype) for spec in INDEX_ARRAYS}


def _part_slots(slot_bytes: int) -> int:
    """A power of two, at most a block."""
    slots = BLOCK_SLOTS
    while slots > 1 and slots * slot_bytes > PART_BYTES:
        slots //= 2
    return slots
