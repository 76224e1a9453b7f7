"""One pass over answers in an order that suits where they lie, read ahead of their use.

Shape key: n answers of an epoch, B answers of a batch.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from cache.placement import Order

BLOCK_SLOTS = 128
"""Neighbouring slots that stay together in order "window"; 512 blocks of a window mix well."""
WINDOW_SLOTS = 65_536
"""Slots that are shuffled with each other in order "window"."""
BATCHES_AHEAD = 4
"""Batches that the kernel is told of before they are needed, in order "random"."""

Ints = NDArray[np.int64]
WillNeed = Callable[[Ints], None]


def epoch_order(slots: Ints, *, order: Order, seed: int) -> Ints:
    """Positions [n] of slots [n] in the order of a visit, each once; the same for the same seed."""
    generator = np.random.default_rng(seed)
    if order == "random":
        return generator.permutation(len(slots))
    by_slot = np.argsort(slots, kind="stable")
    starts = generator.permutation(np.arange(0, len(slots), BLOCK_SLOTS))
    visited = np.concatenate([by_slot[start : start + BLOCK_SLOTS] for start in starts] or [by_slot])
    for start in range(0, len(visited), WINDOW_SLOTS):
        generator.shuffle(visited[start : start + WINDOW_SLOTS])
    return visited


def epoch_slices(slots: Ints, *, batch: int, order: Order, will_need: WillNeed | None) -> Iterator[slice]:
    """Batches of slots [n] that are in the order of their visit; ``will_need`` is told of slots ahead of their use."""
    if will_need is None:
        yield from _slices(len(slots), batch)
        return
    ahead = BATCHES_AHEAD * batch if order == "random" else WINDOW_SLOTS
    # Of a window in slot order, so that neighbours are read together.
    told = slots if order == "random" else _sorted_windows(slots)
    will_need(told[:ahead])
    for piece in _slices(len(slots), batch):
        will_need(told[piece.start + ahead : piece.stop + ahead])
        yield piece


def _sorted_windows(slots: Ints) -> Ints:
    windows = [np.sort(slots[piece]) for piece in _slices(len(slots), WINDOW_SLOTS)]
    return np.concatenate(windows) if windows else slots


def _slices(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
