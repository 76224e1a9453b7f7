"""Puts answers that were computed elsewhere into a cache, marked as such and counted apart from teacher calls."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from cache.adoption import Adopted, adopt_answers, count_missing
from cache.agreement import check_agreement
from cache.answer_source import CacheAnswers
from cache.brought import BroughtAnswers
from cache.catalog import read_catalog
from cache.layout import LEDGER
from cache.reader import CacheReader
from cache.staging import staged_folder
from cache.upkeep import note_upkeep, read_upkeep
from cache.writer import CacheWriter
from shared.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What an import brought."""

    teacher: str
    dataset: str
    adopted: Adopted
    shared: int
    """Answers of the file about pixels that an earlier one is about: the earlier one counts."""
    top1: float | None
    """Share of the file's answers that agree with the labels."""


def import_answers(answers: BroughtAnswers, *, file: Path, target: Path) -> Imported:
    """Keep the answers in the cache at ``target``, made whole or not at all where it is new.

    An import that was interrupted goes on where it stopped. Raises `IdentityError` for an answer that the cache has
    with other bytes; nothing is written then.
    """
    if not answers.num_slots:
        raise InputError(f"{file} holds no answers")
    if (target / LEDGER).exists():
        adopted = _import_into(target, answers, file=file)
    else:
        with staged_folder(target) as folder:
            adopted = _import_into(folder, answers, file=file)
    return Imported(
        teacher=answers.teacher.id,
        dataset=answers.dataset.name,
        adopted=adopted,
        shared=answers.shared,
        top1=answers.top1(),
    )


def _import_into(path: Path, answers: BroughtAnswers, *, file: Path) -> Adopted:
    digest = _sha256(file)
    with CacheWriter.open(path) as writer:
        present = [
            CacheAnswers(
                CacheReader.open(path, teacher=entry.teacher.id, dataset=entry.dataset.name, journal=True),
                name=str(path),
            )
            for entry in read_catalog(path)
            if entry.teacher.id == answers.teacher.id
        ]
        for cache in present:
            if cache.dataset.name == answers.dataset.name:
                answers.keep_as(cache.dtypes)
        check_agreement([*present, answers])
        handle = writer.open_cache(answers.teacher, answers.dataset, answers.dtypes)
        missing = count_missing(handle, writer=writer, source=answers)
        with writer.ledger() as ledger:
            begun = [
                one
                for one in read_upkeep(ledger.database, what="import", cache=handle.index)
                if one.detail["sha256"] == digest and not one.detail["finished"]
            ]
            detail = (
                begun[-1].detail
                if begun
                else {"file": file.name, "sha256": digest, "answers": missing, "finished": False}
                | ({"history": answers.history} if answers.history else {})
            )
            number = begun[-1].id if begun else None
            if missing and number is None:
                # Before the first answer: none is ever there without a word about where it is from.
                with ledger.transaction() as database:
                    number = note_upkeep(database, what="import", cache=handle.index, detail=detail)
        adopted = adopt_answers(handle, writer=writer, source=answers)
        if number is not None:
            with writer.ledger() as ledger, ledger.transaction() as database:
                done = detail | {"finished": True}
                note_upkeep(database, what="import", cache=handle.index, detail=done, number=number)
        return adopted


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
