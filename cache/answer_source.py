"""Answers in slot order, wherever they come from: what export, merge and import read.

Shape key: B answers of one block.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cache.layout import BLOCK_SLOTS, AnyArray, Bytes
from cache.reader import CacheReader
from shared.descriptions import DatasetDescription, TeacherDescription

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AnswerBlock:
    """Some answers that follow each other."""

    first: int
    """Slot of the first."""
    rows: Ints
    views: Ints
    labels: Ints
    keys: Bytes
    """uint8 [B, 32]."""
    outputs: dict[str, AnyArray]
    """Arrays [B, ...] in the dtype they are kept in; beside int8, its ``.scale`` and ``.zero``."""


class AnswerSource(Protocol):
    """One teacher's answers about one data set."""

    @property
    def name(self) -> str:
        """How messages call it."""

    @property
    def teacher(self) -> TeacherDescription:
        """Who answered."""

    @property
    def dataset(self) -> DatasetDescription:
        """About what."""

    @property
    def dtypes(self) -> dict[str, str]:
        """Outputs with the dtype they are kept in."""

    @property
    def num_slots(self) -> int:
        """Answers there are."""

    def keys(self, slots: Ints) -> Bytes:
        """Keys of slots [B], uint8 [B, 32]."""

    def block(self, slots: Ints) -> AnswerBlock:
        """Everything about slots [B]."""


class CacheAnswers:
    """The answers of one cache, as its reader sees them."""

    def __init__(self, reader: CacheReader, *, name: str) -> None:
        self.name = name
        self.outputs = reader.outputs
        """Names of what is kept."""
        self.teacher = reader.teacher
        self.dataset = reader.dataset
        self.dtypes = reader.dtypes
        self.forms = reader.forms
        """What they look like."""
        self.num_slots = reader.num_slots
        self._reader = reader

    def keys(self, slots: Ints) -> Bytes:
        """See `AnswerSource`."""
        return self._reader.slot_keys(slots)

    def block(self, slots: Ints) -> AnswerBlock:
        """See `AnswerSource`."""
        rows, views = self._reader.rows_and_views(slots)
        return AnswerBlock(
            first=int(slots[0]) if len(slots) else 0,
            rows=rows,
            views=views,
            labels=self._reader.labels(rows, views),
            keys=self._reader.slot_keys(slots),
            outputs=self._reader.gather(rows, views, encoded=True),
        )

    def column(self, name: str, slots: Ints) -> AnyArray:
        """One array of slots [B]: an output as floats, or rows, views, labels, keys."""
        if name == "keys":
            return self._reader.slot_keys(slots)
        rows, views = self._reader.rows_and_views(slots)
        if name in ("rows", "views"):
            return rows if name == "rows" else views
        return self._reader.labels(rows, views) if name == "labels" else self._reader.gather(rows, views, name)[name]


def slot_ranges(count: int, *, size: int = BLOCK_SLOTS) -> Iterator[Ints]:
    """Slots 0 to count - 1 in blocks."""
    for first in range(0, count, size):
        yield np.arange(first, min(first + size, count), dtype=np.int64)
