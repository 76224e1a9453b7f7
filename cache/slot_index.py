"""(view, row) -> slot: a table for view 0, sorted arrays for the many other views, a dict for the latest.

Shape key: B rows asked for, N rows, S slots.
"""

import numpy as np
from numpy.typing import NDArray

MERGE_AT = 65_536
"""Latest slots of views other than 0 that are merged into the sorted arrays together."""
VIEW_SHIFT = 40
"""A row and a view make one number: view * 2**40 + row."""

Ints = NDArray[np.int64]


class SlotIndex:
    """4 bytes per row for view 0, 12 bytes per slot of other views; the first slot of a (row, view) stays.

    One thread may add while others look up single rows without a lock: arrays are replaced together, then used.
    """

    def __init__(self, *, num_rows: int) -> None:
        self.num_rows = num_rows
        """Rows that may be asked for; uploads grow it."""
        self._table: NDArray[np.int32] = np.full(num_rows, -1, dtype=np.int32)
        self._sorted = (np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32))
        self._recent: dict[int, int] = {}

    def extend(self, rows: Ints, views: Ints, *, first_slot: int) -> None:
        """Add slots first_slot, first_slot + 1, ... of these rows [S] and views [S]."""
        slots = np.arange(first_slot, first_slot + len(rows), dtype=np.int32)
        clean = views == 0
        if clean.any():
            self._reserve(int(rows[clean].max()) + 1)
            # Backwards, so that of two slots the first stays.
            latest = np.full(len(self._table), -1, dtype=np.int32)
            latest[rows[clean][::-1]] = slots[clean][::-1]
            np.copyto(self._table, latest, where=self._table < 0)
        if not clean.all():
            self._merge(_codes(rows[~clean], views[~clean]), slots[~clean])

    def add(self, row: int, view: int, *, slot: int) -> None:
        """Add one slot."""
        if view == 0:
            self._reserve(row + 1)
            self._table[row] = slot
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
        if view == 0:
            table = self._table
            slot = int(table[row]) if 0 <= row < len(table) else -1
            return slot if slot >= 0 else None
        code = (view << VIEW_SHIFT) + row
        if (found := self._recent.get(code)) is not None:
            return found
        codes, slots = self._sorted
        at = int(np.searchsorted(codes, code))
        return int(slots[at]) if at < len(codes) and codes[at] == code else None

    def slots_of(self, rows: Ints, *, view: int | Ints) -> Ints:
        """Slots [B] of rows [B], -1 where there is none; rows must be within [0, num_rows)."""
        if isinstance(view, int) and view == 0:
            return self._table[rows].astype(np.int64)
        views = np.broadcast_to(np.asarray(view, dtype=np.int64), rows.shape)
        clean = views == 0
        slots = np.full(len(rows), -1, dtype=np.int64)
        slots[clean] = self._table[rows[clean]]
        slots[~clean] = self._search(_codes(rows[~clean], views[~clean]))
        return slots

    def rows_of(self, view: int) -> Ints:
        """Rows that have a slot under a view, ascending."""
        if view == 0:
            return np.flatnonzero(self._table >= 0)
        sorted_codes, _ = self._sorted
        first, end = np.searchsorted(sorted_codes, [view << VIEW_SHIFT, (view + 1) << VIEW_SHIFT])
        recent = [code for code in self._recent if code >> VIEW_SHIFT == view]
        codes = np.concatenate([sorted_codes[first:end], np.array(recent, dtype=np.int64)])
        return np.unique(codes & ((1 << VIEW_SHIFT) - 1))

    def counts(self) -> dict[int, int]:
        """Rows present per view."""
        codes = np.concatenate([self._sorted[0], np.fromiter(self._recent, dtype=np.int64, count=len(self._recent))])
        views, counts = np.unique(codes >> VIEW_SHIFT, return_counts=True)
        clean = int(np.count_nonzero(self._table >= 0))
        others = dict(zip(views.tolist(), counts.tolist(), strict=True))
        return ({0: clean} if clean else {}) | others

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

    def _merge(self, codes: Ints, slots: NDArray[np.int32]) -> None:
        # np.unique gives the first of equals: the answer that was committed first.
        codes, first = np.unique(codes, return_index=True)
        new = self._search_sorted(codes) < 0
        codes, slots = codes[new], slots[first][new]
        known, kept = self._sorted
        at = np.searchsorted(known, codes)
        self._sorted = (np.insert(known, at, codes), np.insert(kept, at, slots))

    def _reserve(self, num_rows: int) -> None:
        self.num_rows = max(self.num_rows, num_rows)
        if num_rows > len(self._table):
            grown = np.full(max(num_rows, 2 * len(self._table)), -1, dtype=np.int32)
            grown[: len(self._table)] = self._table
            self._table = grown


def _codes(rows: Ints, views: Ints) -> Ints:
    return (views.astype(np.int64) << VIEW_SHIFT) + rows
