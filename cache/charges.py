"""Which answers each run consumed: one bit per first answer, 8192 slots to a bitmap."""

import sqlite3
from collections.abc import Iterable

from cache.layout import BLOCK_SLOTS
from cache.ledger_schema import SLOT_BITS

BitmapId = tuple[str, int, int]
"""Run, cache, number of the block of 8192 slots."""


class Charges:
    """Bitmaps in memory; staged ones become real when their transaction has."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._bitmaps: dict[BitmapId, bytearray] = {}
        self._charged: dict[str, int] = {}
        self._staged: dict[BitmapId, bytearray] = {}
        self._unwritten: set[BitmapId] = set()
        for run, cache, chunk, bits in database.execute("SELECT run, cache, chunk, bits FROM charges"):
            self._bitmaps[run, cache, chunk] = bytearray(bits)
            self._charged[run] = self._charged.get(run, 0) + int.from_bytes(bits).bit_count()

    @property
    def unwritten(self) -> bool:
        """Whether anything waits for a transaction."""
        return bool(self._unwritten)

    def charged(self, run: str) -> int:
        """Distinct answers that a run consumed."""
        return self._charged.get(run, 0)

    def note(self, run: str, places: Iterable[int]) -> None:
        """Charge first answers that are committed already; durable with the next transaction."""
        for place in places:
            bitmap_id, byte, bit = _locate(run, place)
            bitmap = self._bitmaps.setdefault(bitmap_id, bytearray(BLOCK_SLOTS // 8))
            if not bitmap[byte] & bit:
                bitmap[byte] |= bit
                self._charged[run] = self.charged(run) + 1
                self._unwritten.add(bitmap_id)

    def stage(self, run: str, places: Iterable[int]) -> None:
        """Charge first answers that this transaction commits."""
        for place in places:
            bitmap_id, byte, bit = _locate(run, place)
            if bitmap_id not in self._staged:
                self._staged[bitmap_id] = bytearray(self._bitmaps.get(bitmap_id, bytes(BLOCK_SLOTS // 8)))
            self._staged[bitmap_id][byte] |= bit

    def write(self) -> None:
        """Within a transaction: write everything staged or waiting."""
        waiting = {bitmap_id: self._bitmaps[bitmap_id] for bitmap_id in self._unwritten} | self._staged
        self._database.executemany(
            "INSERT OR REPLACE INTO charges VALUES (?, ?, ?, ?)",
            [(*bitmap_id, bytes(bitmap)) for bitmap_id, bitmap in waiting.items()],
        )

    def apply(self) -> None:
        """The transaction is durable: what was staged is real."""
        for bitmap_id, bitmap in self._staged.items():
            before = int.from_bytes(self._bitmaps.get(bitmap_id, b"")).bit_count()
            run = bitmap_id[0]
            self._charged[run] = self.charged(run) + int.from_bytes(bitmap).bit_count() - before
            self._bitmaps[bitmap_id] = bitmap
        self._staged.clear()
        self._unwritten.clear()

    def forget_staged(self) -> None:
        """The transaction failed."""
        self._staged.clear()


def _locate(run: str, place: int) -> tuple[BitmapId, int, int]:
    cache, slot = place >> SLOT_BITS, place & ((1 << SLOT_BITS) - 1)
    chunk, offset = divmod(slot, BLOCK_SLOTS)
    return (run, cache, chunk), offset >> 3, 1 << (offset & 7)
