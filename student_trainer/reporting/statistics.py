"""Paired differences between methods, with intervals and corrected for how many were looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import inf
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from student_trainer.reporting.grid import Panel

LEVEL = 0.05
"""Below it a corrected p counts as a difference."""

ENOUGH_SEEDS = 5
"""Below it the project's own rules allow no claim."""

EXACT_SEEDS = 12
"""Up to so many seeds all signs are tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedTest:
    """How far the first of two methods lies above the second, over paired seeds."""

    n: int
    """Seeds that both have."""
    mean: float
    """Mean difference in accuracy, first minus second, -1 to 1."""
    low: float
    high: float
    """95 % interval of the mean difference, by Student's t."""
    p: float
    """Two-sided, not corrected."""
    p_rank: float
    """Wilcoxon's signed-rank test on the same differences, exact: a check that assumes no normality."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairResult:
    """A test with its place in the report."""

    panel: str
    budgets: tuple[int, ...]
    """One; or several, over which each seed's difference was averaged."""
    first: str
    second: str
    test: PairedTest
    p_holm: float
    """Corrected for all tests of its family."""

    @property
    def shown(self) -> bool:
        """Whether a difference could be shown."""
        return self.p_holm < LEVEL

    @property
    def claim(self) -> bool:
        """Whether there are seeds enough to claim what is shown."""
        return self.test.n >= ENOUGH_SEEDS

    def turned(self) -> "PairResult":
        """The same test seen from the second method."""
        test = replace(self.test, mean=-self.test.mean, low=-self.test.high, high=-self.test.low)
        return replace(self, first=self.second, second=self.first, test=test)


def paired_test(differences: Sequence[float] | NDArray[np.float64]) -> PairedTest:
    """Paired t-test of two or more differences.

    Student's t and not Wilcoxon's signed ranks: with n seeds ranks cannot go below p = 2 / 2^n, 0.0625 at n = 5,
    so no rank test could ever show anything there. The price is that the differences are taken as normally distributed.
    Where all differences are equal there is no variance to test by: p is then what signs alone allow.
    """
    values = np.asarray(differences, dtype=np.float64)
    n, mean = len(values), float(values.mean())
    if np.ptp(values) <= 1e-12:  # equal up to rounding: accuracies are fractions of the test images
        p = 1.0 if abs(mean) <= 1e-12 else smallest_rank_p(n)
        return PairedTest(n=n, mean=mean, low=mean, high=mean, p=p, p_rank=p)
    result = stats.ttest_1samp(values, 0.0)
    interval = result.confidence_interval(0.95)
    return PairedTest(
        n=n,
        mean=mean,
        low=float(interval.low),
        high=float(interval.high),
        p=float(result.pvalue),
        p_rank=signed_rank_p(values),
    )


def signed_rank_p(differences: NDArray[np.float64]) -> float:
    """Wilcoxon's signed-rank test, two-sided: exact by all signs, where scipy takes milliseconds for each tie."""
    # Rounding keeps ties ties: 0.91 - 0.90 and 0.81 - 0.80 are the same difference.
    values = np.round(differences, 10)
    values = values[values != 0]
    if len(values) > EXACT_SEEDS:
        return float(stats.wilcoxon(values).pvalue)
    ranks = stats.rankdata(np.abs(values))
    signs = np.array(list(product((-1.0, 1.0), repeat=len(values))))
    return float(np.mean(np.abs(signs @ ranks) >= abs(np.sign(values) @ ranks) - 1e-9))


def smallest_rank_p(n: int) -> float:
    """The smallest two-sided p that signs or signed ranks of n differences can give."""
    return min(1.0, 2.0 ** (1 - n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979: each p times the number of hypotheses not yet rejected, never falling, at most 1; in order given."""
    adjusted = [0.0] * len(p_values)
    largest = -inf
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted


def all_pairs(panel: Panel, *, budget: int) -> tuple[PairResult, ...]:
    """Every pair of methods at one budget, corrected for all of them, smallest p first."""
    pairs = _corrected(panel, list(combinations(panel.methods, 2)), budgets=(budget,))
    return tuple(sorted(pairs, key=lambda pair: (pair.p_holm, pair.test.p)))


def averaged_pairs(panel: Panel, *, firsts: Sequence[str], seconds: Sequence[str]) -> tuple[PairResult, ...]:
    """Each of ``firsts`` against each of ``seconds``, a seed's difference averaged over the budgets that both have.

    One test per pair in place of one per budget: the rows are nested, so the budgets of a seed are not independent, but
    the seeds are.
    """
    return _corrected(panel, list(product(firsts, seconds)), budgets=panel.budgets)


def _corrected(panel: Panel, names: Sequence[tuple[str, str]], *, budgets: tuple[int, ...]) -> tuple[PairResult, ...]:
    """The pairs of one family that share two seeds or more."""
    tests = []
    for first, second in names:
        both = tuple(budget for budget in budgets if {(first, budget), (second, budget)} <= panel.cells.keys())
        differences = _differences(panel, first=first, second=second, budgets=both)
        if len(differences) > 1:
            tests.append((first, second, both, paired_test(differences)))
    corrected = holm([test.p for *_, test in tests])
    return tuple(
        PairResult(panel=panel.title, budgets=both, first=first, second=second, test=test, p_holm=p_holm)
        for (first, second, both, test), p_holm in zip(tests, corrected, strict=True)
    )


def _differences(panel: Panel, *, first: str, second: str, budgets: tuple[int, ...]) -> list[float]:
    """First minus second, averaged over the budgets, for every seed that both have at all of them: the same rows."""
    pairs = [(panel.cells[first, budget].accuracies, panel.cells[second, budget].accuracies) for budget in budgets]
    seeds = sorted(set.intersection(*(set(one) & set(other) for one, other in pairs))) if pairs else []
    return [fmean(one[seed] - other[seed] for one, other in pairs) for seed in seeds]
