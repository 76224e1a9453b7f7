"""Numbers as a reader sees them, the same in every form of the report."""

from collections.abc import Sequence
from math import isfinite

from student_trainer.reporting.grid import Cell
from student_trainer.reporting.reaching import Reach
from student_trainer.reporting.statistics import PairResult


def accuracy_text(cell: Cell | None) -> str:
    """``92.60 ± 0.45 (5)``: mean and sample standard deviation in %, number of seeds."""
    if cell is None:
        return "–"
    spread = "" if cell.std is None else f" ± {100 * cell.std:.2f}"
    return f"{100 * cell.mean:.2f}{spread} ({len(cell.trials)})"


def percent_text(share: float) -> str:
    """``92.60 %``."""
    return f"{100 * share:.2f} %"


def points_text(difference: float) -> str:
    """``+0.31`` percentage points."""
    return _signed(f"{100 * difference:+.2f}")


def interval_text(pair: PairResult) -> str:
    """``−0.20 to +0.82``."""
    return f"{points_text(pair.test.low)} to {points_text(pair.test.high)}"


def p_text(p: float) -> str:
    """Three digits after the point; below that, that it is below."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def verdict_text(pair: PairResult) -> str:
    """``better`` or ``worse``; only where that points if there are too few seeds to claim it; or ``not shown``."""
    if not pair.shown:
        return "not shown"
    found = "better" if pair.test.mean > 0 else "worse"
    return found if pair.claim else f"points to {found}, no claim"


def no_claim_text(pairs: Sequence[PairResult]) -> str:
    """`` (n = 3, no claim)`` where one of the tests has too few seeds; else nothing."""
    few = [pair.test.n for pair in pairs if not pair.claim]
    return f" (n = {min(few)}, no claim)" if few else ""


def calls_text(reach: Reach) -> str:
    """``123``, or what is known where it was not reached: ``> 400``, ``< 50``."""
    return _end_text(reach.calls, reach)


def reach_interval_text(reach: Reach) -> str:
    """The ends of its interval, censored like the calls; empty where both ends are the same."""
    low, high = _end_text(reach.low, reach), _end_text(reach.high, reach)
    return "" if low == high else f"{low} to {high}"


def reduction_text(reduction: float | None) -> str:
    """``-23.7 %``."""
    return "–" if reduction is None else _signed(f"{reduction:+.1f} %")


def _signed(text: str) -> str:
    """A minus sign as long as the plus."""
    return text.replace("-", "\N{MINUS SIGN}")


def _end_text(calls: float, reach: Reach) -> str:
    if isfinite(calls):
        return f"{calls:,.0f}"
    return f"< {reach.smallest:,.0f}" if calls < 0 else f"> {reach.largest:,.0f}"


def duration_text(seconds: float) -> str:
    """``42 s``, ``12 min`` or ``3.4 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
