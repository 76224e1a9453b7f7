"""Re-reads a cache and says what is wrong with it: checksums, documents, values, labels beside answers, the ledger."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from cache.alignment import find_misaligned
from cache.arrays import open_array
from cache.catalog import CatalogEntry, read_catalog
from cache.checksum import check_segments, read_segments
from cache.constants import find_constant_damage
from cache.document_damage import find_document_damage
from cache.layout import BLOCK_SLOTS, DATA, INDEX_ARRAYS, LEDGER, ArraySpec
from cache.ledger_schema import connect_reader, sqlite_errors
from cache.ledger_seal import SEAL, check_seal
from cache.records import read_records
from shared.errors import CorruptCacheError, InputError, TeachonceError


def find_damage(path: Path) -> Iterator[str]:
    """One line per finding, none for a sound cache; reads every folded byte, writes nothing.

    Raises `InputError` for a folder that is no cache.
    """
    entries: list[CatalogEntry] = []
    try:
        entries = read_catalog(path, unfinished=True)
    except CorruptCacheError as error:
        yield str(error)
    except InputError as error:
        # A folder that is no cache, or of another format, has no ledger of this one.
        if _has_own_ledger(path):
            yield f"{error}; but {path / LEDGER} is one of a cache: restore {DATA} from a copy"
        else:
            raise
    yield from find_document_damage(path / DATA)
    yield from _damage_of_ledger(path, entries=entries)
    yield from find_constant_damage(path)
    at_rest = is_at_rest(path)
    for entry in entries:
        found = list(find_array_damage(entry, at_rest=at_rest))
        yield from found
        if at_rest:
            yield from _damage_of_padding(entry)
        # What is damaged cannot be compared.
        if not found and any(spec.name == "logits" for spec in entry.specs):
            yield from find_misaligned(entry)


def is_at_rest(path: Path) -> bool:
    """Whether the last writer of a folder has closed it.

    Else a fold may be going on, or a crash may have cut one short: slots and checksums beyond the mark, and shapes
    beyond the group's, are no damage then; nobody reads them, and the next writer brings them in order.
    """
    return (path / SEAL).exists() or not (path / LEDGER).exists()


def find_array_damage(entry: CatalogEntry, *, at_rest: bool) -> Iterator[str]:
    """One line per finding in the arrays of one cache; ``at_rest``: see `is_at_rest`."""
    for spec in (*entry.specs, *INDEX_ARRAYS):
        yield from _damage_of_array(entry, spec=spec, at_rest=at_rest)


def _has_own_ledger(path: Path) -> bool:
    try:
        database = connect_reader(path) if (path / LEDGER).exists() else None
    except TeachonceError:
        return False
    if database is not None:
        database.close()
    return database is not None


def _damage_of_ledger(path: Path, *, entries: Sequence[CatalogEntry]) -> Iterator[str]:
    """Pages that contradict each other, and caches whose Zarr group is gone; a copy without a ledger has none."""
    ledger = path / LEDGER
    try:
        check_seal(path)
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


def _damage_of_array(entry: CatalogEntry, *, spec: ArraySpec, at_rest: bool) -> Iterator[str]:
    folder = entry.folder / spec.name
    try:
        _, slots, array = open_array(folder)
        if slots < entry.slots or (at_rest and slots > entry.slots):
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
        if beyond and at_rest:
            yield f"{folder} has checksums for slots up to {beyond[-1].end - 1}, but only {slots} slots"
    except CorruptCacheError as error:
        yield str(error)


def _damage_of_padding(entry: CatalogEntry) -> Iterator[str]:
    """Bytes after the last slot that are not zeros: nobody reads them, but the disk has changed them."""
    for spec in (*entry.specs, *INDEX_ARRAYS):
        last = entry.folder / spec.name / spec.chunk_name(entry.slots // spec.chunk_slots)
        used = entry.slots % spec.chunk_slots * spec.slot_bytes
        if used and last.is_file() and last.stat().st_size == spec.chunk_bytes:
            with last.open("rb") as file:
                file.seek(used)
                padding = file.read()
            if padding.strip(b"\0"):
                yield f"{last} has bytes other than zero after its last slot: restore it from a copy of the cache"
