"""Writes the answers of one cache as one file that other tools read, with where they come from.

Shape key: S answers.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from cache.answer_source import CacheAnswers, slot_ranges
from cache.catalog import CatalogEntry, read_catalog, select
from cache.history import summarise_cache
from cache.history_report import open_history
from cache.info import describe_cache
from cache.layout import INDEX_ARRAYS, LEDGER, AnyArray
from cache.ledger_schema import sqlite_errors
from cache.parquet_file import load_pyarrow, write_parquet
from cache.reader import CacheReader
from cache.records import outputs_json
from cache.staging import check_absent, staged_file
from cache.tensor_file import Column, write_npz, write_safetensors
from cache.verify import find_array_damage, is_at_rest
from shared.errors import CorruptCacheError, InputError

EXPORT_FORMAT = "teachonce-export-1"
WRITERS: Mapping[str, Callable[..., None]] = {
    ".safetensors": write_safetensors,
    ".npz": write_npz,
    ".parquet": write_parquet,
}


def export_answers(path: Path, target: Path, *, teacher: str | None = None, dataset: str | None = None) -> int:
    """Write the answers of one cache of the folder ``path`` to ``target``, by its suffix; returns how many.

    Checksums are compared first. Raises `CorruptCacheError`, and `InputError` for a suffix that no writer has, a target
    that exists, or a cache that is not named where there are several.
    """
    write = WRITERS.get(target.suffix)
    if write is None:
        raise InputError(f"{target} ends with {target.suffix or 'nothing'}; use one of {', '.join(WRITERS)}")
    if write is write_parquet:
        load_pyarrow()
    check_absent(target)
    entry = select(read_catalog(path), path=path, teacher=teacher, dataset=dataset)
    for finding in find_array_damage(entry, at_rest=is_at_rest(path)):
        raise CorruptCacheError(f"{finding}; nothing was exported")
    journal = (path / LEDGER).exists()
    with (
        CacheReader.open(path, teacher=entry.teacher.id, dataset=entry.dataset.name, journal=journal) as reader,
        staged_file(target) as staged,
    ):
        answers = CacheAnswers(reader, name=str(path))
        write(staged, _columns(answers), metadata=_metadata(path, entry=entry, answers=answers))
        return answers.num_slots


def _columns(answers: CacheAnswers) -> list[Column]:
    """Rows, views, labels, keys, then outputs in the dtype they are kept in (int8 as the floats it means)."""
    nothing = np.empty(0, dtype=np.int64)
    index = {spec.name: (spec.dtype, spec.shape) for spec in INDEX_ARRAYS}
    empty = {name: answers.column(name, nothing) for name in answers.outputs}
    outputs = {name: (str(values.dtype), values.shape[1:]) for name, values in empty.items()}
    kinds = {name: index[name] for name in ("rows", "views", "labels", "keys")} | outputs
    return [
        Column(name=name, dtype=dtype, shape=(answers.num_slots, *shape), pieces=partial(_pieces, answers, name))
        for name, (dtype, shape) in kinds.items()
    ]


def _pieces(answers: CacheAnswers, name: str) -> Iterator[AnyArray]:
    for slots in slot_ranges(answers.num_slots):
        yield answers.column(name, slots)


def _metadata(path: Path, *, entry: CatalogEntry, answers: CacheAnswers) -> dict[str, str]:
    """Who answered, about what, kept how, at what cost: strings, JSON where they are not plain."""
    (described,) = (
        cache
        for cache in describe_cache(path)["caches"]
        if (cache["teacher"], cache["dataset"]) == (entry.teacher.id, entry.dataset.name)
    )
    try:
        release = version("teachonce")
    except PackageNotFoundError:
        release = "unknown"
    values = {
        "teacher": entry.teacher.attributes(),
        "dataset": entry.dataset.attributes(),
        "outputs": outputs_json(entry.specs),
        "answers": answers.num_slots,
        "attempts": described["attempts"],
        "teacher_calls": described["teacher_calls"],
        "imported": entry.attributes.get("imported", []),
        "history": _history(path, entry=entry),
    }
    return {
        "format": EXPORT_FORMAT,
        "teachonce": release,
        "exported": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: json.dumps(value) for name, value in values.items()},
    }


def _history(path: Path, *, entry: CatalogEntry) -> list[dict[str, Any]]:
    """What the answers were computed with, see `summarise_cache`; empty for a copy without its ledger."""
    database = open_history(path)
    if database is None:
        return []
    with closing(database), sqlite_errors(path / LEDGER):
        query = "SELECT id FROM caches WHERE teacher = ? AND dataset = ?"
        found = database.execute(query, (entry.teacher.id, entry.dataset.name)).fetchone()
        return list(summarise_cache(database, cache=found[0])) if found else []
