"""Teacher calls needed to reach an accuracy: interpolated, bootstrapped over seeds, censored where not reached."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from statistics import median

import numpy as np
from numpy.typing import NDArray

from student_trainer.reporting.grid import Panel

RESAMPLES = 2000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """The calls at which a method's mean accuracy reaches a target: -inf below its smallest budget, inf above all."""

    panel: str
    method: str
    target: float
    """Test accuracy, 0 to 1."""
    calls: float
    low: float
    high: float
    """95 % interval over resampled seeds; infinite ends are censored as ``calls`` is."""
    smallest: float
    largest: float
    """Calls of the method's smallest and largest budget."""
    asks: bool
    """False where the method makes no calls: then the number is the budget of the methods beside it."""
    all_labels: bool
    """Whether it trains on the labels of images that nobody asked about: then it is nobody's next best."""
    reduction: float | None
    """Against the best other method that makes calls, in %: negative is fewer. None where either was not reached."""


def calls_to_reach(target: float, *, calls: Sequence[float], accuracies: Sequence[float]) -> float:
    """Where the line through (calls, accuracies) first reaches ``target``: -inf if it starts there, inf if never."""
    if accuracies[0] >= target:
        return -inf
    for place in range(1, len(calls)):
        below, above = accuracies[place - 1], accuracies[place]
        if above >= target:
            share = (target - below) / (above - below)
            return calls[place - 1] + share * (calls[place] - calls[place - 1])
    return inf


def reduction(calls: Mapping[str, float | None], *, method: str) -> float | None:
    """Xu et al. 2025, table 1: calls of ``method`` against the best other one, in %.

    None where the method, or every other one, has no number (None or infinite).
    """
    found = {name: count for name, count in calls.items() if count is not None and isfinite(count)}
    others = [count for name, count in found.items() if name != method]
    # Somebody who starts above the target needs fewer calls than anybody measured: no number can be given then.
    if method not in found or not others or -inf in calls.values():
        return None
    return 100 * (found[method] / min(others) - 1)


def reach_table(
    panel: Panel, *, targets: Sequence[float], resamples: int = RESAMPLES, seed: int = BOOTSTRAP_SEED
) -> tuple[Reach, ...]:
    """Every method x target of a panel; the same resampled seeds for all methods."""
    middle = {method: [_from_means(panel, method, target) for target in targets] for method in panel.methods}
    rows = []
    for method in panel.methods:
        intervals = _intervals(panel, method, targets=targets, resamples=resamples, seed=seed)
        curve = panel.curve(method)
        for place, target in enumerate(targets):
            rivals = {other: middle[other][place] for other in panel.ranked if panel.asks(other)}
            rows.append(
                Reach(
                    panel=panel.title,
                    method=method,
                    target=target,
                    calls=middle[method][place],
                    low=intervals[place][0],
                    high=intervals[place][1],
                    smallest=curve[0].calls,
                    largest=curve[-1].calls,
                    asks=panel.asks(method),
                    all_labels=panel.all_labels(method),
                    reduction=reduction(rivals, method=method),
                )
            )
    return tuple(rows)


def sensible_targets(panels: Sequence[Panel]) -> tuple[float, ...]:
    """Round accuracies between what the middle method reaches with the fewest calls and the best with the most."""
    # Deferred: matplotlib loads slowly, and a wrong folder should be refused at once.
    from matplotlib.ticker import MaxNLocator

    means = [[cell.mean for cell in panel.curve(method)] for panel in panels for method in panel.ranked]
    low, high = median(curve[0] for curve in means), max(max(curve) for curve in means)
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]).tick_values(100 * low, 100 * high) if high > low else []
    inside = tuple(round(float(tick) / 100, 6) for tick in ticks if 100 * low < tick <= 100 * high)
    return inside or (round(high, 3),)


def _from_means(panel: Panel, method: str, target: float) -> float:
    curve = panel.curve(method)
    return calls_to_reach(target, calls=[cell.calls for cell in curve], accuracies=[cell.mean for cell in curve])


def _intervals(
    panel: Panel, method: str, *, targets: Sequence[float], resamples: int, seed: int
) -> list[tuple[float, float]]:
    """Percentile bootstrap, per target: seeds are drawn with replacement, a seed keeps its whole curve.

    Not scipy's bootstrap: its percentiles interpolate, which is nan next to the infinite values of censored resamples.
    """
    calls = np.array([cell.calls for cell in panel.curve(method)])
    drawn, counts = _resamples(panel.accuracies(method), resamples=resamples, seed=seed)
    curves = [
        (calls[measured].tolist(), means[measured].tolist()) for means in drawn for measured in [~np.isnan(means)]
    ]
    intervals = []
    for target in targets:
        found = np.repeat([calls_to_reach(target, calls=at, accuracies=means) for at, means in curves], counts)
        low, high = np.quantile(found, [0.025, 0.975], method="inverted_cdf")
        intervals.append((float(low), float(high)))
    return intervals


def _resamples(
    accuracies_SB: NDArray[np.float64], *, resamples: int, seed: int
) -> tuple[list[NDArray[np.float64]], NDArray[np.int64]]:
    """Mean curves [budgets] over seeds drawn with replacement, and how often each was drawn.

    Of few seeds there are few different draws, 126 of five: each is looked at once. A mean is nan where no drawn seed
    has the budget.
    """
    count = len(accuracies_SB)
    drawn_RS = np.sort(np.random.default_rng(seed).integers(0, count, size=(resamples, count)), axis=1)
    different, times = np.unique(drawn_RS, axis=0, return_counts=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing is nan here, and meant
        return [np.nanmean(accuracies_SB[seeds], axis=0) for seeds in different], times
