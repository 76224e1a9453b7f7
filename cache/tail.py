"""The slots that are not in whole blocks yet, in memory: what the journal holds, and the block it continues.

Shape key: B slots, A answer bytes of one slot.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache.layout import INDEX_ARRAYS, AnyArray, ArraySpec, Bytes

FIRST_CAPACITY = 256


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
    """Slots [start, start + len). ``start`` is a multiple of the block."""

    def __init__(self, specs: tuple[ArraySpec, ...], *, start: int) -> None:
        """``specs``: the outputs, in the order of their bytes in an entry."""
        self.start = start
        self._specs = specs
        ends = np.cumsum([spec.slot_bytes for spec in specs]).tolist()
        self._columns = dict(zip([spec.name for spec in specs], zip([0, *ends], ends, strict=False), strict=True))
        self._answers: Bytes = np.zeros((FIRST_CAPACITY, ends[-1]), dtype=np.uint8)
        self._index = {spec.name: _zeros(spec, FIRST_CAPACITY) for spec in INDEX_ARRAYS}
        self._count = 0

    @property
    def end(self) -> int:
        """One past the last slot."""
        return self.start + self._count

    def append(self, entries: Iterable[Entry]) -> None:
        """Add entries in slot order."""
        for entry in entries:
            at = self._count
            self._reserve(at + 1)
            self._answers[at] = np.frombuffer(entry.answers, dtype=np.uint8)
            self._index["labels"][at] = entry.label
            self._index["rows"][at] = entry.row
            self._index["views"][at] = entry.view
            self._index["keys"][at] = np.frombuffer(entry.key, dtype=np.uint8)
            self._count += 1

    def extend(self, arrays: dict[str, AnyArray]) -> None:
        """Add slots from whole arrays, outputs and index arrays by name."""
        count = len(arrays["rows"])
        end = self._count + count
        self._reserve(end)
        for name, (first, last) in self._columns.items():
            values = np.ascontiguousarray(arrays[name])
            self._answers[self._count : end, first:last] = values.reshape(count, -1).view(np.uint8)
        for name, index in self._index.items():
            index[self._count : end] = arrays[name]
        self._count = end

    def values(self, name: str, *, first: int, end: int) -> AnyArray:
        """Slots [first, end) of one array, a copy for outputs and a view for the rest."""
        return self._select(name, slice(first - self.start, end - self.start))

    def take(self, name: str, slots: NDArray[np.int64]) -> AnyArray:
        """These slots of one array, a copy."""
        return self._select(name, slots - self.start)

    def forget_before(self, start: int) -> None:
        """Drop slots that are in whole blocks on disk."""
        dropped = start - self.start
        self._answers = self._answers[dropped:].copy()
        self._index = {name: values[dropped:].copy() for name, values in self._index.items()}
        self._count -= dropped
        self.start = start

    def _select(self, name: str, chosen: slice | NDArray[np.int64]) -> AnyArray:
        if name in self._index:
            return self._index[name][: self._count][chosen]
        spec = next(spec for spec in self._specs if spec.name == name)
        first, last = self._columns[name]
        packed = np.ascontiguousarray(self._answers[: self._count, first:last][chosen])
        return packed.view(spec.numpy_dtype).reshape(len(packed), *spec.shape)

    def _reserve(self, count: int) -> None:
        if count <= len(self._answers):
            return
        capacity = max(count, 2 * len(self._answers))
        self._answers = _grown(self._answers, capacity)
        self._index = {name: _grown(values, capacity) for name, values in self._index.items()}


def _zeros(spec: ArraySpec, count: int) -> AnyArray:
    return np.zeros((count, *spec.shape), dtype=spec.numpy_dtype)


def _grown(values: AnyArray, capacity: int) -> AnyArray:
    grown = np.zeros((capacity, *values.shape[1:]), dtype=values.dtype)
    grown[: len(values)] = values
    return grown
