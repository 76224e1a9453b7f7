"""What a ledger amounts to, per run, per key owner and in all, as JSON values."""

from typing import Any

from cache.budgets import Budgets
from cache.charges import Charges
from cache.counts import Counts, CountTable
from cache.payer import LOCAL_OWNER


def describe_counts(counts: CountTable, *, budgets: Budgets, charges: Charges) -> dict[str, Any]:
    """``GET /v1/ledger`` but for what is reserved; ``remaining`` is what is left of a budget and of the whole one."""
    total = counts.total
    whole = _left(budgets.total, total)
    owners = sorted({LOCAL_OWNER, *budgets.owners, *counts.owners})
    return {
        "budget": budgets.total,
        "remaining": whole,
        "attempts": total.attempts,
        "teacher_calls": total.teacher_calls,
        "hits": total.hits,
        "joined": total.joined,
        "runs": {
            name: _described(budgets.runs[name], counts.run(name), whole=whole) | {"charged": charges.charged(name)}
            for name in sorted(budgets.runs)
        },
        "owners": {
            name: _described(budgets.owners.get(name), counts.owner(name), whole=whole)
            | {
                "hits": counts.owner(name).hits,
                "joined": counts.owner(name).joined,
                "charged": charges.charged_to_owner(name),
            }
            for name in owners
        },
    }


def _described(budget: int | None, counts: Counts, *, whole: int | None) -> dict[str, Any]:
    bounds = [left for left in (_left(budget, counts), whole) if left is not None]
    return {
        "budget": budget,
        "remaining": min(bounds, default=None),
        "attempts": counts.attempts,
        "teacher_calls": counts.teacher_calls,
    }


def _left(budget: int | None, counts: Counts) -> int | None:
    return None if budget is None else max(0, budget - counts.attempts)
