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


def read_entries(database: sqlite3.Connection, *, cache: int, first: int) -> list[Entry]:
    """Entries of one cache from slot ``first`` (its mark) on, in slot order."""
    base = cache << SLOT_BITS
    rows = database.execute(
        "SELECT place - ?, row, view, label, key, answers FROM journal WHERE place >= ? AND place < ? ORDER BY place",
        (base, base + first, base + (1 << SLOT_BITS)),
    )
    return [Entry(*row) for row in rows]


def move_mark(database: sqlite3.Connection, *, cache: int, folded: int) -> None:
    """Within a transaction: slots before ``folded`` are in Zarr; the commit point of a fold."""
    database.execute("UPDATE caches SET folded = ? WHERE id = ?", (folded, cache))


def folded_entry(database: sqlite3.Connection, *, cache: int, folded: int) -> int | None:
    """The first slot of one cache that is in Zarr and still in the journal; None where there is none."""
    base = cache << SLOT_BITS
    found = database.execute("SELECT min(place) FROM journal WHERE place >= ? AND place < ?", (base, base + folded))
    (place,) = found.fetchone()
    return None if place is None else place - base


def forget_entries(database: sqlite3.Connection, *, cache: int, end: int) -> None:
    """Within a transaction: drop the entries of one cache before slot ``end``, which are in Zarr."""
    base = cache << SLOT_BITS
    database.execute("DELETE FROM journal WHERE place >= ? AND place < ?", (base, base + end))
