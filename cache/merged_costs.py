"""What the answers of a merged cache have cost: attempts and calls added up, once, however often it is merged."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.layout import LEDGER
from cache.ledger import Counts, Ledger
from cache.ledger_schema import SLOT_BITS, connect_reader, sqlite_errors
from cache.renumber import add_charges, read_charges, unused_number
from cache.upkeep import Upkeep, note_upkeep, read_upkeep
from shared.errors import InputError

COLUMNS = ("attempts", "teacher_calls", "hits", "joined")


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What a ledger says about one teacher."""

    ledger: str | None
    """Its id; None for one from before ledgers had any."""
    runs: dict[str, int | None]
    """Budgets by run."""
    counts: dict[tuple[str, int], Counts]
    """By run and number of the cache there, removed ones included."""
    charges: list[tuple[str, int]]
    """(run, place there)."""
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
        counts = database.execute("SELECT run, cache, attempts, teacher_calls, hits, joined FROM counts")
        charges = database.execute("SELECT run, cache, chunk, bits FROM charges")
        return Costs(
            ledger=identity[0] if identity else None,
            runs=dict(database.execute("SELECT name, budget FROM runs").fetchall()),
            counts={(run, cache): Counts(*numbers) for run, cache, *numbers in counts if cache not in strangers},
            charges=list(read_charges(row for row in charges if row[1] not in strangers)),
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
) -> tuple[int, dict[int, int], Added]:
    """Count in ``ledger`` what ``costs`` has more than when its ledger was merged ``before``, in one transaction.

    ``numbers`` are the caches here by their numbers there, ``missing`` the answers that these lack, ``contents`` what
    identifies their answers. Returns the number of the note, for `finish_costs`, and the numbers that caches there,
    removed ones too, have here.
    """
    known: dict[str, Any] = before.detail if before else {"numbers": {}, "counts": [], "budgets": {}, "imports": 0}
    ours = {int(there): here for there, here in known["numbers"].items()} | dict(numbers)
    with ledger.transaction() as database:
        unused = unused_number(database)
        gone = {cache for _, cache in costs.counts} | {place >> SLOT_BITS for _, place in costs.charges}
        ours |= {there: unused + at for at, there in enumerate(sorted(gone - ours.keys()))}
        old = {(run, cache): Counts(*numbers) for run, cache, *numbers in known["counts"]}
        more = {key: _difference(counts, old.get(key, Counts())) for key, counts in costs.counts.items()}
        notes = _merge_budgets(ledger, costs, more=more, known=known["budgets"])
        for (run, cache), counts in more.items():
            database.execute("INSERT OR IGNORE INTO counts (run, cache) VALUES (?, ?)", (run, ours[cache]))
            database.execute(
                "UPDATE counts SET attempts = attempts + ?, teacher_calls = teacher_calls + ?, hits = hits + ?,"
                " joined = joined + ? WHERE run = ? AND cache = ?",
                (*_values(counts), run, ours[cache]),
            )
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
            "numbers": {str(there): here for there, here in ours.items()},
            "counts": [[run, cache, *_values(counts)] for (run, cache), counts in costs.counts.items()],
            "budgets": {run: _contribution(costs, run) for run in costs.runs},
            "imports": max((one.id for one in costs.imports), default=0),
            "contents": dict(contents),
            "finished": False,
        }
        number = note_upkeep(database, what="merge", cache=None, detail=detail)
    ledger.reload()
    attempts, calls = (sum(getattr(counts, name) for counts in more.values()) for name in COLUMNS[:2])
    return number, ours, Added(attempts=attempts, teacher_calls=calls, notes=tuple(notes))


def finish_costs(ledger: Ledger, *, number: int, charges: list[tuple[str, int]]) -> None:
    """All answers are here: charge the runs for them, and note that nothing is missing."""
    with ledger.transaction() as database:
        add_charges(database, charges)
        (note,) = [one for one in read_upkeep(database, what="merge") if one.id == number]
        note_upkeep(database, what="merge", cache=None, detail=note.detail | {"finished": True}, number=number)
    ledger.reload()


def _merge_budgets(
    ledger: Ledger, costs: Costs, *, more: Mapping[tuple[str, int], Counts], known: Mapping[str, int]
) -> list[str]:
    """What every side still had is left in the end: budgets add up, a side without one adds what it has made."""
    notes = []
    database = ledger.database
    here: dict[str, int | None] = dict(database.execute("SELECT name, budget FROM runs").fetchall())
    for run, theirs in sorted(costs.runs.items()):
        made = ledger.run_counts(run).attempts
        mine = here.get(run)
        if theirs is None and mine is None:
            database.execute("INSERT OR IGNORE INTO runs VALUES (?, NULL)", (run,))
            continue
        ours = made if mine is None else mine
        added = max(0, _contribution(costs, run) - known.get(run, 0))
        budget = ours + added
        database.execute(
            "INSERT INTO runs VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET budget = excluded.budget", (run, budget)
        )
        if added and run in here and ours:
            notes.append(f"run {run}: budget {ours} + {added} = {budget}")
    attempts = sum(counts.attempts for counts in more.values())
    (total,) = database.execute("SELECT value FROM meta WHERE name = 'budget'").fetchone()
    if total is not None and attempts:
        database.execute("UPDATE meta SET value = ? WHERE name = 'budget'", (total + attempts,))
        notes.append(f"the whole budget: {total} + {attempts} attempts = {total + attempts}")
    return notes


def _contribution(costs: Costs, run: str) -> int:
    budget = costs.runs[run]
    return (
        sum(counts.attempts for (name, _), counts in costs.counts.items() if name == run) if budget is None else budget
    )


def _difference(now: Counts, then: Counts) -> Counts:
    return Counts(*(max(0, new - old) for new, old in zip(_values(now), _values(then), strict=True)))


def _values(counts: Counts) -> tuple[int, ...]:
    return tuple(getattr(counts, name) for name in COLUMNS)
