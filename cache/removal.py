"""Takes a teacher, or what it said about one data set, out of a cache; what was paid stays counted for ever."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cache.constants import FOLDER as CONSTANTS
from cache.info import folder_bytes
from cache.layout import ADDING, DATA, LEDGER
from cache.ledger import Ledger
from cache.ledger_schema import SLOT_BITS, connect_reader, sqlite_errors
from cache.lock import WriterLock
from cache.moves import STAGING, finish_moves, plan_moves
from cache.publish import ledger_documents, write_documents
from cache.records import CacheRecord, read_records
from cache.renumber import drop_slots
from cache.upkeep import note_upkeep
from shared.errors import InputError, UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """One cache that is to go."""

    record: CacheRecord
    answers: int
    """Its slots, folded or not."""
    size_bytes: int
    """What its folder takes."""
    teacher_calls: int
    """What its answers cost: stays counted."""


def plan_removal(path: Path, *, what: str) -> list[Removal]:
    """The caches of ``what``, ``TEACHER`` or ``TEACHER/NAME/SPLIT``; the id may be shortened to what tells it apart.

    Raises `UnknownNameError` listing what there is, `InputError` for a folder without a ledger.
    """
    database = connect_reader(path) if (path / LEDGER).exists() else None
    if database is None:
        raise InputError(
            f"{path} has no {LEDGER}: answers are removed from a cache, a copy of its data is just deleted"
        )
    with closing(database), sqlite_errors(path / LEDGER):
        chosen = _choose(read_records(database), what=what, path=path)
        counts = {
            record.id: database.execute(
                "SELECT ifnull(sum(teacher_calls), 0), (SELECT 1 + max(place) - ? FROM journal WHERE place >= ?"
                " AND place < ?) FROM counts WHERE cache = ?",
                (*_places(record.id), record.id),
            ).fetchone()
            for record in chosen
        }
    return [
        Removal(
            record=record,
            answers=max(record.folded, counts[record.id][1] or 0),
            size_bytes=folder_bytes(record.folder(path)),
            teacher_calls=counts[record.id][0],
        )
        for record in chosen
    ]


def remove(path: Path, *, what: str) -> list[Removal]:
    """Remove what `plan_removal` names, all in one transaction; raises `CacheLockedError` beside a writer."""
    if not (path / LEDGER).exists():
        plan_removal(path, what=what)
    lock = WriterLock(path)
    try:
        with closing(Ledger(path)) as ledger, sqlite_errors(path / LEDGER):
            finish_moves(path, database=ledger.database)
            removals = plan_removal(path, what=what)
            with ledger.transaction() as database:
                for removal in removals:
                    _forget(path, ledger=ledger, removal=removal)
                left = {record.teacher.id for record in read_records(database)}
                gone = sorted({removal.record.teacher.id for removal in removals} - left)
                plan_moves(database, [(f"{DATA}/{one}/{CONSTANTS}", f"{STAGING}/constants-{one}") for one in gone])
            finish_moves(path, database=ledger.database)
        with closing(Ledger(path)) as ledger:
            write_documents(ledger_documents(path, ledger=ledger))
        return removals
    finally:
        lock.release()


def _forget(path: Path, *, ledger: Ledger, removal: Removal) -> None:
    record, database = removal.record, ledger.database
    drop_slots(
        database,
        cache=record.id,
        slots=removal.answers,
        folded=record.folded,
        kept=np.empty(0, dtype=np.int64),
    )
    database.execute("DELETE FROM caches WHERE id = ?", (record.id,))
    plan_moves(database, [(str(record.folder(path).relative_to(path)), f"{STAGING}/removed-{record.id}")])
    detail = {
        "teacher": record.teacher.id,
        "dataset": record.dataset.name,
        "answers": removal.answers,
        "teacher_calls": removal.teacher_calls,
    }
    note_upkeep(database, what="rm", cache=record.id, detail=detail)


def _choose(records: Sequence[CacheRecord], *, what: str, path: Path) -> list[CacheRecord]:
    teacher, _, dataset = what.rstrip("/").partition("/")
    ids = sorted({record.teacher.id for record in records})
    meant = [teacher] if teacher in ids else [known for known in ids if teacher and known.startswith(teacher)]
    if len(meant) > 1:
        raise InputError(f"{teacher} may be {' or '.join(meant)}: write enough of the id")
    chosen = [
        record
        for record in records
        if record.teacher.id in meant and dataset in ("", record.dataset.name, record.dataset.name.removesuffix(ADDING))
    ]
    if not chosen:
        listed = ", ".join(f"{record.teacher.id}/{record.dataset.name}" for record in records)
        raise UnknownNameError(f"{path} holds nothing of {what[:160]!r}; it has {listed or 'no answers'}")
    return chosen


def _places(cache: int) -> tuple[int, int, int]:
    base = cache << SLOT_BITS
    return base, base, base + (1 << SLOT_BITS)
