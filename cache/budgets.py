"""How many attempts runs, key owners and all together may make: limits that can be raised, never silently reset."""

import logging
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cache.counts import CellId, CountTable
from cache.payer import Payer
from shared.errors import BudgetConflictError, BudgetExhaustedError

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """One limit that a payer's calls are under."""

    what: str
    """Whose it is, for people."""
    remedy: str
    budget: int
    made: int
    """Attempts that count against it."""

    @property
    def left(self) -> int:
        """Attempts that it still allows."""
        return max(0, self.budget - self.made)


class Budgets:
    """The limits in memory, as the ledger holds them."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.runs: dict[str, int | None] = dict(database.execute("SELECT name, budget FROM runs").fetchall())
        """Every run that exists; None: unbounded."""
        self.owners: dict[str, int | None] = dict(database.execute("SELECT name, budget FROM owners").fetchall())
        """Owners that have, or had, a limit."""
        (self.total,) = database.execute("SELECT value FROM meta WHERE name = 'budget'").fetchone()

    def bounds(self, payer: Payer, counts: CountTable, *, run_budget: int | None = None) -> Iterator[Bound]:
        """The limits of a payer: the run's (or ``run_budget`` in its place), the owner's, everyone's."""
        owner, run = payer
        limits = (
            (self.runs[run] if run_budget is None else run_budget, counts.run(run), f"run {run}", "raise its budget"),
            (self.owners.get(owner), counts.owner(owner), f"key owner {owner}", "raise its budget"),
            (self.total, counts.total, "the ledger", "raise the whole budget"),
        )
        for budget, made, what, remedy in limits:
            if budget is not None:
                yield Bound(what=what, remedy=remedy, budget=budget, made=made.attempts)

    def refusal(
        self, cell: CellId, *, calls: int, counts: CountTable, granted: Mapping[CellId, int]
    ) -> BudgetExhaustedError | None:
        """The error of calls that some limit does not cover after what was ``granted`` and is not counted yet."""
        (owner, run), _ = cell
        waiting = {
            f"run {run}": sum(number for (payer, _), number in granted.items() if payer.run == run),
            f"key owner {owner}": sum(number for (payer, _), number in granted.items() if payer.owner == owner),
            "the ledger": sum(granted.values()),
        }
        for bound in self.bounds(cell[0], counts):
            left = max(0, bound.left - waiting[bound.what])
            if calls > left:
                message = (
                    f"{calls} teacher calls needed, {left} of {bound.what}'s budget of {bound.budget} remain; "
                    f"{bound.remedy} by {calls - left}"
                )
                return BudgetExhaustedError(message, needed=calls, remaining=left)
        return None


def check_budget(budget: int | None, *, attempts: int, what: str) -> None:
    """Raise `BudgetConflictError` for a limit below what was made already."""
    if budget is not None and budget < attempts:
        raise BudgetConflictError(
            f"a budget of {budget} is below the {attempts} attempts that {what} has made; use {attempts} or more"
        )


def tell_lowered(before: int | None, after: int | None, *, what: str) -> None:
    """Say in the log that a limit is lowered or lifted: nobody finds out by an empty budget, or by none."""
    if before is not None and after is None:
        log.warning("%s: its budget of %d is lifted", what, before)
    elif before is not None and after is not None and after < before:
        log.warning("%s: its budget is lowered from %d to %d", what, before, after)
