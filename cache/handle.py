"""One cache as the writer sees it: one teacher's answers about one data set.

Shape key: B slots, N rows, S slots.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import RLock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cache.arrays import SlotArray, open_own_array
from cache.layout import BLOCK_SLOTS, INDEX_ARRAYS, AnyArray, ArraySpec, Bytes, output_dtypes
from cache.ledger_schema import SLOT_BITS
from cache.slot_index import SlotIndex
from cache.tail import Entry, Tail
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.outputs import beside, calls_per_answer

Kind = frozenset[tuple[str, str]]
"""Outputs with their dtypes."""


class Place(NamedTuple):
    """Where an answer lies: a cache of the ledger, and a slot of it."""

    cache: int
    slot: int

    @property
    def number(self) -> int:
        """The place as one integer."""
        return (self.cache << SLOT_BITS) + self.slot


def place_from(number: int) -> Place:
    """The place of `Place.number`."""
    return Place(number >> SLOT_BITS, number & ((1 << SLOT_BITS) - 1))


class CacheHandle:
    """Made by `CacheWriter.open_cache`; all methods may be called from any thread."""

    def __init__(
        self,
        *,
        index: int,
        folder: Path,
        teacher: TeacherDescription,
        dataset: DatasetDescription,
        specs: tuple[ArraySpec, ...],
        folded: int,
        lock: RLock,
    ) -> None:
        self.index = index
        """Its number in the ledger."""
        self.folder = folder
        """Folder of its Zarr group."""
        self.teacher = teacher
        self.dataset = dataset
        self.specs = specs
        """The arrays of its outputs, in the order of their bytes in the journal."""
        self.outputs = output_dtypes(specs)
        """Name -> dtype of what it keeps."""
        self.kind = kind_of(self.outputs)
        self.calls_per_answer = calls_per_answer(self.outputs)
        """Teacher calls for one answer: input gradients take one more."""
        self.beside = beside(self.outputs)
        """What it keeps besides logits and features."""
        self.image_size = next(
            (
                (spec.attributes["image_height"], spec.attributes["image_width"])
                for spec in specs
                if "image_height" in spec.attributes
            ),
            None,
        )
        """(H, W) of the only images that its outputs can be about; None where any size works."""
        self.folded = folded
        """Slots that are in Zarr."""
        start = folded - folded % BLOCK_SLOTS
        self.aliases: dict[int, int] = {}
        """Slot -> number of the place that first answered its key."""
        self._lock = lock
        self._slots = SlotIndex(num_rows=dataset.rows)
        # One tuple, replaced as a whole: who reads takes both as they belong together, and waits for nobody.
        self._parts = (self.map_before(start), Tail(specs, start=start))

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        """Outputs and index arrays."""
        return (*self.specs, *INDEX_ARRAYS)

    @property
    def tail(self) -> Tail:
        """Slots that are not in whole blocks on disk."""
        return self._parts[1]

    @property
    def num_slots(self) -> int:
        """Committed slots."""
        return self.tail.end

    def slot_of(self, row: int, view: int = 0) -> int | None:
        """The slot of a row under a view, None where it is not answered; waits for nobody."""
        return self._slots.slot_of(row, view)

    def place_of(self, row: int, view: int = 0) -> Place | None:
        """The place of a row under a view, None where it is not answered."""
        slot = self.slot_of(row, view)
        return None if slot is None else Place(self.index, slot)

    def present(self, view: int = 0) -> NDArray[np.bool_]:
        """Which rows are answered, bool [N]."""
        with self._lock:
            mask = np.zeros(self.dataset.rows or self._slots.num_rows, dtype=np.bool_)
            mask[self._slots.rows_of(view)] = True
            return mask

    def views(self) -> list[int]:
        """Views with an answer, ascending."""
        with self._lock:
            return list(self._slots.counts())

    # What follows is for the writer, under its lock.

    def read_from_disk(self, whole: dict[str, SlotArray], *, before: int) -> None:
        """Answer for whole blocks before this slot from ``whole`` (see `map_before`), from memory no longer."""
        self._parts = (whole, self.tail.after(before))

    def open_folded(self, spec: ArraySpec) -> SlotArray:
        """All folded slots of one array, the block that is not whole included."""
        return open_own_array(self.folder / spec.name, spec=spec, slots=self.folded)

    def load_index(self) -> None:
        """Learn all slots, once, when the tail is loaded."""
        if self.tail.start:
            rows, views = (self._parts[0][name].head(self.tail.start) for name in ("rows", "views"))
            self._slots.extend(rows, views, first_slot=0)
        rows, views = (self.tail.values(name, first=self.tail.start, end=self.tail.end) for name in ("rows", "views"))
        self._slots.extend(rows, views, first_slot=self.tail.start)

    def append(self, entries: Iterable[Entry]) -> None:
        """Take on entries that are durable."""
        entries = list(entries)
        self.tail.append(entries)
        for entry in entries:
            self._slots.add(entry.row, entry.view, slot=entry.slot)

    def all_keys(self) -> Iterator[tuple[int, Bytes]]:
        """Keys of all slots, uint8 [n, 32] each with the slot that it begins at; those on disk are not copied."""
        whole, tail = self._parts
        if tail.start:
            yield 0, whole["keys"].head(tail.start)
        yield tail.start, tail.values("keys", first=tail.start, end=tail.end)

    def take(self, name: str, slots: NDArray[np.int64]) -> AnyArray:
        """Slots [B] of one array, folded or not, a copy in the stored dtype; waits for nobody."""
        whole, tail = self._parts
        if not tail.start:
            return tail.take(name, slots)
        spec = next(spec for spec in self.arrays if spec.name == name)
        values = np.empty((len(slots), *spec.shape), dtype=spec.numpy_dtype)
        late = slots >= tail.start
        if not late.any():
            whole[name].take(slots, out=values)
            return values
        early = np.empty((int(np.count_nonzero(~late)), *spec.shape), dtype=spec.numpy_dtype)
        whole[name].take(slots[~late], out=early)
        values[~late] = early
        values[late] = tail.take(name, slots[late])
        return values

    def answers(self, slot: int, specs: tuple[ArraySpec, ...]) -> bytes:
        """Bytes of these outputs of one slot, one after another."""
        one = np.array([slot], dtype=np.int64)
        return b"".join(self.take(spec.name, one).tobytes() for spec in specs)

    def key(self, slot: int) -> bytes:
        """Key of one slot."""
        return self.take("keys", np.array([slot], dtype=np.int64)).tobytes()

    def canonical(self, slot: int) -> int:
        """Number of the place that first answered the key of a slot."""
        return self.aliases.get(slot, Place(self.index, slot).number)

    def map_before(self, end: int) -> dict[str, SlotArray]:
        """All arrays up to a slot that begins a block; the one method here that needs no lock."""
        if not end:
            return {}
        return {spec.name: open_own_array(self.folder / spec.name, spec=spec, slots=end) for spec in self.arrays}


def kind_of(outputs: Mapping[str, str]) -> Kind:
    """What must agree for one cache's answer to serve another: outputs with their dtypes."""
    return frozenset(outputs.items())
