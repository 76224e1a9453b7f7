"""Which slots of an array on disk cannot be trusted, however its files are damaged.

Shape key: S slots.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.checksum import Segment, crc32c, read_segments
from cache.layout import BLOCK_SLOTS, AnyArray, ArraySpec
from shared.errors import CorruptCacheError

Flags = NDArray[np.bool_]


class DamagedArray:
    """One array of a cache, read chunk by chunk: what is missing or short is zeros, and known to be wrong."""

    def __init__(self, folder: Path, *, spec: ArraySpec, slots: int, keep_unchecked: bool) -> None:
        """``keep_unchecked``: slots without a checksum are taken to be sound."""
        self.folder = folder
        self.spec = spec
        self.slots = slots
        self.reasons: list[str] = []
        """What is wrong with its files, one line each."""
        self.segments, readable = self._read_segments()
        self.sound: Flags = np.zeros(slots, dtype=np.bool_)
        """Slots that are what was written, bool [S]."""
        for first in range(0, slots, BLOCK_SLOTS):
            values, whole = self.read_block(first)
            self.sound[first : first + len(values)] = whole & self._checked(
                values, whole, first=first, otherwise=keep_unchecked
            )
        if not readable:
            self.reasons.append(f"{folder} has no readable checksums")

    def read_block(self, first: int) -> tuple[AnyArray, Flags]:
        """The slots of the block that begins at ``first``, and which of them were there to be read."""
        count, size = min(BLOCK_SLOTS, self.slots - first), self.spec.chunk_slots
        values = np.zeros((count, *self.spec.shape), dtype=self.spec.numpy_dtype)
        whole = np.zeros(count, dtype=np.bool_)
        for begin in range(0, count, size):
            file = self.folder / self.spec.chunk_name((first + begin) // size)
            data = file.read_bytes() if file.is_file() else b""
            if len(data) == self.spec.chunk_bytes:
                chunk = np.frombuffer(data, dtype=self.spec.numpy_dtype).reshape(size, *self.spec.shape)
                values[begin : begin + size] = chunk[: count - begin]
                whole[begin : begin + size] = True
        return values, whole

    def sound_blocks(self, chosen: Flags, *, start: int) -> Iterator[AnyArray]:
        """The values of the slots ``chosen`` [S] from ``start`` (a block's) on, in blocks of 8192 and a last one."""
        waiting = np.empty((0, *self.spec.shape), dtype=self.spec.numpy_dtype)
        for first in range(start, self.slots, BLOCK_SLOTS):
            values, _ = self.read_block(first)
            waiting = np.concatenate([waiting, values[chosen[first : first + len(values)]]])
            if len(waiting) >= BLOCK_SLOTS:
                yield waiting[:BLOCK_SLOTS]
                waiting = waiting[BLOCK_SLOTS:]
        if len(waiting):
            yield waiting

    def _read_segments(self) -> tuple[list[Segment], bool]:
        try:
            segments = [segment for segment in read_segments(self.folder) if segment.end <= self.slots]
        except (CorruptCacheError, OSError):
            return [], False
        return segments, bool(segments) or not self.slots

    def _checked(self, values: AnyArray, whole: Flags, *, first: int, otherwise: bool) -> Flags:
        """Which slots of a block have their checksum and, if floats, are finite."""
        end = first + len(values)
        checked = np.full(len(values), otherwise)
        if not whole.all():
            self.reasons.append(f"{self.folder} lacks a whole chunk file in slots {first} to {end - 1}")
        for segment in self.segments:
            if not first <= segment.first < segment.end <= end:
                continue
            part = slice(segment.first - first, segment.end - first)
            right = crc32c(values[part]) == segment.crc32c
            checked[part] = right
            if not right and whole[part].all():
                self.reasons.append(
                    f"{self.folder} differs from its checksum in slots {segment.first} to {segment.end - 1}"
                )
        if self.spec.dtype.startswith("float"):
            finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
            if not finite.all():
                self.reasons.append(f"{self.folder} holds values that are not finite in slots {first} to {end - 1}")
            checked &= finite
        return checked
