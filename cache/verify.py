"""Re-reads a cache and says what is wrong with it: checksums, lengths, values that are not finite, the ledger."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from cache.arrays import open_array
from cache.catalog import CatalogEntry, read_catalog
from cache.checksum import check_segments, read_segments
from cache.layout import BLOCK_SLOTS, INDEX_ARRAYS, LEDGER, ArraySpec
from cache.ledger_schema import connect_reader, sqlite_errors
from cache.records import read_records
from shared.errors import CorruptCacheError


def find_damage(path: Path) -> Iterator[str]:
    """One line per finding, none for a sound cache; reads every folded byte, writes nothing.

    Raises `InputError` for a folder that is no cache.
    """
    entries = read_catalog(path)
    yield from _damage_of_ledger(path, entries=entries)
    for entry in entries:
        yield from find_array_damage(entry)


def find_array_damage(entry: CatalogEntry) -> Iterator[str]:
    """One line per finding in the arrays of one cache."""
    for spec in (*entry.specs, *INDEX_ARRAYS):
        yield from _damage_of_array(entry, spec=spec)


def _damage_of_ledger(path: Path, *, entries: Sequence[CatalogEntry]) -> Iterator[str]:
    """Pages that contradict each other, and caches whose Zarr group is gone; a copy without a ledger has none."""
    ledger = path / LEDGER
    try:
        database = connect_reader(path)
        if database is None:
            return
        with closing(database), sqlite_errors(ledger):
            found = [line for (line,) in database.execute("PRAGMA integrity_check(10)") if line != "ok"]
            records = [] if found else read_records(database)
    except CorruptCacheError as error:
        yield str(error)
        return
    yield from (f"{ledger} is damaged ({line}): restore it from a copy of the cache" for line in found)
    slots = {entry.folder: entry.slots for entry in entries}
    for record in records:
        folder = record.folder(path)
        if folder not in slots and record.folded:
            yield f"{folder} is not a Zarr group with attributes: restore its zarr.json from a copy of the cache"
        # Behind the ledger is what a crash may leave; the next writer brings it up.
        elif slots.get(folder, 0) > record.folded:
            yield f"{folder} says {slots[folder]} slots, {ledger} only {record.folded}: restore one of them from a copy"


def _damage_of_array(entry: CatalogEntry, *, spec: ArraySpec) -> Iterator[str]:
    folder = entry.folder / spec.name
    try:
        _, slots, array = open_array(folder)
        if slots != entry.slots:
            yield f"{folder} has {slots} slots, its group says {entry.slots}"
        values = array.head(slots)
        # Block by block: a finding names its slots, and the next block is looked at all the same.
        for first in range(0, slots, BLOCK_SLOTS):
            block = values[first : first + BLOCK_SLOTS]
            if spec.dtype.startswith("float") and not np.isfinite(block).all():
                yield f"{folder} holds values that are not finite in slots {first} to {first + len(block) - 1}"
            try:
                check_segments(folder, first=first, values=block)
            except CorruptCacheError as error:
                yield str(error)
        beyond = [segment for segment in read_segments(folder) if segment.end > slots]
        if beyond:
            yield f"{folder} has checksums for slots up to {beyond[-1].end - 1}, but only {slots} slots"
    except CorruptCacheError as error:
        yield str(error)
