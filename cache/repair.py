"""Takes damaged answers out of a cache: what is sound stays and moves up, what was there is kept aside.

Built beside; then one transaction of the ledger decides; then folders are swapped. Shape key: S slots.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from cache.atomic_file import make_folders, sync_folder, write_atomic
from cache.checksum import Segment, crc32c, write_segments
from cache.damage import DamagedArray, Flags
from cache.fold import write_chunks
from cache.layout import BLOCK_SLOTS, DATA, DOCUMENT, INDEX_ARRAYS, LEDGER
from cache.ledger import Ledger
from cache.ledger_schema import SLOT_BITS, sqlite_errors
from cache.lock import WriterLock
from cache.moves import STAGING, finish_moves, plan_moves
from cache.publish import cache_documents, publish, write_documents
from cache.records import CacheRecord, read_records
from cache.renumber import drop_slots
from cache.upkeep import note_upkeep
from cache.zarr_documents import array_document, read_document
from shared.errors import CorruptCacheError, InputError

QUARANTINE = "quarantine"
"""Folder in a cache for what repairs took out, by their time."""
COUNTS = ("attempts", "teacher_calls", "ledger", "crc32c")
"""Attributes that lag behind the ledger between two folds, and the checksum over them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """What was wrong with one cache, and what a repair took out of it."""

    teacher: str
    dataset: str
    answers: int
    """Answers that are gone from it; 0 where only documents were written anew."""
    kept: int
    """Answers that stay."""
    rows: tuple[tuple[int, int], ...]
    """(row, view) of the answers that are gone, as far as they can be read."""
    reasons: tuple[str, ...]
    """Which files were damaged, and how."""
    quarantine: Path | None
    """Where the folder from before is kept; None where nothing was taken out."""


def repair_cache(path: Path, *, keep_unchecked: bool = False) -> list[Loss]:
    """Take every damaged answer out of the cache at ``path``; empty for a sound one.

    Calls stay counted, and what is asked again is a call again. ``keep_unchecked`` keeps answers whose checksum cannot
    be read. Raises `CacheLockedError` beside a writer, `CorruptCacheError` for a damaged ledger (nothing can replace
    its counts), `DiskFullError`; nothing has changed then.
    """
    if not (path / LEDGER).exists():
        raise InputError(f"{path} has no {LEDGER}: copy its data anew from the cache it came from")
    lock = WriterLock(path)
    try:
        records = _prepare(path)
        losses = [_repair(path, record=record, keep_unchecked=keep_unchecked) for record in records]
        return [loss for loss in losses if loss is not None]
    finally:
        lock.release()


def _prepare(path: Path) -> list[CacheRecord]:
    """Finish what an earlier command began; the caches there are."""
    with closing(Ledger(path)) as ledger, sqlite_errors(path / LEDGER):
        database = ledger.database
        (verdict,) = database.execute("PRAGMA integrity_check(1)").fetchone()
        if verdict != "ok":
            raise CorruptCacheError(
                f"{path / LEDGER} is damaged ({verdict}): its counts cannot be made up, restore it from a backup"
            )
        finish_moves(path, database=database)
        shutil.rmtree(path / STAGING, ignore_errors=True)
        return read_records(database)


def _repair(path: Path, *, record: CacheRecord, keep_unchecked: bool) -> Loss | None:
    folder = record.folder(path)
    arrays = [
        DamagedArray(folder / spec.name, spec=spec, slots=record.folded, keep_unchecked=keep_unchecked)
        for spec in (*record.specs, *INDEX_ARRAYS)
    ]
    sound = np.logical_and.reduce([array.sound for array in arrays])
    reasons = [reason for array in arrays for reason in array.reasons]
    # Before anything is moved: they are read from the files that are.
    rows = _lost_rows(arrays, sound=sound)
    quarantine = None
    if not sound.all() or reasons:
        quarantine = _take_out(path, record=record, arrays=arrays, sound=sound, reasons=reasons)
    else:
        with closing(Ledger(path)) as ledger:
            reasons = _wrong_documents(path, record=record, ledger=ledger)
            publish(path, record=record, folded=record.folded, ledger=ledger)
        if not reasons:
            return None
    return Loss(
        teacher=record.teacher.id,
        dataset=record.dataset.name,
        answers=int(np.count_nonzero(~sound)),
        kept=int(np.count_nonzero(sound)),
        rows=rows,
        reasons=tuple(reasons),
        quarantine=quarantine,
    )


