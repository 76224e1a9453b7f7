"""What a cache holds and what it cost: from the ledger, or from the Zarr attributes where there is none."""

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.budgets import Budgets
from cache.catalog import CatalogEntry, read_catalog
from cache.charges import Charges
from cache.counts import CountTable, read_counts
from cache.layout import DATA, FORMAT, LEDGER
from cache.ledger_schema import connect_reader, sqlite_errors
from cache.ledger_sums import describe_counts
from cache.records import outputs_json
from cache.snapshot import read_snapshot
from cache.zarr_documents import read_attributes

CacheName = tuple[str, str]
"""Teacher id, NAME/SPLIT."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What was asked of the teachers."""

    attempts: int
    teacher_calls: int
    budgets: dict[str, dict[str, Any]]
    """Per run: budget, attempts, teacher_calls, charged."""
    caches: Mapping[CacheName, tuple[int, int]]
    """Attempts and teacher calls per cache."""
    from_ledger: bool


def describe_cache(path: Path) -> dict[str, Any]:
    """What ``logit-cache info --json`` prints; works beside a running server and on a read-only volume.

    Raises `InputError` for a folder that is no cache.
    """
    entries = read_catalog(path)
    costs = _read_costs(path, entries=entries)
    return {
        "format": FORMAT,
        "bytes": folder_bytes(path),
        "attempts": costs.attempts,
        "teacher_calls": costs.teacher_calls,
        "budgets": costs.budgets,
        "caches": [_describe_entry(path, entry=entry, costs=costs) for entry in entries],
    }


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(where) / name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def _describe_entry(path: Path, *, entry: CatalogEntry, costs: Costs) -> dict[str, Any]:
    snapshot = read_snapshot(path, entry=entry, journal=costs.from_ledger)
    attempts, teacher_calls = costs.caches.get((entry.teacher.id, entry.dataset.name), (0, 0))
    return {
        "teacher": entry.teacher.id,
        "dataset": entry.dataset.name,
        "rows": entry.dataset.rows or snapshot.index.num_rows,
        "classes": entry.teacher.classes,
        "view_policy": entry.dataset.view_policy,
        "slots": snapshot.slots,
        "folded": snapshot.folded,
        "present": {str(view): count for view, count in sorted(snapshot.index.counts().items())},
        "outputs": outputs_json(entry.specs),
        "attempts": attempts,
        "teacher_calls": teacher_calls,
        "bytes": folder_bytes(entry.folder),
    }


def _read_costs(path: Path, *, entries: list[CatalogEntry]) -> Costs:
    database = connect_reader(path)
    if database is None:
        return _costs_of_attributes(path, entries=entries)
    with closing(database), sqlite_errors(path / LEDGER):
        database.execute("BEGIN")
        return _costs_of_ledger(database)


def _costs_of_ledger(database: sqlite3.Connection) -> Costs:
    counts = CountTable(read_counts(database))
    described = describe_counts(counts, budgets=Budgets(database), charges=Charges(database))
    numbers = database.execute("SELECT teacher, dataset, id FROM caches").fetchall()
    caches = {
        (teacher, dataset): (counts.cache(number).attempts, counts.cache(number).teacher_calls)
        for teacher, dataset, number in numbers
    }
    return _costs(described, caches=caches, from_ledger=True)


def _costs_of_attributes(path: Path, *, entries: list[CatalogEntry]) -> Costs:
    """What the last fold copied."""
    caches = {
        (entry.teacher.id, entry.dataset.name): (entry.attributes["attempts"], entry.attributes["teacher_calls"])
        for entry in entries
    }
    return _costs((read_attributes(path / DATA) or {}).get("ledger", {}), caches=caches, from_ledger=False)


def _costs(described: Mapping[str, Any], *, caches: Mapping[CacheName, tuple[int, int]], from_ledger: bool) -> Costs:
    """From what `describe_counts` says; the remaining budgets are left out, they are derived."""
    return Costs(
        attempts=described.get("attempts", 0),
        teacher_calls=described.get("teacher_calls", 0),
        budgets={
            name: {key: value for key, value in run.items() if key != "remaining"}
            for name, run in described.get("runs", {}).items()
        },
        caches=caches,
        from_ledger=from_ledger,
    )
