"""Sides that take turns, and how their ratios are written."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from scipy.stats import bootstrap

TURN_S = 0.03
"""Seconds that a side works in one turn, at least one batch."""

Gather = Callable[[np.ndarray], Any]
Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def interval(values: list[float]) -> str:
    """Median and its 95 % bootstrap interval."""
    found = bootstrap((values,), np.median, method="percentile", n_resamples=2000, rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return f"{statistics.median(values):8.3g} [{low:.3g}, {high:.3g}]"


def take_turns(
    sides: Mapping[str, Gather], *, rows: np.ndarray, batch: int, rounds: int, clock: Clock
) -> dict[str, list[float]]:
    """Rows per second of every side in every round."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    rng = np.random.default_rng(1)
    for number in range(rounds + 1):
        names = list(sides) if number % 2 == 0 else list(reversed(sides))
        batches = [rng.choice(rows, batch) for _ in range(64)]
        for name in names:
            began, done = clock(), 0
            while done == 0 or clock() - began < TURN_S:
                sides[name](batches[done % len(batches)])
                done += 1
            # The first round warms up.
            if number:
                rates[name].append(done * batch / (clock() - began))
    return rates
