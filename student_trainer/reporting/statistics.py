"""Paired differences between methods, with intervals and corrected for how many were looked at."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import inf

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from student_trainer.reporting.grid import Panel

LEVEL = 0.05
"""Below it a corrected p counts as a difference."""


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
    budget: int | None
    """None: each seed's difference averaged over all budgets."""
    first: str
    second: str
    test: PairedTest
    p_holm: float
    """Corrected for all tests of its family."""

    @property
    def shown(self) -> bool:
        """Whether a difference could be shown."""
        return self.p_holm < LEVEL

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
    # Rounding keeps ties ties: 0.91 - 0.90 and 0.81 - 0.80 are the same difference.
    ranks = stats.wilcoxon(np.round(values, 10))
    return PairedTest(
        n=n,
        mean=mean,
        low=float(interval.low),
        high=float(interval.high),
        p=float(result.pvalue),
        p_rank=float(ranks.pvalue),
    )


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
    tests = [
        (first, second, paired_test(differences))
        for first, second in combinations(panel.methods, 2)
        if len(differences := _differences(panel, first=first, second=second, budget=budget)) > 1
    ]
    return tuple(sorted(_corrected(panel, tests, budget=budget), key=lambda pair: (pair.p_holm, pair.test.p)))


def averaged_pairs(panel: Panel, *, firsts: Sequence[str], seconds: Sequence[str]) -> tuple[PairResult, ...]:
    """Each of ``firsts`` against each of ``seconds``, a seed's difference averaged over the budgets.

    One test per pair in place of one per budget: the rows are nested, so the budgets of a seed are not independent, but
    the seeds are.
    """
    tests = []
    for first in firsts:
        for second in seconds:
            differences = averaged_differences(panel, first=first, second=second)
            if len(differences) > 1:
                tests.append((first, second, paired_test(differences)))
    return tuple(_corrected(panel, tests, budget=None))


def averaged_differences(panel: Panel, *, first: str, second: str) -> list[float]:
    """Per seed that has both methods at all budgets that both have: the difference averaged over these."""
    budgets = [budget for budget in panel.budgets if {(first, budget), (second, budget)} <= panel.cells.keys()]
    per_budget = [_by_seed(panel, first=first, second=second, budget=budget) for budget in budgets]
    seeds = sorted(set.intersection(*(set(found) for found in per_budget))) if per_budget else []
    return [float(np.mean([found[seed] for found in per_budget])) for seed in seeds]


def _corrected(panel: Panel, tests: Sequence[tuple[str, str, PairedTest]], *, budget: int | None) -> list[PairResult]:
    corrected = holm([test.p for _, _, test in tests])
    return [
        PairResult(panel=panel.title, budget=budget, first=first, second=second, test=test, p_holm=p_holm)
        for (first, second, test), p_holm in zip(tests, corrected, strict=True)
    ]


def _differences(panel: Panel, *, first: str, second: str, budget: int) -> list[float]:
    return list(_by_seed(panel, first=first, second=second, budget=budget).values())


def _by_seed(panel: Panel, *, first: str, second: str, budget: int) -> dict[int, float]:
    """First minus second for every seed that both have: the same subset of rows."""
    one, other = panel.cells.get((first, budget)), panel.cells.get((second, budget))
    if one is None or other is None:
        return {}
    left, right = one.accuracies, other.accuracies
    return {seed: left[seed] - right[seed] for seed in sorted(left.keys() & right.keys())}
