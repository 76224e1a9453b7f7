"""What was asked of the teacher and what came of it, per owner, run and cache, with the sums ready."""

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cache.payer import Payer

CellId = tuple[Payer, int]
"""Who paid, and the number of the cache."""
COLUMNS = ("attempts", "teacher_calls", "hits", "joined")


@dataclass(slots=True)
class Counts:
    """What was done under one name."""

    attempts: int = 0
    teacher_calls: int = 0
    hits: int = 0
    joined: int = 0

    @property
    def values(self) -> tuple[int, ...]:
        """In the order of `COLUMNS`."""
        return self.attempts, self.teacher_calls, self.hits, self.joined


class CountTable:
    """Cells of the ledger's table in memory; runs, owners and caches are summed as they grow."""

    def __init__(self, cells: Iterable[tuple[CellId, Counts]]) -> None:
        self.total = Counts()
        self._cells: dict[CellId, Counts] = {}
        self._runs: dict[str, Counts] = {}
        self._owners: dict[str, Counts] = {}
        self._caches: dict[int, Counts] = {}
        for cell, counts in cells:
            for column, number in zip(COLUMNS, counts.values, strict=True):
                self.add(cell, column, number)

    @property
    def owners(self) -> list[str]:
        """Everyone who ever asked."""
        return list(self._owners)

    def add(self, cell: CellId, column: str, number: int) -> None:
        """Count in a cell and in all sums that it is part of."""
        (owner, run), cache = cell
        for counts in (
            self._cells.setdefault(cell, Counts()),
            self._runs.setdefault(run, Counts()),
            self._owners.setdefault(owner, Counts()),
            self._caches.setdefault(cache, Counts()),
            self.total,
        ):
            setattr(counts, column, getattr(counts, column) + number)

    def cell(self, cell: CellId) -> Counts:
        """One cell, zeros where nothing was counted."""
        return self._cells.get(cell) or Counts()

    def run(self, name: str) -> Counts:
        """Sums of one run over all owners and caches."""
        return self._runs.get(name) or Counts()

    def owner(self, name: str) -> Counts:
        """Sums of one owner over all runs and caches."""
        return self._owners.get(name) or Counts()

    def cache(self, number: int) -> Counts:
        """Sums of one cache over all owners and runs."""
        return self._caches.get(number) or Counts()


def read_counts(database: sqlite3.Connection) -> Iterator[tuple[CellId, Counts]]:
    """All cells of a ledger."""
    rows = database.execute("SELECT owner, run, cache, attempts, teacher_calls, hits, joined FROM counts")
    for owner, run, cache, *numbers in rows:
        yield (Payer(owner, run), cache), Counts(*numbers)
