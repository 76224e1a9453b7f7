"""What the answers of a merged cache have cost: attempts and calls added up, once, however often it is merged."""

import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from cache.counts import CellId, Counts, read_counts
from cache.history import LoggedCall, add_calls, read_calls
from cache.layout import LEDGER
from cache.ledger import Ledger
from cache.ledger_schema import SLOT_BITS, connect_reader, sqlite_errors
from cache.payer import LOCAL_OWNER, Payer
from cache.renumber import Charge, add_charges, read_charges, unused_number
from cache.upkeep import Upkeep, note_upkeep, read_upkeep
from shared.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What a ledger says about one teacher."""

    ledger: str | None
    """Its id; None for one from before ledgers had any."""
    teacher: str
    """Id of the teacher."""
    runs: dict[str, int | None]
    """Budgets by run."""
    owners: dict[str, int | None]
    """Budgets by key owner."""
    counts: dict[CellId, Counts]
    """By payer and number of the cache there, removed ones included."""
    charges: list[Charge]
    """Places there, with who consumed them."""
    calls: list[LoggedCall]
    """The history, of caches there."""
    caches: dict[str, int]
    """Numbers by NAME/SPLIT."""
    imports: list[Upkeep]
    """Which answers were computed elsewhere."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Added:
    """What a merge added to a ledger."""

    attempts: int
    teacher_calls: int
    notes: tuple[str, ...]


def read_costs(path: Path, *, teacher: str) -> Costs:
    """What the ledger of the cache at ``path`` says about a teacher and what was removed of it."""
    database = connect_reader(path)
    if database is None:
        raise InputError(f"the ledger of {path} cannot be read here: what its answers cost is unknown")
    with closing(database), sqlite_errors(path / LEDGER):
        caches = {}
        strangers = {one.cache for one in read_upkeep(database, what="rm") if one.detail["teacher"] != teacher}
        for number, of, dataset in database.execute("SELECT id, teacher, dataset FROM caches"):
            if of == teacher:
                caches[dataset] = number
            else:
                strangers.add(number)
        identity = database.execute("SELECT value FROM meta WHERE name = 'id'").fetchone()
        cells = {cell: numbers for cell, numbers in read_counts(database) if cell[1] not in strangers}
        charges = database.execute("SELECT owner, run, cache, chunk, bits FROM charges")
        return Costs(
            ledger=identity[0] if identity else None,
            teacher=teacher,
            runs=dict(database.execute("SELECT name, budget FROM runs").fetchall()),
            owners=dict.fromkeys((payer.owner for payer, _ in cells), None)
            | dict(database.execute("SELECT name, budget FROM owners").fetchall()),
            counts=cells,
            charges=list(read_charges(row for row in charges if row[2] not in strangers)),
            calls=[call for call in read_calls(database) if call.cache not in strangers],
            caches=caches,
            imports=[one for one in read_upkeep(database, what="import") if one.cache in caches.values()],
        )


def add_costs(
    ledger: Ledger,
    costs: Costs,
    *,
    source: Path,
    numbers: Mapping[int, int],
    missing: Mapping[int, int],
    contents: Mapping[str, dict[str, Any]],
    before: Upkeep | None,
    budgets_before: Upkeep | None,
) -> tuple[int, dict[int, int], Added]:
    """Count in ``ledger`` what ``costs`` has more than when its ledger was merged ``before``, in one transaction.

    ``numbers`` are the caches here by their numbers there, ``missing`` the answers that these lack, ``contents`` what
    identifies their answers. Returns the number of the note, for `finish_costs`, and the numbers that caches there,
    removed ones too, have here. Counts are those of one teacher, and so is ``before``; budgets are those of runs and
    key owners, whatever they asked: what they brought is in the last note of any teacher, ``budgets_before``.
    """
    known: dict[str, Any] = before.detail if before else {"numbers": {}, "counts": [], "budgets": {}, "imports": 0}
    bounded: dict[str, Any] = budgets_before.detail if budgets_before else {"budgets": {}, "counts": []}
    # Notes from before there were owners and a history have none: all were local, and brought their attempts.
    calls_known = known.get("calls", 0)
    owners_known = bounded.get("owner_budgets")
    if owners_known is None:
        owners_known = {LOCAL_OWNER: sum(cell[2] for cell in bounded["counts"])} if bounded["counts"] else {}
    ours = {int(there): here for there, here in known["numbers"].items()} | dict(numbers)
    with ledger.transaction() as database:
        unused = unused_number(database)
        gone = {cache for _, cache in costs.counts} | {place >> SLOT_BITS for _, place in costs.charges}
        ours |= {there: unused + at for at, there in enumerate(sorted(gone - ours.keys()))}
        old = _counts_known(known["counts"])
        more = {cell: _difference(counts, old.get(cell, Counts())) for cell, counts in costs.counts.items()}
        attempts = sum(counts.attempts for counts in more.values())
        notes = [
            *_merge_budgets(ledger, RUNS, costs=costs, known=bounded["budgets"]),
            *_merge_budgets(ledger, OWNERS, costs=costs, known=owners_known),
            *_grow_total(database, attempts=attempts),
        ]
        for ((owner, run), cache), counts in more.items():
            cell = (owner, run, ours[cache])
            database.execute("INSERT OR IGNORE INTO counts (owner, run, cache) VALUES (?, ?, ?)", cell)
            database.execute(
                "UPDATE counts SET attempts = attempts + ?, teacher_calls = teacher_calls + ?, hits = hits + ?,"
                " joined = joined + ? WHERE owner = ? AND run = ? AND cache = ?",
                (*counts.values, *cell),
            )
        add_calls(database, ((call, ours[call.cache]) for call in costs.calls if call.id > calls_known))
        for one in costs.imports:
            number = numbers[one.cache or 0]
            if one.id > known["imports"] and missing[number]:
                # What is here already was not imported.
                answers = min(one.detail["answers"], missing[number])
                via = one.detail | {"through": str(source), "answers": answers}
                note_upkeep(database, what="import", cache=number, detail=via)
        detail = {
            "source": str(source),
            "ledger": costs.ledger,
            "teacher": costs.teacher,
            "numbers": {str(there): here for there, here in ours.items()},
            "counts": [[run, cache, *counts.values, owner] for ((owner, run), cache), counts in costs.counts.items()],
            "budgets": {run: RUNS.contribution(costs, run) for run in costs.runs},
            "owner_budgets": {owner: OWNERS.contribution(costs, owner) for owner in costs.owners},
            "calls": max((call.id for call in costs.calls), default=calls_known),
            "imports": max((one.id for one in costs.imports), default=0),
            "contents": dict(contents),
            "finished": False,
        }
        number = note_upkeep(database, what="merge", cache=None, detail=detail)
    ledger.reload()
    calls = sum(counts.teacher_calls for counts in more.values())
    return number, ours, Added(attempts=attempts, teacher_calls=calls, notes=tuple(notes))


