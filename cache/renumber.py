"""What the ledger says about the slots of a cache, brought in line when some of them go and the others move up.

Shape key: S slots before, K slots that stay.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from cache.layout import BLOCK_SLOTS
from cache.ledger_schema import SLOT_BITS
from cache.payer import Payer
from cache.upkeep import has_table

Ints = NDArray[np.int64]
Charge = tuple[Payer, int]
"""Who consumed an answer, and the number of its place."""


def drop_slots(database: sqlite3.Connection, *, cache: int, slots: int, folded: int, kept: Ints) -> int:
    """Within a transaction: of the ``slots`` [S] of a cache only ``kept`` [K] stay, ascending; returns those folded.

    Where the first answer to a key goes and other slots of the teacher have its bytes, one of them takes its place and
    its charges. Charges of answers that are gone everywhere stay counted, under a number that no cache has.
    """
    base = cache << SLOT_BITS
    moved = np.full(slots, -1, dtype=np.int64)
    moved[kept] = np.arange(len(kept)) + base
    # A journal may still hold what is folded.
    database.execute("DELETE FROM journal WHERE place >= ? AND place < ?", (base, base + folded))
    heirs = _move_aliases(database, base=base, moved=moved)
    _move_charges(database, cache=cache, moved=moved, heirs=heirs)
    _move_journal(database, base=base, moved=moved, folded=folded)
    folded = int(np.count_nonzero(kept < folded))
    database.execute("UPDATE caches SET folded = ? WHERE id = ?", (folded, cache))
    return folded


def unused_number(database: sqlite3.Connection) -> int:
    """A number that no cache has or had: what is counted under a removed one must not count for another."""
    queries = ["SELECT max(id) FROM caches", "SELECT max(cache) FROM counts", "SELECT max(cache) FROM charges"]
    if has_table(database, "upkeep"):
        queries.append("SELECT max(cache) FROM upkeep")
    return 1 + max(database.execute(query).fetchone()[0] or 0 for query in queries)


def _move_aliases(database: sqlite3.Connection, *, base: int, moved: Ints) -> dict[int, int]:
    """New first answers: old number of the place that goes -> new number of its heir."""
    aliases = database.execute("SELECT place, canonical FROM aliases ORDER BY canonical, place").fetchall()
    widths = _widths(database)
    heirs: dict[int, int] = {}
    after: list[tuple[int, int]] = []
    for canonical, group in groupby(aliases, key=lambda alias: int(alias[1])):
        places = [place for place in (_new(place, base=base, moved=moved) for place, _ in group) if place >= 0]
        first = _new(canonical, base=base, moved=moved)
        if first >= 0:
            after += [(place, first) for place in places]
            continue
        # The one with the most outputs can answer for the others.
        chosen: list[int] = []
        for place in sorted(places, key=lambda place: (-len(widths[place >> SLOT_BITS]), place)):
            wanted = widths[place >> SLOT_BITS]
            found = next((heir for heir in chosen if widths[heir >> SLOT_BITS] >= wanted), None)
            if found is None:
                chosen.append(place)
            else:
                after.append((place, found))
        if chosen:
            heirs[canonical] = chosen[0]
    database.execute("DELETE FROM aliases")
    database.executemany("INSERT INTO aliases VALUES (?, ?)", after)
    return heirs


def _widths(database: sqlite3.Connection) -> dict[int, frozenset[tuple[str, str]]]:
    """Outputs with their dtypes per cache."""
    query = "SELECT caches.id, key, json_extract(value, '$.dtype') FROM caches, json_each(caches.outputs)"
    found: dict[int, set[tuple[str, str]]] = {}
    for cache, name, dtype in database.execute(query):
        found.setdefault(cache, set()).add((name, dtype))
    return {cache: frozenset(outputs) for cache, outputs in found.items()}


def _move_charges(database: sqlite3.Connection, *, cache: int, moved: Ints, heirs: dict[int, int]) -> None:
    """Bits of slots that moved, to where they are; of slots that go, to their heirs, or to a number of their own."""
    base, grave = cache << SLOT_BITS, unused_number(database) << SLOT_BITS
    ours = database.execute("SELECT owner, run, cache, chunk, bits FROM charges WHERE cache = ?", (cache,)).fetchall()
    charges = list(read_charges(ours))
    database.execute("DELETE FROM charges WHERE cache = ?", (cache,))
    after: list[Charge] = []
    for payer, place in charges:
        new = _new(place, base=base, moved=moved)
        after.append((payer, new if new >= 0 else heirs.get(place, grave + place - base)))
    add_charges(database, after)


def read_charges(rows: Iterable[tuple[str, str, int, int, bytes]]) -> Iterator[Charge]:
    """Every (payer, place) of rows (owner, run, cache, chunk, bits) of the table."""
    for owner, run, cache, chunk, bits in rows:
        payer = Payer(owner, run)
        offsets = np.flatnonzero(np.unpackbits(np.frombuffer(bits, dtype=np.uint8), bitorder="little"))
        base = (cache << SLOT_BITS) + chunk * BLOCK_SLOTS
        yield from ((payer, base + offset) for offset in offsets.tolist())


def add_charges(database: sqlite3.Connection, charges: Iterable[Charge]) -> None:
    """Within a transaction: charge who consumed them for places."""
    bitmaps: dict[tuple[str, str, int, int], list[int]] = {}
    for payer, place in charges:
        chunk, offset = divmod(place & ((1 << SLOT_BITS) - 1), BLOCK_SLOTS)
        bitmaps.setdefault((*payer, place >> SLOT_BITS, chunk), []).append(offset)
    for bitmap_id, offsets in bitmaps.items():
        query = "SELECT bits FROM charges WHERE owner = ? AND run = ? AND cache = ? AND chunk = ?"
        found = database.execute(query, bitmap_id)
        (old,) = found.fetchone() or (bytes(BLOCK_SLOTS // 8),)
        bits = np.unpackbits(np.frombuffer(old, dtype=np.uint8), bitorder="little")
        bits[offsets] = 1
        packed = np.packbits(bits, bitorder="little").tobytes()
        database.execute("INSERT OR REPLACE INTO charges VALUES (?, ?, ?, ?, ?)", (*bitmap_id, packed))


def _move_journal(database: sqlite3.Connection, *, base: int, moved: Ints, folded: int) -> None:
    """Entries go up one by one, the lowest first, so that no number is taken twice."""
    for slot in range(folded, len(moved)):
        if moved[slot] < 0:
            database.execute("DELETE FROM journal WHERE place = ?", (base + slot,))
        elif moved[slot] != base + slot:
            database.execute("UPDATE journal SET place = ? WHERE place = ?", (int(moved[slot]), base + slot))


def _new(place: int, *, base: int, moved: Ints) -> int:
    """The new number of a place; -1 where it goes."""
    slot = place - base
    return int(moved[slot]) if 0 <= slot < len(moved) else place
