"""Answers that are durable but not yet in Zarr."""

import sqlite3
from collections.abc import Iterable

from cache.ledger_schema import SLOT_BITS
from cache.tail import Entry


def insert_entries(database: sqlite3.Connection, *, cache: int, entries: Iterable[Entry]) -> None:
    """Within a transaction: add entries of one cache."""
    base = cache << SLOT_BITS
    database.executemany(
        "INSERT INTO journal VALUES (?, ?, ?, ?, ?, ?)", [(base + entry.slot, *entry[1:]) for entry in entries]
    )


def read_entries(database: sqlite3.Connection, *, cache: int) -> list[Entry]:
    """All entries of one cache in slot order."""
    base = cache << SLOT_BITS
    rows = database.execute(
        "SELECT place - ?, row, view, label, key, answers FROM journal WHERE place >= ? AND place < ? ORDER BY place",
        (base, base, base + (1 << SLOT_BITS)),
    )
    return [Entry(*row) for row in rows]


def move_mark(database: sqlite3.Connection, *, cache: int, folded: int) -> None:
    """Within a transaction: slots before ``folded`` are in Zarr; the commit point of a fold."""
    base = cache << SLOT_BITS
    database.execute("UPDATE caches SET folded = ? WHERE id = ?", (folded, cache))
    database.execute("DELETE FROM journal WHERE place >= ? AND place < ?", (base, base + folded))
