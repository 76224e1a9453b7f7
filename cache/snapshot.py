"""One cache at one moment: its arrays, what the journal adds to them, and the index over both.

Shape key: B slots asked for, N rows, S slots.
"""

from contextlib import closing
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.arrays import SlotArray, open_array
from cache.catalog import CatalogEntry
from cache.checked import CheckedArray
from cache.document_damage import check_documents
from cache.encoding import decode_rows
from cache.journal import read_entries
from cache.layout import ENCODED, INDEX_ARRAYS, LEDGER, AnyArray, ArraySpec, companions
from cache.ledger_schema import connect_reader, sqlite_errors
from cache.ledger_seal import check_seal
from cache.placement import place_arrays
from cache.slot_index import SlotIndex
from cache.tail import Tail
from shared.errors import CorruptCacheError, InputError

Ints = NDArray[np.int64]


class Snapshot:
    """Folded slots, then journalled ones."""

    def __init__(
        self,
        entry: CatalogEntry,
        *,
        folded: int | None,
        tail: Tail | None,
        in_memory: bool = False,
        check: bool = False,
    ) -> None:
        """``folded``: the ledger's mark where it is known; shapes may lag behind it, never run ahead."""
        specs = (*entry.specs, *INDEX_ARRAYS)
        opened = {spec.name: open_array(entry.folder / spec.name, slots=folded) for spec in specs}
        for spec in specs:
            found = opened[spec.name][0]
            if found.shape != spec.shape or found.numpy_dtype != spec.numpy_dtype:
                raise CorruptCacheError(
                    f"{entry.folder / spec.name} holds {found.dtype} {list(found.shape)} per slot, "
                    f"not {spec.dtype} {list(spec.shape)}: restore it from a copy of the cache"
                )
        self.specs = {spec.name: spec for spec in specs}
        # A fold lifts the shapes one after another: what all arrays hold is what is there.
        self.folded = min(slots for _, slots, _ in opened.values())
        self._arrays: dict[str, SlotArray] = {name: array for name, (_, _, array) in opened.items()}
        answers, self.fits = place_arrays(
            {spec.name: self._arrays[spec.name] for spec in entry.specs}, in_memory=in_memory
        )
        """Whether all answers fit into memory."""
        self._arrays |= answers
        if check:
            check_documents(entry)
            self._arrays = {
                name: CheckedArray(array, folder=entry.folder / name, spec=self.specs[name], slots=opened[name][1])
                for name, array in self._arrays.items()
            }
        self._tail = tail if tail is not None and tail.end > self.folded else None
        self.slots = self.folded if self._tail is None else self._tail.end
        self.index = SlotIndex(num_rows=entry.dataset.rows)
        self._learn(*(self._arrays[name].head(self.folded) for name in ("rows", "views")), entry=entry, first_slot=0)
        if self._tail is not None:
            late = [self._tail.values(name, first=self.folded, end=self.slots) for name in ("rows", "views")]
            self._learn(*late, entry=entry, first_slot=self.folded)

    @cached_property
    def num_views(self) -> int:
        """Views that have an answer."""
        return len(self.index.counts())

    def _learn(self, rows: AnyArray, views: AnyArray, *, entry: CatalogEntry, first_slot: int) -> None:
        if len(rows) and entry.dataset.rows and not 0 <= rows.min() <= rows.max() < entry.dataset.rows:
            raise CorruptCacheError(f"{entry.folder} holds rows that {entry.dataset.name} does not have: restore it")
        self.index.extend(rows, views, first_slot=first_slot)

    def column(self, name: str) -> Ints:
        """All slots of an index array of integers, int64 [S]."""
        values = self._arrays[name].head(self.folded).astype(np.int64)
        if self._tail is None:
            return values
        late = self._tail.values(name, first=self.folded, end=self._tail.end)
        return np.concatenate([values, late.astype(np.int64)])

    def will_need(self, name: str, slots: Ints) -> None:
        """Slots [B] of one output are asked for soon."""
        if not self.fits:
            for spec in (self.specs[name], *companions(self.specs[name])):
                self._arrays[spec.name].will_need(slots[slots < self.folded])

    def answers(self, name: str, slots: Ints, *, out: AnyArray | None = None) -> AnyArray:
        """Slots [B] of one output as callers see it, written into ``out`` if given."""
        spec = self.specs[name]
        if out is not None:
            _check_out(out, shape=(len(slots), *spec.shape), spec=spec)
        if spec.dtype != ENCODED:
            return self.take(name, slots, out=out)
        steps, scale, zero = (self.take(array.name, slots) for array in (spec, *companions(spec)))
        return decode_rows(steps, scale, zero, out=out)

    def take(self, name: str, slots: Ints, *, out: AnyArray | None = None) -> AnyArray:
        """Slots [B] of one array as they are kept, written into ``out`` if given."""
        spec = self.specs[name]
        values = np.empty((len(slots), *spec.shape), dtype=spec.numpy_dtype) if out is None else out
        if self._tail is None:
            self._arrays[name].take(slots, out=values)
            return values
        late = slots >= self.folded
        early = np.empty((int(np.count_nonzero(~late)), *spec.shape), dtype=spec.numpy_dtype)
        self._arrays[name].take(slots[~late], out=early)
        values[~late] = early
        values[late] = self._tail.take(name, slots[late])
        return values


def _check_out(out: AnyArray, *, shape: tuple[int, ...], spec: ArraySpec) -> None:
    """Raise `InputError` for a caller's array that answers cannot be written into as they are."""
    if out.shape != shape or out.dtype != spec.answer_dtype or not (out.flags.c_contiguous and out.flags.writeable):
        raise InputError(
            f"{spec.name} cannot be written into {out.dtype} {list(out.shape)}: "
            f"give a contiguous, writeable array of {spec.answer_dtype} {list(shape)}"
        )


def read_snapshot(
    path: Path, *, entry: CatalogEntry, journal: bool, in_memory: bool = False, check: bool = False
) -> Snapshot:
    """What is committed now; ``journal`` adds what is not folded yet, from the ledger in the cache's folder."""
    if not journal:
        return Snapshot(entry, folded=None, tail=None, in_memory=in_memory, check=check)
    if check:
        check_seal(path)
    folded, tail = _read_journal(path, entry=entry)
    return Snapshot(entry, folded=folded, tail=tail, in_memory=in_memory, check=check)


def _read_journal(path: Path, *, entry: CatalogEntry) -> tuple[int, Tail]:
    database = connect_reader(path)
    if database is None:
        raise InputError(f"{path} has no ledger that can be read here: open it with journal=False")
    with closing(database), sqlite_errors(path / LEDGER):
        # One transaction: mark and journal are of the same moment.
        database.execute("BEGIN")
        found = database.execute(
            "SELECT id, folded FROM caches WHERE teacher = ? AND dataset = ?", (entry.teacher.id, entry.dataset.name)
        ).fetchone()
        if found is None:
            raise CorruptCacheError(f"the ledger of {path} does not list {entry.dataset.name}: restore it from a copy")
        number, folded = found
        entries = read_entries(database, cache=number, first=folded)
    tail = Tail(entry.specs, start=folded)
    tail.append(entries)
    return folded, tail
