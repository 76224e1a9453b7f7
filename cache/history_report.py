"""What ``logit-cache history`` shows: the batches of a cache's teachers as JSON, as a table, as lines."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from rich.table import Table

from cache.budgets import Budgets
from cache.catalog import read_catalog
from cache.charges import Charges
from cache.counts import CountTable, read_counts
from cache.history import LoggedCall, iso_time, read_calls, summarise
from cache.layout import LEDGER
from cache.ledger_schema import connect_reader, sqlite_errors
from cache.ledger_sums import describe_owners, describe_runs
from cache.upkeep import read_upkeep
from shared.errors import InputError, UnknownNameError

Described = dict[str, Any]
COLUMNS = ("time", "run", "owner", "device", "images", "answers", "ms", "images/s", "versions")


def describe_history(path: Path, *, run: str | None = None, last: int | None = None) -> Described:
    """What ``logit-cache history --json`` prints: sums over all rows of ``run`` (None: of every run), and the rows.

    Works beside a running server and on a read-only volume. Raises `UnknownNameError` for a run that nobody made and
    `InputError` where there is no ledger.
    """
    # First, so that a folder that is no cache is called so.
    read_catalog(path)
    database = open_history(path)
    if database is None:
        raise InputError(f"{path} has no {LEDGER} that can be read: its history stayed where it was copied from")
    with closing(database), sqlite_errors(path / LEDGER):
        database.execute("BEGIN")
        sums = _sums(database)
        if run is not None and run not in sums["runs"]:
            raise UnknownNameError(f"unknown run {run[:80]!r}; {path} knows {', '.join(sorted(sums['runs'])[:20])}")
        summary = summarise(database, run=run)
        attempts = [one["attempts"] for name, one in sums["runs"].items() if run in (None, name)]
        names = _names(database)
        return {
            **summary,
            "unrecorded": sum(attempts) - summary["images"],
            **sums,
            "calls": [
                _described(call, cache=names.get(call.cache)) for call in read_calls(database, run=run, last=last)
            ],
        }


def measured_time(path: Path) -> tuple[int, float]:
    """Calls of all runs that are recorded, and the seconds that the models took for them; 0 without a ledger."""
    database = open_history(path)
    if database is None:
        return 0, 0.0
    with closing(database), sqlite_errors(path / LEDGER):
        summary = summarise(database)
        return summary["images"], summary["seconds"]


def describe_sums(path: Path) -> Described | None:
    """Sums of the history, and every run and key owner; None for a copy without its ledger."""
    database = open_history(path)
    if database is None:
        return None
    with closing(database), sqlite_errors(path / LEDGER):
        database.execute("BEGIN")
        return {**summarise(database), **_sums(database)}


def open_history(path: Path) -> sqlite3.Connection | None:
    """The ledger of a cache for reading, None where it has none that can be read."""
    return connect_reader(path) if (path / LEDGER).exists() else None


def history_line(summary: Described) -> str:
    """Sums in a few words."""
    if not summary["batches"]:
        return "no batches yet"
    rate = f", {summary['images'] / summary['seconds']:.0f} images/s" if summary["seconds"] else ""
    return (
        f"{summary['batches']} batches, {summary['images']} images in {summary['seconds']:.1f} s{rate}, "
        f"from {summary['first'][:19]} to {summary['last'][:19]} UTC"
    )


def closing_line(described: Described) -> str:
    """What stands below the rows."""
    line = history_line(described)
    if described["unrecorded"]:
        # A batch on its way counts here too.
        line += f"; {described['unrecorded']} more attempts are not in it: cut off by a crash, under way, or older"
    return line


def plain_rows(described: Described) -> Iterator[str]:
    """A line per batch and payer."""
    for call in described["calls"]:
        yield "  ".join(_cells(call))


def history_table(described: Described) -> Table:
    """The same for a terminal."""
    table = Table(*COLUMNS)
    for column in (4, 5, 6, 7):
        table.columns[column].justify = "right"
    for call in described["calls"]:
        table.add_row(*_cells(call))
    return table


def _sums(database: sqlite3.Connection) -> Described:
    counts, budgets, charges = CountTable(read_counts(database)), Budgets(database), Charges(database)
    return {
        "runs": describe_runs(counts, budgets=budgets, charges=charges),
        "owners": describe_owners(counts, budgets=budgets, charges=charges),
    }


def _names(database: sqlite3.Connection) -> dict[int | None, str]:
    """TEACHER/NAME/SPLIT by number, removed caches included."""
    removed = read_upkeep(database, what="rm")
    there = database.execute("SELECT id, teacher || '/' || dataset FROM caches").fetchall()
    return {one.cache: f"{one.detail['teacher']}/{one.detail['dataset']}" for one in removed} | dict(there)


def _described(call: LoggedCall, *, cache: str | None) -> Described:
    seconds = call.duration_us / 1e6
    return {
        "time": iso_time(call.began_us),
        "run": call.payer.run,
        "owner": call.payer.owner,
        "cache": cache,
        "device": call.device,
        "images": call.images,
        "answers": call.answers,
        "batch_images": call.batch_images,
        "ms": call.duration_us / 1000,
        "images_per_second": call.batch_images / seconds if seconds else None,
        "versions": call.versions,
    }


def _cells(call: Described) -> tuple[str, ...]:
    whole, rate = call["batch_images"], call["images_per_second"]
    return (
        call["time"][:19],
        call["run"],
        call["owner"],
        call["device"],
        str(call["images"]) if call["images"] == whole else f"{call['images']} of {whole}",
        str(call["answers"]),
        f"{call['ms']:.1f}",
        "-" if rate is None else f"{rate:.0f}",
        ", ".join(f"{name} {version}" for name, version in call["versions"].items()),
    )
