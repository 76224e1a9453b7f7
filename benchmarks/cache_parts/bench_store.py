"""Stores of any size, written as a fold writes them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.checksum import Segment, crc32c, write_segments
from cache.fold import write_chunks
from cache.handle import CacheHandle
from cache.journal import move_mark
from cache.layout import BLOCK_SLOTS
from cache.writer import CacheWriter
from shared.descriptions import DatasetDescription, TeacherDescription


@dataclass(frozen=True, kw_only=True)
class Size:
    """One store."""

    slots: int
    classes: int
    dtype: str

    @classmethod
    def read(cls, text: str) -> "Size":
        """``200000x1000xfloat16``."""
        slots, classes, dtype = text.split("x")
        return cls(slots=int(slots), classes=int(classes), dtype=dtype)

    def values(self, first: int, count: int) -> np.ndarray:
        """Answers that look like logits, any part of them made alone."""
        rng = np.random.default_rng(first)
        return rng.standard_normal((count, self.classes), dtype=np.float32).astype(self.dtype)

    def blocks(self) -> list[tuple[int, int]]:
        """(first, count) of every block."""
        return [(first, min(BLOCK_SLOTS, self.slots - first)) for first in range(0, self.slots, BLOCK_SLOTS)]


def describe(size: Size) -> tuple[TeacherDescription, DatasetDescription]:
    """A teacher and a data set whose answers have this size."""
    names = tuple(str(number) for number in range(size.classes))
    teacher = TeacherDescription(
        id="bench-000000000000",
        arch="bench",
        weights="",
        preprocessing={},
        precision="",
        classes=len(names),
        features=0,
    )
    rows = size.slots
    return teacher, DatasetDescription(
        name="bench/train", rows=rows, classes=names, fingerprint="b", view_policy="crop0"
    )


def make_store(path: Path, *, size: Size) -> Path:
    """A folded cache: its chunks as a fold writes them, without the journal's way there. Returns its array's folder."""
    with CacheWriter.open(path) as writer:
        handle = writer.open_cache(*describe(size), {"logits": size.dtype})
        write_blocks(handle, size=size)
        with writer._ledger.transaction() as ledger:
            move_mark(ledger, cache=handle.index, folded=size.slots)
        # The writer's end brings the Zarr documents up to it.
        handle.folded = size.slots
    return handle.folder / "logits"


def write_blocks(handle: CacheHandle, *, size: Size) -> None:
    """Chunk files and checksums of all slots, rows in no order."""
    order = np.random.default_rng(0).permutation(size.slots)
    segments: dict[str, list[Segment]] = {spec.name: [] for spec in handle.arrays}
    for first, count in size.blocks():
        rows = order[first : first + count]
        parts = {
            "logits": size.values(first, count),
            "rows": rows,
            "labels": rows % size.classes,
            "views": np.zeros(count, np.int32),
            "keys": np.random.default_rng(first).integers(0, 256, (count, 32), dtype=np.uint8),
        }
        for spec in handle.arrays:
            block = np.ascontiguousarray(parts[spec.name], dtype=spec.numpy_dtype)
            write_chunks(handle.folder / spec.name, spec=spec, block=block, start=first, first=first)
            segments[spec.name].append(Segment(first, first + count, crc32c(block)))
    for name, found in segments.items():
        write_segments(handle.folder / name, found)
