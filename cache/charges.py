"""Which answers each payer consumed: one bit per first answer, 8192 slots to a bitmap."""

import sqlite3
from collections.abc import Iterable

from cache.layout import BLOCK_SLOTS
from cache.ledger_schema import SLOT_BITS
from cache.payer import Payer

BlockId = tuple[int, int]
"""Cache, number of the block of 8192 slots."""
BitmapId = tuple[Payer, int, int]
"""Payer, and a `BlockId`."""


class Tally:
    """Distinct answers under one kind of name, whoever else consumed them."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self._unions: dict[tuple[str, BlockId], int] = {}

    def add(self, name: str, block: BlockId, bits: int) -> None:
        """Take on the bits of one block."""
        before = self._unions.get((name, block), 0)
        after = before | bits
        if after != before:
            self._unions[name, block] = after
            self.counts[name] = self.counts.get(name, 0) + (after ^ before).bit_count()


class Charges:
    """Bitmaps in memory; staged ones become real when their transaction has."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._bitmaps: dict[BitmapId, bytearray] = {}
        self._runs, self._owners = Tally(), Tally()
        self._staged: dict[BitmapId, bytearray] = {}
        self._unwritten: set[BitmapId] = set()
        for owner, run, cache, chunk, bits in database.execute("SELECT owner, run, cache, chunk, bits FROM charges"):
            bitmap_id = (Payer(owner, run), cache, chunk)
            self._bitmaps[bitmap_id] = bytearray(bits)
            self._tally(bitmap_id, int.from_bytes(bits, "little"))

    @property
    def unwritten(self) -> bool:
        """Whether anything waits for a transaction."""
        return bool(self._unwritten)

    def charged(self, run: str) -> int:
        """Distinct answers that a run consumed, whoever asked under its name."""
        return self._runs.counts.get(run, 0)

    def charged_to_owner(self, owner: str) -> int:
        """Distinct answers that an owner consumed, under whatever run."""
        return self._owners.counts.get(owner, 0)

    def note(self, payer: Payer, places: Iterable[int]) -> None:
        """Charge first answers that are committed already; durable with the next transaction."""
        changed: set[BitmapId] = set()
        for place in places:
            bitmap_id, byte, bit = _locate(payer, place)
            bitmap = self._bitmaps.setdefault(bitmap_id, bytearray(BLOCK_SLOTS // 8))
            if not bitmap[byte] & bit:
                bitmap[byte] |= bit
                changed.add(bitmap_id)
        for bitmap_id in changed:
            self._tally(bitmap_id, int.from_bytes(self._bitmaps[bitmap_id], "little"))
        self._unwritten |= changed

    def stage(self, payer: Payer, places: Iterable[int]) -> None:
        """Charge first answers that this transaction commits."""
        for place in places:
            bitmap_id, byte, bit = _locate(payer, place)
            if bitmap_id not in self._staged:
                self._staged[bitmap_id] = bytearray(self._bitmaps.get(bitmap_id, bytes(BLOCK_SLOTS // 8)))
            self._staged[bitmap_id][byte] |= bit

    def write(self) -> None:
        """Within a transaction: write everything staged or waiting."""
        waiting = {bitmap_id: self._bitmaps[bitmap_id] for bitmap_id in self._unwritten} | self._staged
        self._database.executemany(
            "INSERT OR REPLACE INTO charges (owner, run, cache, chunk, bits) VALUES (?, ?, ?, ?, ?)",
            [(*payer, cache, chunk, bytes(bitmap)) for (payer, cache, chunk), bitmap in waiting.items()],
        )

    def apply(self) -> None:
        """The transaction is durable: what was staged is real."""
        for bitmap_id, bitmap in self._staged.items():
            self._bitmaps[bitmap_id] = bitmap
            self._tally(bitmap_id, int.from_bytes(bitmap, "little"))
        self._staged.clear()
        self._unwritten.clear()

    def forget_staged(self) -> None:
        """The transaction failed."""
        self._staged.clear()

    def _tally(self, bitmap_id: BitmapId, bits: int) -> None:
        (owner, run), cache, chunk = bitmap_id
        self._runs.add(run, (cache, chunk), bits)
        self._owners.add(owner, (cache, chunk), bits)


def _locate(payer: Payer, place: int) -> tuple[BitmapId, int, int]:
    cache, slot = place >> SLOT_BITS, place & ((1 << SLOT_BITS) - 1)
    chunk, offset = divmod(slot, BLOCK_SLOTS)
    return (payer, cache, chunk), offset >> 3, 1 << (offset & 7)