def _take_out(
    path: Path, *, record: CacheRecord, arrays: Sequence[DamagedArray], sound: Flags, reasons: Sequence[str]
) -> Path:
    """Keep only the sound slots; returns where the folder from before is."""
    now = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    group = record.folder(path).relative_to(path)
    quarantine = Path(QUARANTINE) / now / group.relative_to(DATA)
    built = Path(STAGING) / str(record.id)
    count = int(np.count_nonzero(sound))
    with closing(Ledger(path)) as ledger:
        for array in arrays:
            _build(array, path / built / array.spec.name, sound=sound)
        (attributes,) = (
            document
            for where, document in cache_documents(path, record=record, folded=count, ledger=ledger)
            if where == path / group
        )
        write_documents([(path / built, attributes)])
        sync_folder(path / built)
        with ledger.transaction() as database:
            base = record.id << SLOT_BITS
            (last,) = database.execute(
                "SELECT max(place) - ? FROM journal WHERE place >= ? AND place < ?",
                (base, base, base + (1 << SLOT_BITS)),
            ).fetchone()
            slots = max(record.folded, -1 if last is None else last + 1)
            kept = np.concatenate([np.flatnonzero(sound), np.arange(record.folded, slots)])
            drop_slots(database, cache=record.id, slots=slots, folded=record.folded, kept=kept)
            plan_moves(database, [(str(group), str(quarantine)), (str(built), str(group))])
            detail = {"lost": len(sound) - count, "kept": count, "damage": list(reasons), "quarantine": str(quarantine)}
            note_upkeep(database, what="repair", cache=record.id, detail=detail)
        finish_moves(path, database=ledger.database)
    with closing(Ledger(path)) as ledger:
        publish(path, record=record, folded=count, ledger=ledger)
    return path / quarantine


def _build(array: DamagedArray, folder: Path, *, sound: Flags) -> None:
    """The sound slots of one array as a folder of their own; whole sound blocks at its beginning are shared."""
    make_folders(folder)
    lost = np.flatnonzero(~sound)
    first_lost = int(lost[0]) if len(lost) else len(sound)
    shared = first_lost - first_lost % BLOCK_SLOTS
    for index in range(shared // array.spec.chunk_slots):
        _link(array.folder / array.spec.chunk_name(index), folder)
    segments = []
    for first in range(0, shared, BLOCK_SLOTS):
        segments += _segments_of_block(array, first=first)
    at = shared
    for values in array.sound_blocks(sound, start=shared):
        write_chunks(folder, spec=array.spec, block=values, start=at, first=at)
        segments.append(Segment(at, at + len(values), crc32c(values)))
        at += len(values)
    write_segments(folder, segments)
    write_documents([(folder, array_document(array.spec, slots=at))])
    sync_folder(folder)


def _link(file: Path, folder: Path) -> None:
    """Chunk files are never written again, only replaced: one file can be in two folders."""
    try:
        os.link(file, folder / file.name)
    except OSError:
        # A file system without hard links.
        write_atomic(folder / file.name, [file.read_bytes()])


def _segments_of_block(array: DamagedArray, *, first: int) -> list[Segment]:
    segments = [segment for segment in array.segments if first <= segment.first < first + BLOCK_SLOTS]
    if sum(segment.end - segment.first for segment in segments) == BLOCK_SLOTS:
        return segments
    values, _ = array.read_block(first)
    return [Segment(first, first + len(values), crc32c(values))]


def _lost_rows(arrays: Sequence[DamagedArray], *, sound: Flags) -> tuple[tuple[int, int], ...]:
    by_name = {array.spec.name: array for array in arrays}
    rows, views = by_name["rows"], by_name["views"]
    lost = np.flatnonzero(~sound & rows.sound & views.sound)
    found: list[tuple[int, int]] = []
    for block in np.unique(lost // BLOCK_SLOTS).tolist():
        at = lost[lost // BLOCK_SLOTS == block] - block * BLOCK_SLOTS
        values = (array.read_block(block * BLOCK_SLOTS)[0][at].tolist() for array in (rows, views))
        found += zip(*values, strict=True)
    return tuple(found)


def _wrong_documents(path: Path, *, record: CacheRecord, ledger: Ledger) -> list[str]:
    """Zarr documents that are gone, damaged, or say something else than the ledger."""
    documents = cache_documents(path, record=record, folded=record.folded, ledger=ledger)
    wrong = [where for where, document in documents if _without_counts(_read(where)) != _without_counts(document)]
    return [f"{where / DOCUMENT} is written anew from the ledger" for where in wrong]


def _without_counts(document: dict[str, Any] | None) -> dict[str, Any]:
    """Counts lag behind the ledger between two folds, and that is no damage."""
    attributes = (document or {}).get("attributes")
    if document is None or not isinstance(attributes, dict):
        return {}
    return document | {"attributes": {name: value for name, value in attributes.items() if name not in COUNTS}}


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        return read_document(folder)
    except CorruptCacheError:
        return None
