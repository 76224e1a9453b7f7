"""The ledger: attempts, calls, hits, budgets and what each payer consumed; in memory, and durable per transaction."""

import json
import logging
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.budgets import Budgets, check_budget, tell_lowered
from cache.charges import Charges
from cache.counts import CellId, Counts, CountTable, read_counts
from cache.history import History
from cache.layout import LEDGER
from cache.ledger_schema import connect_reader, connect_writer, empty_log, sqlite_errors
from cache.ledger_seal import break_seal, seal_ledger
from cache.ledger_sums import describe_counts
from cache.payer import LOCAL_OWNER, Payer
from shared.errors import DiskFullError, StorageError, TeachonceError, UnknownNameError
from shared.identity import check_name

log = logging.getLogger(__name__)

DEFAULT_RUN = "default"


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
        self._counts = CountTable(read_counts(self.database))
        self._budgets = Budgets(self.database)
        self._unwritten: set[CellId] = set()
        self.charges = Charges(self.database)
        self.history = History(self.database)

    def close(self) -> None:
        """Write what is left in memory, and leave one plain file behind, where the disk lets us."""
        # Without a reader beside it, SQLite would sync once more what failed to sync.
        guard = connect_reader(self._file.parent) if self._failed else None
        try:
            self._flush_last()
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
            self.history.write()
            self.database.execute("COMMIT")
        except BaseException:
            self.charges.forget_staged()
            self.history.forget_staged()
            # SQLite has rolled back by itself where the disk was full.
            if self.database.in_transaction:
                self.database.execute("ROLLBACK")
            raise
        self._unwritten.clear()
        self.charges.apply()
        self.history.apply()

    def flush(self) -> None:
        """Write hits, their charges and calls without an answer, if there are any."""
        if self._unwritten or self.charges.unwritten or self.history.unwritten:
            with self.transaction():
                pass

    def _flush_last(self) -> None:
        try:
            self.flush()
        except DiskFullError as error:
            if self._unwritten or self.charges.unwritten:
                raise
            # Their attempts are counted; only when they were is lost.
            log.warning("calls without an answer are not in the history: %s", error)

    # Runs and budgets

    def ensure_run(self, name: str, *, budget: int | None = None) -> None:
        """Create a run, or set the budget of one that exists; None leaves a budget as it is."""
        if name not in self._budgets.runs:
            check_name(name, what="run")
            check_budget(budget, attempts=0, what=f"run {name}")
            with self.transaction() as database:
                database.execute("INSERT INTO runs VALUES (?, ?)", (name, budget))
            self._budgets.runs[name] = budget
        elif budget is not None and budget != self._budgets.runs[name]:
            self.set_budget(name, budget)

    def raise_budget(self, name: str, budget: int | None) -> None:
        """`ensure_run`, but a larger budget stays: what somebody raised, a restart does not take back."""
        known = self._budgets.runs.get(name)
        if known is not None and budget is not None and budget < known:
            log.warning("run %s keeps its budget of %d, larger than the %d given", name, known, budget)
            return
        self.ensure_run(name, budget=budget)

    def set_budget(self, name: str, budget: int | None) -> None:
        """Bound the attempts of a run; raises `BudgetConflictError` below what it has made."""
        self.check_run(name)
        what = f"run {name}"
        check_budget(budget, attempts=self._counts.run(name).attempts, what=what)
        with self.transaction() as database:
            database.execute("UPDATE runs SET budget = ? WHERE name = ?", (budget, name))
        tell_lowered(self._budgets.runs[name], budget, what=what)
        self._budgets.runs[name] = budget

    def set_owner_budget(self, name: str, budget: int | None) -> None:
        """Bound the attempts that all runs make for one key owner; raises `BudgetConflictError`."""
        check_name(name, what="key owner")
        check_budget(budget, attempts=self._counts.owner(name).attempts, what=f"key owner {name}")
        self._write_owner_budget(name, budget)

    def bound_owner(self, name: str, budget: int | None) -> None:
        """`set_owner_budget`, but one below what was made stands too and allows no more; nothing new: no write."""
        if budget != self._budgets.owners.get(name):
            self._write_owner_budget(check_name(name, what="key owner"), budget)

    def _write_owner_budget(self, name: str, budget: int | None) -> None:
        with self.transaction() as database:
            database.execute("INSERT OR REPLACE INTO owners VALUES (?, ?)", (name, budget))
        tell_lowered(self._budgets.owners.get(name), budget, what=f"key owner {name}")
        self._budgets.owners[name] = budget

    def set_total_budget(self, budget: int | None) -> None:
        """Bound the attempts of all runs together."""
        check_budget(budget, attempts=self._counts.total.attempts, what="the whole ledger")
        with self.transaction() as database:
            database.execute("UPDATE meta SET value = ? WHERE name = 'budget'", (budget,))
        tell_lowered(self._budgets.total, budget, what="the whole ledger")
        self._budgets.total = budget

    def check_run(self, name: str) -> None:
        """Raise `UnknownNameError` for a run that nobody created."""
        if name not in self._budgets.runs:
            raise self._unknown_run(name)

    def remaining(self, run: str, *, budget: int | None = None, owner: str = LOCAL_OWNER) -> int | None:
        """Attempts that ``owner`` may still make under a run, were ``budget`` its own (None: the one it has).

        None where nothing bounds them. Raises `BudgetConflictError` for a budget below what the run has made.
        """
        check_budget(budget, attempts=self._counts.run(run).attempts, what=f"run {run}")
        return min(
            (bound.left for bound in self._budgets.bounds(Payer(owner, run), self._counts, run_budget=budget)),
            default=None,
        )

    # Counts

    def reserve(self, requests: Iterable[tuple[Payer, int, int]]) -> list[TeachonceError | None]:
        """Durably count attempts for each (payer, cache, calls) whose run exists and can afford all of its calls."""
        granted: dict[CellId, int] = {}
        outcomes: list[TeachonceError | None] = []
        for payer, cache, calls in requests:
            outcome = self._refusal((payer, cache), calls=calls, granted=granted)
            if outcome is None:
                granted[payer, cache] = granted.get((payer, cache), 0) + calls
            outcomes.append(outcome)
        if any(granted.values()):
            with self.transaction():
                for cell, calls in granted.items():
                    self._count(cell, "attempts", calls)
            for cell, calls in granted.items():
                self._counts.add(cell, "attempts", calls)
        return outcomes

    def give_back(self, payer: Payer, *, cache: int, calls: int) -> None:
        """Take back attempts that were never started."""
        with self.transaction():
            self._count((payer, cache), "attempts", -calls)
        self._counts.add((payer, cache), "attempts", -calls)

    def write_calls(self, calls: Mapping[CellId, int]) -> None:
        """Within a transaction: count committed calls; `apply_calls` follows it."""
        for cell, number in calls.items():
            self._count(cell, "teacher_calls", number)

    def apply_calls(self, calls: Mapping[CellId, int]) -> None:
        """What `write_calls` wrote, in memory."""
        for cell, number in calls.items():
            self._counts.add(cell, "teacher_calls", number)

    def note_hits(self, payer: Payer, *, cache: int, hits: int, joined: int) -> None:
        """Count answers that cost nothing; durable with the next transaction."""
        self._counts.add((payer, cache), "hits", hits)
        self._counts.add((payer, cache), "joined", joined)
        self._unwritten.add((payer, cache))

    def run_counts(self, run: str) -> Counts:
        """Sums of one run over all owners and caches."""
        return self._counts.run(run)

    def owner_counts(self, owner: str) -> Counts:
        """Sums of one key owner over all runs and caches."""
        return self._counts.owner(owner)

    def cache_counts(self, cache: int) -> Counts:
        """Sums of one cache over all owners and runs."""
        return self._counts.cache(cache)

    def describe(self) -> dict[str, Any]:
        """Sums, runs and owners, as ``GET /v1/ledger`` shows them but for what is reserved."""
        return describe_counts(self._counts, budgets=self._budgets, charges=self.charges)

    def _refusal(self, cell: CellId, *, calls: int, granted: Mapping[CellId, int]) -> TeachonceError | None:
        """The error of a request under a run that does not exist, or that some budget does not cover."""
        if cell[0].run not in self._budgets.runs:
            return self._unknown_run(cell[0].run)
        return self._budgets.refusal(cell, calls=calls, counts=self._counts, granted=granted)

    def _unknown_run(self, name: str) -> UnknownNameError:
        known = ", ".join(sorted(self._budgets.runs)[:20])
        return UnknownNameError(f"unknown run {name[:80]!r}; known: {known}; create it first")

    def _count(self, cell: CellId, column: str, number: int) -> None:
        where = (*cell[0], cell[1])
        self.database.execute("INSERT OR IGNORE INTO counts (owner, run, cache) VALUES (?, ?, ?)", where)
        # The column is one of our own names, never input.
        statement = f"UPDATE counts SET {column} = {column} + ? WHERE owner = ? AND run = ? AND cache = ?"  # noqa: S608
        self.database.execute(statement, (number, *where))

    def _write_hits(self) -> None:
        for cell in self._unwritten:
            counts, where = self._counts.cell(cell), (*cell[0], cell[1])
            self.database.execute("INSERT OR IGNORE INTO counts (owner, run, cache) VALUES (?, ?, ?)", where)
            self.database.execute(
                "UPDATE counts SET hits = ?, joined = ? WHERE owner = ? AND run = ? AND cache = ?",
                (counts.hits, counts.joined, *where),
            )


def dump(value: Mapping[str, Any]) -> str:
    """JSON as it is kept in the ledger."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
