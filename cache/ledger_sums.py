"""What a ledger amounts to, per run, per key owner and in all, as JSON values."""

from typing import Any

from cache.budgets import Budgets
from cache.charges import Charges
from cache.counts import Counts, CountTable
from cache.payer import LOCAL_OWNER

Described = dict[str, Any]
FREE = ("hits", "joined")
"""Answers that cost nothing: where runs are listed by contract, these are not."""


def describe_counts(counts: CountTable, *, budgets: Budgets, charges: Charges) -> Described:
    """``GET /v1/ledger`` but for what is reserved; ``remaining`` is what is left of a budget and of the whole one."""
    total = counts.total
    runs = describe_runs(counts, budgets=budgets, charges=charges)
    return {
        "budget": budgets.total,
        "remaining": _left(budgets.total, total),
        "attempts": total.attempts,
        "teacher_calls": total.teacher_calls,
        "hits": total.hits,
        "joined": total.joined,
        "runs": {name: {key: value for key, value in run.items() if key not in FREE} for name, run in runs.items()},
        "owners": describe_owners(counts, budgets=budgets, charges=charges),
    }


def describe_runs(counts: CountTable, *, budgets: Budgets, charges: Charges) -> dict[str, Described]:
    """Every run with its budget, attempts, calls, hits, joined and charged."""
    whole = _left(budgets.total, counts.total)
    return {
        name: _described(budgets.runs[name], counts.run(name), whole=whole, charged=charges.charged(name))
        for name in sorted(budgets.runs)
    }


def describe_owners(counts: CountTable, *, budgets: Budgets, charges: Charges) -> dict[str, Described]:
    """The same for every key owner that ever asked or has a budget."""
    whole = _left(budgets.total, counts.total)
    return {
        name: _described(
            budgets.owners.get(name), counts.owner(name), whole=whole, charged=charges.charged_to_owner(name)
        )
        for name in sorted({LOCAL_OWNER, *budgets.owners, *counts.owners})
    }


def _described(budget: int | None, counts: Counts, *, whole: int | None, charged: int) -> Described:
    bounds = [left for left in (_left(budget, counts), whole) if left is not None]
    return {
        "budget": budget,
        "remaining": min(bounds, default=None),
        "attempts": counts.attempts,
        "teacher_calls": counts.teacher_calls,
        "hits": counts.hits,
        "joined": counts.joined,
        "charged": charged,
    }


def _left(budget: int | None, counts: Counts) -> int | None:
    return None if budget is None else max(0, budget - counts.attempts)
