"""A whole copy of a cache, made while a server writes it: the ledger at one moment, the Zarr files up to its mark."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from cache.atomic_file import make_folders, write_atomic
from cache.checksum import read_segments, write_segments
from cache.constants import copy_constants
from cache.layout import INDEX_ARRAYS, LEDGER, ArraySpec
from cache.ledger import Ledger
from cache.ledger_schema import connect_reader, sqlite_errors
from cache.moves import pending_moves
from cache.publish import cache_documents, ledger_documents, write_documents
from cache.records import CacheRecord, read_records
from cache.staging import staged_folder
from cache.stitched import check_chunk_file
from cache.verify import find_damage
from cache.writer import CacheWriter
from shared.errors import CorruptCacheError, InputError

ATTEMPTS = 5
"""Times a ledger is copied that changes hands meanwhile."""


def back_up(path: Path, target: Path) -> None:
    """Copy the cache at ``path`` to ``target``, which must be absent or empty; verified before it appears.

    Nobody is kept waiting: the ledger is read at one moment, chunk files are never changed, only replaced by longer
    ones. Raises `CorruptCacheError` for a damaged cache, and `InputError` where there is no ledger.
    """
    if not (path / LEDGER).exists():
        raise InputError(f"{path} has no {LEDGER}: it is no whole cache; copy the folder as it is")
    if path.resolve() in (target.resolve(), *target.resolve().parents):
        raise InputError(f"{target} lies in the cache {path}: name a place outside of it")
    with staged_folder(target) as folder:
        _copy_ledger(path, folder)
        with closing(Ledger(folder)) as ledger:
            if pending_moves(ledger.database):
                raise InputError(
                    f"files of {path} are being moved (by logit-cache or fill --add-outputs, perhaps one that was"
                    f" killed): try again when that is done; logit-cache fold {path} finishes what was killed"
                )
            for record in read_records(ledger.database):
                _copy_data(path, folder, record=record)
                write_documents(cache_documents(folder, record=record, folded=record.folded, ledger=ledger))
                copy_constants(path, folder, teacher=record.teacher.id)
            write_documents(ledger_documents(folder, ledger=ledger))
        # Its first writer folds what was in the journal, so that the copy can be read without the ledger.
        CacheWriter.open(folder).close()
        findings = list(find_damage(folder))
        if findings:
            raise CorruptCacheError(f"{path} was not copied, it is damaged: {findings[0]}")


def _copy_ledger(path: Path, folder: Path) -> None:
    """The ledger as of one moment; what a server commits later is not in it."""
    for _ in range(ATTEMPTS):
        before = _stamp(path)
        source = connect_reader(path)
        if source is None:
            raise InputError(f"the ledger of {path} cannot be read here: its write-ahead log needs a writable folder")
        with (
            closing(source),
            sqlite_errors(path / LEDGER),
            closing(sqlite3.connect(folder / LEDGER, isolation_level=None)) as copy,
        ):
            copy.execute("PRAGMA synchronous = FULL")
            source.backup(copy)
        # Without a write-ahead log it was read as a file that nobody writes: unless someone began to.
        if before is None or before == _stamp(path):
            return
    raise InputError(f"{path} was opened and closed by writers {ATTEMPTS} times while it was copied: try again")


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a ledger that is at rest; None where a write-ahead log makes its readers see one moment."""
    if (path / (LEDGER + "-wal")).exists():
        return None
    found = (path / LEDGER).stat()
    return found.st_size, found.st_mtime_ns


def _copy_data(path: Path, folder: Path, *, record: CacheRecord) -> None:
    """Chunk files and checksums of the slots before the mark."""
    for spec in (*record.specs, *INDEX_ARRAYS):
        source, target = record.folder(path) / spec.name, record.folder(folder) / spec.name
        make_folders(target)
        for name, parts in _chunks(source, spec=spec, slots=record.folded):
            write_atomic(target / name, parts)
        kept = [segment for segment in read_segments(source) if segment.end <= record.folded]
        if kept:
            write_segments(target, kept)


def _chunks(source: Path, *, spec: ArraySpec, slots: int) -> Iterator[tuple[str, list[bytes]]]:
    """Chunk files by name; what a fold has added since to the last one is left out."""
    for index in range(-(-slots // spec.chunk_slots)):
        file = source / spec.chunk_name(index)
        check_chunk_file(file, spec=spec)
        data = file.read_bytes()
        used = min(spec.chunk_slots, slots - index * spec.chunk_slots) * spec.slot_bytes
        yield file.name, [data[:used], bytes(spec.chunk_bytes - used)]
