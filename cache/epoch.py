"""One pass over answers in an order that suits where they lie, read ahead of their use.

Shape key: n answers of an epoch, B answers of a batch.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from cache.placement import Order

BLOCK_SLOTS = 128
"""Neighbouring slots that stay together in order "window"."""
WINDOW_BYTES = 32 * 2**20
"""Answers that are shuffled with each other in order "window": two windows, the one that is read and the next, must
stay in memory. It is fixed, and not a part of the memory there is: a seed means one order on every machine."""
MOST_WINDOW_SLOTS, LEAST_WINDOW_SLOTS = 65_536, 16 * BLOCK_SLOTS
"""512 blocks mix well; of very large answers a window still has some blocks to mix."""
BATCHES_AHEAD = 4
"""Batches that the kernel is told of before they are needed, in order "random"."""

Ints = NDArray[np.int64]
WillNeed = Callable[[Ints], None]


def window_slots(slot_bytes: int) -> int:
    """Slots of a window of answers of this size."""
    return max(LEAST_WINDOW_SLOTS, min(MOST_WINDOW_SLOTS, WINDOW_BYTES // slot_bytes))


def epoch_order(slots: Ints, *, order: Order, window: int, seed: int) -> Ints:
    """Positions [n] of slots [n] in the order of a visit, each once; the same for the same seed."""
    generator = np.random.default_rng(seed)
    if order == "random":
        return generator.permutation(len(slots))
    by_slot = np.argsort(slots, kind="stable")
    starts = generator.permutation(np.arange(0, len(slots), BLOCK_SLOTS))
    visited = np.concatenate([by_slot[start : start + BLOCK_SLOTS] for start in starts] or [by_slot])
    for start in range(0, len(visited), window):
        generator.shuffle(visited[start : start + window])
    return visited


def epoch_slices(slots: Ints, *, batch: int, order: Order, window: int, will_need: WillNeed | None) -> Iterator[slice]:
    """Batches of slots [n] that are in the order of their visit; ``will_need`` is told of slots ahead of their use."""
    if will_need is None:
        yield from _slices(len(slots), batch)
        return
    ahead = BATCHES_AHEAD * batch if order == "random" else window
    # Of a window in slot order, so that neighbours are read together.
    told = slots if order == "random" else _sorted_windows(slots, window=window)
    will_need(told[:ahead])
    for piece in _slices(len(slots), batch):
        will_need(told[piece.start + ahead : piece.stop + ahead])
        yield piece


def _sorted_windows(slots: Ints, *, window: int) -> Ints:
    windows = [np.sort(slots[piece]) for piece in _slices(len(slots), window)]
    return np.concatenate(windows) if windows else slots


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
