"""What each epoch does, from the seed and the epoch's number alone: its batches and its views.

Nothing here remembers anything, so a resumed run draws what the killed one would have drawn. Shape key: N positions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SPLIT, ORDER, STUDENT_VIEWS, TEACHER_VIEWS, INITIAL, TORCH, LOSS, PREPARATION = range(8)
"""Separate streams of one seed: adding a draw to one leaves the others as they were."""


def stream(seed: int, *, purpose: int, epoch: int = 0) -> np.random.Generator:
    """The random numbers of one purpose in one epoch."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, purpose, epoch])))


def derived_seed(seed: int, *, purpose: int, epoch: int = 0) -> int:
    """A seed below 2^31 for a library with its own generator."""
    return int(stream(seed, purpose=purpose, epoch=epoch).integers(2**31))


def epoch_batches(
    *, count: int, batch: int, least: int, seed: int, epoch: int, purpose: int = ORDER
) -> list[NDArray[np.int64]]:
    """The positions 0..count-1 in a new order, cut into batches.

    A last batch below ``least`` joins the one before: batch norm needs 2 images, a comparison all it compares.
    """
    order_N = stream(seed, purpose=purpose, epoch=epoch).permutation(count)
    starts = list(range(0, count, batch))
    if len(starts) > 1 and count - starts[-1] < least:
        starts.pop()
    return np.split(order_N, starts[1:])


def drawn_views(views: Sequence[int], *, count: int, seed: int, epoch: int, purpose: int) -> NDArray[np.int64]:
    """One of ``views`` per position, int64 [N]."""
    choices = np.asarray(views, dtype=np.int64)
    if len(choices) == 1:
        return np.full(count, choices[0])
    return choices[stream(seed, purpose=purpose, epoch=epoch).integers(len(choices), size=count)]


def split_rows(rows_N: NDArray[np.int64], *, part: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training rows, validation rows): ``part`` of the rows held out at random, each in the order given."""
    held_out = round(part * len(rows_N))
    chosen = np.zeros(len(rows_N), dtype=bool)
    chosen[stream(seed, purpose=SPLIT).permutation(len(rows_N))[:held_out]] = True
    return rows_N[~chosen], rows_N[chosen]
