"""The ledger: attempts, calls, hits, budgets and what each run consumed; in memory, and durable per transaction."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.charges import Charges
from cache.layout import LEDGER
from cache.ledger_schema import connect_reader, connect_writer, empty_log, sqlite_errors
from cache.ledger_seal import break_seal, seal_ledger
from shared.errors import BudgetConflictError, BudgetExhaustedError, StorageError, TeachonceError, UnknownNameError
from shared.identity import check_name

DEFAULT_RUN = "default"


@dataclass(slots=True)
class Counts:
    """What one run did with one cache."""

    attempts: int = 0
    teacher_calls: int = 0
    hits: int = 0
    joined: int = 0


class Ledger:
    """One connection, used under the writer's lock. What is in memory is never ahead of what a crash would leave,
    but for hits, joined and what hits charged: these are written with the next transaction."""

    def __init__(self, path: Path) -> None:
        """Open or create the ledger of the cache at ``path``."""
        self._file = path / LEDGER
        self._failed: StorageError | None = None
        break_seal(path)
        self.database = connect_writer(path)
        try:
            self.reload()
        except BaseException:
            self.database.close()
            raise

    def reload(self) -> None:
        """Read everything again, after a transaction that wrote more than this class knows."""
        rows = self.database.execute("SELECT name, budget FROM runs")
        self._budgets: dict[str, int | None] = dict(rows.fetchall())
        self._total_budget: int | None = self._meta("budget")
        self._counts: dict[tuple[str, int], Counts] = {}
        for run, cache, *numbers in self.database.execute(
            "SELECT run, cache, attempts, teacher_calls, hits, joined FROM counts"
        ):
            self._counts[run, cache] = Counts(*numbers)
        self._unwritten: set[tuple[str, int]] = set()
        self.charges = Charges(self.database)

    def close(self) -> None:
        """Write what is left in memory, and leave one plain file behind, where the disk lets us."""
        # Without a reader beside it, SQLite would sync once more what failed to sync.
        guard = connect_reader(self._file.parent) if self._failed else None
        try:
            self.flush()
            if not self._failed:
                empty_log(self.database, ledger=self._file)
        finally:
            self.database.close()
            if guard is not None:
                guard.close()
        if not self._failed:
            seal_ledger(self._file.parent)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, durable when it ends; hits counted so far go with it.

        After a `StorageError` every other one is refused: what the disk holds then, only a new start can tell.
        """
        if self._failed is not None:
            raise StorageError(f"nothing is written after an error: {self._failed}") from self._failed
        try:
            with sqlite_errors(self._file):
                yield from self._transaction()
        except StorageError as error:
            self._failed = error
            raise

    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self.database.execute("BEGIN IMMEDIATE")
        try:
            yield self.database
            self._write_hits()
            self.charges.write()
            self.database.execute("COMMIT")
        except BaseException:
            self.charges.forget_staged()
            # SQLite has rolled back by itself where the disk was full.
            if self.database.in_transaction:
                self.database.execute("ROLLBACK")
            raise
        self._unwritten.clear()
        self.charges.apply()

    def flush(self) -> None:
        """Write hits and their charges, if there are any."""
        if self._unwritten or self.charges.unwritten:
            with self.transaction():
                pass

    # Runs and budgets

    def ensure_run(self, name: str, *, budget: int | None = None) -> None:
        """Create a run, or set the budget of one that exists; None leaves a budget as it is."""
        if name not in self._budgets:
            check_name(name, what="run")
            _check_budget(budget, attempts=0, what=f"run {name}")
            with self.transaction() as database:
                database.execute("INSERT INTO runs VALUES (?, ?)", (name, budget))
            self._budgets[name] = budget
        elif budget is not None and budget != self._budgets[name]:
            self.set_budget(name, budget)

    def set_budget(self, name: str, budget: int | None) -> None:
        """Bound the attempts of a run; raises `BudgetConflictError` below what it has made."""
        self.check_run(name)
        _check_budget(budget, attempts=self.run_counts(name).attempts, what=f"run {name}")
        with self.transaction() as database:
            database.execute("UPDATE runs SET budget = ? WHERE name = ?", (budget, name))
        self._budgets[name] = budget

    def set_total_budget(self, budget: int | None) -> None:
        """Bound the attempts of all runs together."""
        _check_budget(budget, attempts=self.total().attempts, what="the whole ledger")
        with self.transaction() as database:
            database.execute("UPDATE meta SET value = ? WHERE name = 'budget'", (budget,))
        self._total_budget = budget

    def check_run(self, name: str) -> None:
        """Raise `UnknownNameError` for a run that nobody created."""
        if name not in self._budgets:
            raise self._unknown_run(name)

    def remaining(self, run: str, *, budget: int | None = None) -> int | None:
        """Attempts that a run may still make under ``budget`` (None: the one it has); None where nothing bounds it.

        Raises `BudgetConflictError` for a budget below what the run has made.
        """
        own = self.run_counts(run)
        if budget is not None:
            _check_budget(budget, attempts=own.attempts, what=f"run {run}")
        bounds = [
            bound - counts.attempts
            for bound, counts in [
                (self._budgets[run] if budget is None else budget, own),
                (self._total_budget, self.total()),
            ]
            if bound is not None
        ]
        return max(0, min(bounds)) if bounds else None

    # Counts

    def reserve(self, requests: Iterable[tuple[str, int, int]]) -> list[TeachonceError | None]:
        """Durably count attempts for each (run, cache, calls) whose run exists and can afford all of its calls."""
        granted: dict[tuple[str, int], int] = {}
        outcomes: list[TeachonceError | None] = []
        for run, cache, calls in requests:
            outcome = self._refusal(run, calls=calls, granted=granted)
            if outcome is None:
                granted[run, cache] = granted.get((run, cache), 0) + calls
            outcomes.append(outcome)
        if any(granted.values()):
            with self.transaction():
                for (run, cache), calls in granted.items():
                    self._count(run, cache, "attempts", calls)
            for key, calls in granted.items():
                self._counts.setdefault(key, Counts()).attempts += calls
        return outcomes

    def give_back(self, run: str, *, cache: int, calls: int) -> None:
        """Take back attempts that were never started."""
        with self.transaction():
            self._count(run, cache, "attempts", -calls)
        self._counts[run, cache].attempts -= calls

    def write_calls(self, calls: Mapping[tuple[str, int], int]) -> None:
        """Within a transaction: count committed calls; `apply_calls` follows it."""
        for (run, cache), number in calls.items():
            self._count(run, cache, "teacher_calls", number)

    def apply_calls(self, calls: Mapping[tuple[str, int], int]) -> None:
        """What `write_calls` wrote, in memory."""
        for key, number in calls.items():
            self._counts.setdefault(key, Counts()).teacher_calls += number

    def note_hits(self, run: str, *, cache: int, hits: int, joined: int) -> None:
        """Count answers that cost nothing; durable with the next transaction."""
        counts = self._counts.setdefault((run, cache), Counts())
        counts.hits += hits
        counts.joined += joined
        self._unwritten.add((run, cache))

    def run_counts(self, run: str) -> Counts:
        """Sums of one run over all caches."""
        return _sum(counts for (name, _), counts in self._counts.items() if name == run)

    def cache_counts(self, cache: int) -> Counts:
        """Sums of one cache over all runs."""
        return _sum(counts for (_, index), counts in self._counts.items() if index == cache)

    def total(self) -> Counts:
        """Sums of everything."""
        return _sum(self._counts.values())

    def describe_run(self, name: str) -> dict[str, Any]:
        """Budget, remaining, attempts, teacher_calls, charged."""
        self.check_run(name)
        counts = self.run_counts(name)
        return {
            "budget": self._budgets[name],
            "remaining": self.remaining(name),
            "attempts": counts.attempts,
            "teacher_calls": counts.teacher_calls,
            "charged": self.charges.charged(name),
        }

    def describe(self) -> dict[str, Any]:
        """Sums and runs, as ``GET /v1/ledger`` shows them but for what is reserved."""
        total = self.total()
        return {
            "attempts": total.attempts,
            "teacher_calls": total.teacher_calls,
            "hits": total.hits,
            "joined": total.joined,
            "runs": {name: self.describe_run(name) for name in sorted(self._budgets)},
        }

    def _refusal(self, run: str, *, calls: int, granted: Mapping[tuple[str, int], int]) -> TeachonceError | None:
        """The error of a request that some budget does not cover after what was granted just now."""
        if run not in self._budgets:
            return self._unknown_run(run)
        own = sum(number for (name, _), number in granted.items() if name == run)
        for budget, made, what, remedy in (
            (self._budgets[run], self.run_counts(run).attempts + own, f"run {run}", "raise its budget"),
            (self._total_budget, self.total().attempts + sum(granted.values()), "the ledger", "raise the whole budget"),
        ):
            if budget is not None and made + calls > budget:
                left = max(0, budget - made)
                short = made + calls - budget
                message = (
                    f"{calls} teacher calls needed, {left} of {what}'s budget of {budget} remain; {remedy} by {short}"
                )
                return BudgetExhaustedError(message, needed=calls, remaining=left)
        return None

    def _unknown_run(self, name: str) -> UnknownNameError:
        known = ", ".join(sorted(self._budgets)[:20])
        return UnknownNameError(f"unknown run {name[:80]!r}; known: {known}; create it first")

    def _count(self, run: str, cache: int, column: str, number: int) -> None:
        self.database.execute("INSERT OR IGNORE INTO counts (run, cache) VALUES (?, ?)", (run, cache))
        # The column is one of our own names, never input.
        statement = f"UPDATE counts SET {column} = {column} + ? WHERE run = ? AND cache = ?"  # noqa: S608
        self.database.execute(statement, (number, run, cache))

    def _write_hits(self) -> None:
        for run, cache in self._unwritten:
            counts = self._counts[run, cache]
            self.database.execute("INSERT OR IGNORE INTO counts (run, cache) VALUES (?, ?)", (run, cache))
            self.database.execute(
                "UPDATE counts SET hits = ?, joined = ? WHERE run = ? AND cache = ?",
                (counts.hits, counts.joined, run, cache),
            )

    def _meta(self, name: str) -> Any:
        return self.database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()[0]


def dump(value: Mapping[str, Any]) -> str:
    """JSON as it is kept in the ledger."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _sum(counts: Iterable[Counts]) -> Counts:
    total = Counts()
    for one in counts:
        total.attempts += one.attempts
        total.teacher_calls += one.teacher_calls
        total.hits += one.hits
        total.joined += one.joined
    return total


def _check_budget(budget: int | None, *, attempts: int, what: str) -> None:
    if budget is not None and budget < attempts:
        raise BudgetConflictError(
            f"a budget of {budget} is below the {attempts} attempts that {what} has made; use {attempts} or more"
        )
