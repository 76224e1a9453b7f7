"""(view, row) -> slot: a table for each view that answers many rows, sorted arrays for others, a dict for the latest.

Shape key: B rows asked for, N rows, S slots, T views with a table.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

MERGE_AT = 65_536
"""Latest slots of views without a table that are merged into the sorted arrays together."""
VIEW_SHIFT = 40
"""A row and a view make one number: view * 2**40 + row."""
PIECE = 1 << 20
"""Slots learned at once: what this takes beside the index itself stays small."""
TABLE_FROM = 4
"""A view gets a table where it answers one row in this many or more: then a table is not larger than sorted arrays."""

Ints = NDArray[np.int64]
Slots = NDArray[np.int32]


class SlotIndex:
    """4 bytes per row of a view with a table, view 0 always; 12 bytes per slot of others. The first slot of two stays.

    One thread may add while others look up single rows without a lock: arrays are replaced together, then used.
    """

    def __init__(self, *, num_rows: int) -> None:
        self.num_rows = num_rows
        """Rows that may be asked for; uploads grow it."""
        # Slots [T, N], and the table of every view: -1 where it has none, as at the end for views beyond.
        self._dense: tuple[Slots, Ints] = (_empty(1, num_rows), np.array([0, -1]))
        self._sorted: tuple[Ints, Slots] = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32))
        self._recent: dict[int, int] = {}
        self._learned = False

    def extend(self, rows: NDArray[np.integer], views: NDArray[np.integer], *, first_slot: int) -> None:
        """Add slots first_slot, first_slot + 1, ... of these rows [S] and views [S]."""
        if not len(rows):
            return
        if not self._learned:
            self._make_tables(views)
        self._learned = True
        left: list[tuple[Ints, Slots]] = []
        for piece in _pieces(len(rows)):
            slots = np.arange(first_slot + piece.start, first_slot + piece.stop, dtype=np.int32)
            left.append(self._put(rows[piece].astype(np.int64), views[piece].astype(np.int64), slots=slots))
        codes, slots = (np.concatenate(parts) for parts in zip(*left, strict=True))
        if len(codes):
            self._merge(codes, slots)

    def add(self, row: int, view: int, *, slot: int) -> None:
        """Add one slot."""
        table = self._table_of(view)
        if table >= 0:
            self._reserve(row + 1)
            self._dense[0][table, row] = slot
            return
        self._recent[(view << VIEW_SHIFT) + row] = slot
        if len(self._recent) >= MERGE_AT:
            codes = np.fromiter(self._recent, dtype=np.int64, count=len(self._recent))
            slots = np.fromiter(self._recent.values(), dtype=np.int32, count=len(self._recent))
            # In this order: who looks meanwhile finds them in one of the two.
            self._merge(codes, slots)
            self._recent = {}

    def slot_of(self, row: int, view: int) -> int | None:
        """The slot of one row, None where it has none."""
        table = self._table_of(view)
        if table >= 0:
            tables = self._dense[0]
            slot = int(tables[table, row]) if 0 <= row < tables.shape[1] else -1
            return slot if slot >= 0 else None
        code = (view << VIEW_SHIFT) + row
        if (found := self._recent.get(code)) is not None:
            return found
        codes, slots = self._sorted
        at = int(np.searchsorted(codes, code))
        return int(slots[at]) if at < len(codes) and codes[at] == code else None

    def slots_of(self, rows: Ints, *, view: int | Ints) -> Ints:
        """Slots [B] of rows [B], -1 where there is none; rows must be within [0, num_rows), views 0 or more."""
        tables, table_of = self._dense
        if isinstance(view, int):
            table = self._table_of(view)
            if table >= 0:
                found: Ints = tables[table].take(rows).astype(np.int64)
                return found
            return self._search((view << VIEW_SHIFT) + rows)
        views = np.broadcast_to(np.asarray(view, dtype=np.int64), rows.shape)
        chosen = table_of.take(views, mode="clip")
        dense = chosen >= 0
        if dense.all():
            return tables[chosen, rows].astype(np.int64)
        slots = np.empty(len(rows), dtype=np.int64)
        slots[dense] = tables[chosen[dense], rows[dense]]
        slots[~dense] = self._search((views[~dense] << VIEW_SHIFT) + rows[~dense])
        return slots

    def rows_of(self, view: int) -> Ints:
        """Rows that have a slot under a view, ascending."""
        table = self._table_of(view)
        if table >= 0:
            return np.flatnonzero(self._dense[0][table] >= 0)
        sorted_codes, _ = self._sorted
        first, end = np.searchsorted(sorted_codes, [view << VIEW_SHIFT, (view + 1) << VIEW_SHIFT])
        recent = [code for code in self._recent if code >> VIEW_SHIFT == view]
        codes = np.concatenate([sorted_codes[first:end], np.array(recent, dtype=np.int64)])
        return np.unique(codes & ((1 << VIEW_SHIFT) - 1))

    def counts(self) -> dict[int, int]:
        """Rows present per view, by view."""
        tables, table_of = self._dense
        filled = [int(np.count_nonzero(table >= 0)) for table in tables]
        found = {view: filled[table] for view, table in enumerate(table_of.tolist()) if table >= 0 and filled[table]}
        recent = np.fromiter(self._recent, dtype=np.int64, count=len(self._recent))
        codes, _ = self._sorted
        for part in (*(codes[piece] for piece in _pieces(len(codes))), recent):
            for view, count in zip(*np.unique(part >> VIEW_SHIFT, return_counts=True), strict=True):
                found[int(view)] = found.get(int(view), 0) + int(count)
        return dict(sorted(found.items()))

    def _table_of(self, view: int) -> int:
        table_of = self._dense[1]
        return int(table_of[view]) if 0 <= view < len(table_of) else -1

    def _make_tables(self, views: NDArray[np.integer]) -> None:
        """Give a table to every view that answers many rows."""
        counts = np.zeros(1, dtype=np.int64)
        for piece in _pieces(len(views)):
            more = np.bincount(views[piece], minlength=len(counts))
            more[: len(counts)] += counts
            counts = more
        many = np.flatnonzero(counts * TABLE_FROM >= self.num_rows) if self.num_rows else np.empty(0, dtype=np.int64)
        chosen = np.union1d(np.zeros(1, dtype=np.int64), many)
        table_of = np.full(int(chosen.max()) + 2, -1, dtype=np.int64)
        table_of[chosen] = np.arange(len(chosen))
        self._dense = (_empty(len(chosen), self._dense[0].shape[1]), table_of)

    def _put(self, rows: Ints, views: Ints, *, slots: Slots) -> tuple[Ints, Slots]:
        """Write slots whose view has a table; codes and slots of the others."""
        table_of = self._dense[1]
        chosen = table_of.take(views, mode="clip")
        dense = chosen >= 0
        left = ((views[~dense] << VIEW_SHIFT) + rows[~dense], slots[~dense])
        if dense.any():
            self._reserve(int(rows[dense].max()) + 1)
            tables = self._dense[0]
            places = chosen[dense] * tables.shape[1] + rows[dense]
            flat = tables.reshape(-1)
            new = flat[places] < 0
            # Backwards, so that of two slots the first stays.
            flat[places[new][::-1]] = slots[dense][new][::-1]
        return left

    def _search(self, codes: Ints) -> Ints:
        slots = self._search_sorted(codes)
        if self._recent:
            for at_missing in np.flatnonzero(slots < 0):
                slots[at_missing] = self._recent.get(int(codes[at_missing]), -1)
        return slots

    def _search_sorted(self, codes: Ints) -> Ints:
        known, slots = self._sorted
        if not len(known):
            return np.full(len(codes), -1, dtype=np.int64)
        at = np.minimum(np.searchsorted(known, codes), len(known) - 1)
        return np.where(known[at] == codes, slots[at], -1).astype(np.int64)

    def _merge(self, codes: Ints, slots: Slots) -> None:
        codes, slots = _sorted_firsts(codes, slots)
        known, kept = self._sorted
        if len(known):
            new = self._search_sorted(codes) < 0
            codes, slots = codes[new], slots[new]
            at = np.searchsorted(known, codes)
            codes, slots = np.insert(known, at, codes), np.insert(kept, at, slots)
        self._sorted = (codes, slots)

    def _reserve(self, num_rows: int) -> None:
        self.num_rows = max(self.num_rows, num_rows)
        tables, table_of = self._dense
        if num_rows > tables.shape[1]:
            grown = _empty(len(tables), max(num_rows, 2 * tables.shape[1]))
            grown[:, : tables.shape[1]] = tables
            self._dense = (grown, table_of)


def _sorted_firsts(codes: Ints, slots: Slots) -> tuple[Ints, Slots]:
    """Codes in order with their slots; of equal codes only the one with the first slot."""
    if not (np.diff(codes) > 0).all():
        row_bits = int((codes & ((1 << VIEW_SHIFT) - 1)).max()).bit_length()
        slot_bits = int(slots.max()).bit_length()
        if (int(codes.max()) >> VIEW_SHIFT).bit_length() + row_bits + slot_bits < 64:
            codes, slots = _sorted_packed(codes, slots, row_bits=row_bits, slot_bits=slot_bits)
        else:
            order = np.lexsort((slots, codes))
            codes, slots = codes[order], slots[order]
        first = np.append(True, codes[1:] != codes[:-1])
        codes, slots = codes[first], slots[first]
    return codes, slots


def _sorted_packed(codes: Ints, slots: Slots, *, row_bits: int, slot_bits: int) -> tuple[Ints, Slots]:
    """As one number each: sorting numbers is many times faster than sorting their order."""
    rows = codes & ((1 << VIEW_SHIFT) - 1)
    packed = ((((codes >> VIEW_SHIFT) << row_bits) | rows) << slot_bits) | slots
    del rows
    packed.sort()
    slots = (packed & ((1 << slot_bits) - 1)).astype(np.int32)
    packed >>= slot_bits
    return ((packed >> row_bits) << VIEW_SHIFT) | (packed & ((1 << row_bits) - 1)), slots


def _pieces(count: int) -> Iterator[slice]:
    return (slice(start, min(start + PIECE, count)) for start in range(0, count, PIECE))


def _empty(tables: int, num_rows: int) -> Slots:
    return np.full((tables, num_rows), -1, dtype=np.int32)
