"""What was done to a cache beside answering: imports, merges, repairs and removals, kept in its ledger for ever."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cache.ledger import dump

TABLE = """
CREATE TABLE IF NOT EXISTS upkeep (
    id INTEGER PRIMARY KEY, time TEXT NOT NULL, what TEXT NOT NULL, cache INTEGER, detail TEXT NOT NULL)
"""
"""Made when first needed: a ledger from before it has had no upkeep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Upkeep:
    """One thing that was done."""

    id: int
    time: str
    """ISO 8601, UTC."""
    what: str
    """``import``, ``merge``, ``repair`` or ``rm``."""
    cache: int | None
    """Number of the cache in the ledger; None: the whole folder."""
    detail: dict[str, Any]
    """What there is to say, JSON values."""


def note_upkeep(
    database: sqlite3.Connection, *, what: str, cache: int | None, detail: Mapping[str, Any], number: int | None = None
) -> int:
    """Within a transaction: write down what is done, or (``number``) what became of it; returns its number."""
    database.execute(TABLE)
    if number is not None:
        database.execute("UPDATE upkeep SET detail = ? WHERE id = ?", (dump(detail), number))
        return number
    now = datetime.now(UTC).isoformat(timespec="seconds")
    cursor = database.execute(
        "INSERT INTO upkeep (time, what, cache, detail) VALUES (?, ?, ?, ?)", (now, what, cache, dump(detail))
    )
    return cursor.lastrowid or 0


def read_upkeep(database: sqlite3.Connection, *, what: str, cache: int | None = None) -> list[Upkeep]:
    """Everything of one kind that was done, to one cache or (None) to any, oldest first."""
    if not has_table(database, "upkeep"):
        return []
    rows = database.execute("SELECT id, time, what, cache, detail FROM upkeep WHERE what = ? ORDER BY id", (what,))
    done = [
        Upkeep(id=number, time=time, what=kind, cache=of, detail=json.loads(detail))
        for number, time, kind, of, detail in rows
    ]
    return [one for one in done if cache in (None, one.cache)]


def has_table(database: sqlite3.Connection, name: str) -> bool:
    """Whether a ledger has this table: those that few need are made when they are."""
    return bool(database.execute("SELECT count(*) FROM sqlite_master WHERE name = ?", (name,)).fetchone()[0])