def finish_costs(ledger: Ledger, *, number: int, charges: list[Charge]) -> None:
    """All answers are here: charge who consumed them, and note that nothing is missing."""
    with ledger.transaction() as database:
        add_charges(database, charges)
        (note,) = [one for one in read_upkeep(database, what="merge") if one.id == number]
        note_upkeep(database, what="merge", cache=None, detail=note.detail | {"finished": True}, number=number)
    ledger.reload()


def _merge_budgets(ledger: Ledger, kind: "Bounded", *, costs: Costs, known: Mapping[str, int]) -> list[str]:
    """What every side still had is left in the end: budgets add up, a side without one adds what it has made."""
    notes = []
    database = ledger.database
    here: dict[str, int | None] = dict(database.execute(f"SELECT name, budget FROM {kind.table}").fetchall())  # noqa: S608
    for name, theirs in sorted(kind.budgets(costs).items()):
        made = kind.counts(ledger, name).attempts
        mine = here.get(name)
        if theirs is None and mine is None:
            database.execute(f"INSERT OR IGNORE INTO {kind.table} VALUES (?, NULL)", (name,))  # noqa: S608
            continue
        ours = made if mine is None else mine
        added = max(0, kind.contribution(costs, name) - known.get(name, 0))
        budget = ours + added
        database.execute(f"INSERT OR REPLACE INTO {kind.table} VALUES (?, ?)", (name, budget))  # noqa: S608
        if added and (name in here or made) and ours:
            notes.append(f"{kind.what} {name}: budget {ours} + {added} = {budget}")
    return notes


def _grow_total(database: sqlite3.Connection, *, attempts: int) -> list[str]:
    """The whole budget leaves what it left before."""
    (total,) = database.execute("SELECT value FROM meta WHERE name = 'budget'").fetchone()
    if total is None or not attempts:
        return []
    database.execute("UPDATE meta SET value = ? WHERE name = 'budget'", (total + attempts,))
    return [f"the whole budget: {total} + {attempts} attempts = {total + attempts}"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounded:
    """One kind of name that has budgets; its table is one of our own names, never input."""

    what: str
    table: str
    budgets: Callable[[Costs], Mapping[str, int | None]]
    counts: Callable[[Ledger, str], Counts]
    is_of: Callable[[Payer, str], bool]

    def contribution(self, costs: Costs, name: str) -> int:
        """The budget of a name there; without one, what was made under it."""
        budget = self.budgets(costs)[name]
        made = sum(counts.attempts for (payer, _), counts in costs.counts.items() if self.is_of(payer, name))
        return made if budget is None else budget


RUNS = Bounded(
    what="run",
    table="runs",
    budgets=attrgetter("runs"),
    counts=Ledger.run_counts,
    is_of=lambda payer, name: payer.run == name,
)
OWNERS = Bounded(
    what="key owner",
    table="owners",
    budgets=attrgetter("owners"),
    counts=Ledger.owner_counts,
    is_of=lambda payer, name: payer.owner == name,
)


def _counts_known(rows: Iterable[Sequence[Any]]) -> dict[CellId, Counts]:
    """What a note says was counted then; before there were owners, all was local."""
    return {
        (Payer(owner[0] if owner else LOCAL_OWNER, run), cache): Counts(attempts, calls, hits, joined)
        for run, cache, attempts, calls, hits, joined, *owner in rows
    }


def _difference(now: Counts, then: Counts) -> Counts:
    return Counts(*(max(0, new - old) for new, old in zip(now.values, then.values, strict=True)))
