"""Every model batch of a cache's teachers: when, how long, how many images, for whom, on what; kept for ever.

One row per batch and payer, written in the transaction that keeps the batch's answers: it costs no sync of its own.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cache.model_call import ModelCall
from cache.payer import Payer

MICROSECONDS = 1_000_000
INSERT = """
INSERT INTO calls (began, duration, batch, owner, run, cache, images, answers, environment)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
SELECT = """
SELECT calls.id, began, duration, batch, owner, run, cache, images, answers, device, versions
FROM calls JOIN environments ON environments.id = environment
"""

Environment = tuple[str, str]
"""Device, and versions as JSON."""
Line = tuple[ModelCall, Payer, int]
"""What one row is about: a call, who paid, and the number of the cache."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedCall:
    """One row: what one payer had of one batch, for one cache."""

    id: int
    began_us: int
    """Microseconds since 1970 (UTC)."""
    duration_us: int
    batch_images: int
    """Images of the whole batch."""
    payer: Payer
    cache: int
    """Number of the cache in the ledger, which may be removed by now."""
    images: int
    """Images of this payer, each an attempt; where input gradients are kept, an image is two."""
    answers: int
    """Of these, calls whose new answers were kept."""
    device: str
    versions: dict[str, str]


class History:
    """The writer's end: rows wait for a transaction, which makes them real or drops those that it staged."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        self._staged: dict[Line, list[int]] = {}
        self._waiting: dict[Line, list[int]] = {}

    @property
    def unwritten(self) -> bool:
        """Whether anything waits for a transaction."""
        return bool(self._waiting)

    def note(self, line: Line, *, images: int) -> None:
        """Images whose call brought no answer; durable with the next transaction."""
        self._waiting.setdefault(line, [0, 0])[0] += images

    def stage(self, line: Line, *, images: int, answers: int) -> None:
        """Images whose answers this transaction keeps, some of which somebody else may have brought meanwhile."""
        counted = self._staged.setdefault(line, [0, 0])
        counted[0] += images
        counted[1] += answers

    def write(self) -> None:
        """Within a transaction: write everything staged or waiting."""
        for lines in (self._staged, self._waiting):
            for (call, payer, cache), counted in lines.items():
                environment = environment_number(self._database, (call.device, dump_versions(call.versions)))
                began, duration = round(call.began_s * MICROSECONDS), round(call.duration_s * MICROSECONDS)
                self._database.execute(INSERT, (began, duration, call.images, *payer, cache, *counted, environment))

    def apply(self) -> None:
        """The transaction is durable."""
        self._staged.clear()
        self._waiting.clear()

    def forget_staged(self) -> None:
        """The transaction failed."""
        self._staged.clear()


def environment_number(database: sqlite3.Connection, environment: Environment) -> int:
    """Within a transaction: the number of a device with its versions, listed if it is new."""
    database.execute("INSERT OR IGNORE INTO environments (device, versions) VALUES (?, ?)", environment)
    found = database.execute("SELECT id FROM environments WHERE device = ? AND versions = ?", environment)
    return int(found.fetchone()[0])


def dump_versions(versions: Any) -> str:
    """Versions as the ledger keeps them: equal ones are equal text."""
    return json.dumps(dict(versions), sort_keys=True, separators=(",", ":"))


def read_calls(
    database: sqlite3.Connection, *, run: str | None = None, last: int | None = None, after: int = 0
) -> list[LoggedCall]:
    """Rows in the order in which they were written, of one run or all, only the ``last``, those behind id ``after``."""
    query = SELECT + " WHERE calls.id > ? AND (? IS NULL OR run = ?) ORDER BY calls.id DESC LIMIT ?"
    rows = database.execute(query, (after, run, run, -1 if last is None else last)).fetchall()
    return [_logged(row) for row in reversed(rows)]


def add_calls(database: sqlite3.Connection, calls: Iterable[tuple[LoggedCall, int]]) -> None:
    """Within a transaction: add rows of another ledger, each with the number that its cache has here."""
    for call, cache in calls:
        environment = environment_number(database, (call.device, dump_versions(call.versions)))
        counted = (*call.payer, cache, call.images, call.answers, environment)
        database.execute(INSERT, (call.began_us, call.duration_us, call.batch_images, *counted))


def summarise(database: sqlite3.Connection, *, run: str | None = None) -> dict[str, Any]:
    """Of one run or all: batches, images, answers, seconds that the models took for them, when it began and ended."""
    # Of a batch that several payers share, each has its part of the time.
    query = (
        "SELECT count(DISTINCT began || ' ' || duration || ' ' || batch), ifnull(sum(images), 0),"
        " ifnull(sum(answers), 0), total(1.0 * duration * images / batch), min(began), max(began + duration)"
        " FROM calls WHERE ? IS NULL OR run = ?"
    )
    batches, images, answers, duration, first, last = database.execute(query, (run, run)).fetchone()
    return {
        "batches": batches,
        "images": images,
        "answers": answers,
        "seconds": duration / MICROSECONDS,
        "first": None if first is None else iso_time(first),
        "last": None if last is None else iso_time(last),
    }


def summarise_cache(database: sqlite3.Connection, *, cache: int) -> Iterator[dict[str, Any]]:
    """What one cache's answers were computed with, per device and versions: for files that leave the ledger behind."""
    query = (
        "SELECT device, versions, count(*), sum(images), sum(answers), total(1.0 * duration * images / batch),"
        " min(began), max(began + duration) FROM calls JOIN environments ON environments.id = environment"
        " WHERE cache = ? GROUP BY environment ORDER BY environment"
    )
    for device, versions, batches, images, answers, duration, first, last in database.execute(query, (cache,)):
        yield {
            "device": device,
            "versions": json.loads(versions),
            "batches": batches,
            "images": images,
            "answers": answers,
            "seconds": duration / MICROSECONDS,
            "first": iso_time(first),
            "last": iso_time(last),
        }


def iso_time(moment_us: int) -> str:
    """Microseconds since 1970 as ISO 8601, UTC, to the millisecond."""
    return datetime.fromtimestamp(moment_us / MICROSECONDS, UTC).isoformat(timespec="milliseconds")


def _logged(row: tuple[Any, ...]) -> LoggedCall:
    number, began, duration, batch, owner, run, cache, images, answers, device, versions = row
    return LoggedCall(
        id=number,
        began_us=began,
        duration_us=duration,
        batch_images=batch,
        payer=Payer(owner, run),
        cache=cache,
        images=images,
        answers=answers,
        device=device,
        versions=json.loads(versions),
    )
