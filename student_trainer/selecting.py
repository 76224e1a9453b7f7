"""Which images to ask the teacher about when calls are few: orders of asking, whose beginnings are smaller budgets.

Shape key: N pool, C classes, D feature width.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, softmax

from shared.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from student_trainer.config import TrainConfig

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Look:
    """What a first student says about rows, in the order in which they were given."""

    features: Floats
    """Input of its last layer, [N, D]."""
    logits: Floats
    """[N, C]."""


Looker = Callable[[Ints], Look]
"""Rows [N] of the data set -> what a first student says about them."""


def asking_order(
    strategy: str, *, pool: Ints, labels: Ints, count: int, initial: int, look: Looker | None = None
) -> Ints:
    """The first ``count`` rows of ``pool`` to ask about, int64; a smaller count gives the beginning of the same order.

    ``pool`` comes in random order, and what the strategy leaves open is decided by it. ``labels`` are those of all rows
    of the data set; only class-balanced reads them. Strategies that look at a first student begin with the ``initial``
    rows that it was trained on. Raises `UnknownNameError`; `InputError` where the pool is too small, or no student
    can be looked at.
    """
    if strategy not in STRATEGIES:
        raise UnknownNameError(f"unknown selection {strategy!r}; known: {', '.join(STRATEGIES)}")
    if not 0 <= count <= len(pool):
        raise InputError(f"{count} rows to ask about, and the pool has {len(pool)}; choose fewer")
    if strategy == "random":
        return pool[:count]
    if strategy == "class-balanced":
        return pool[_class_rounds(labels[pool])[:count]]
    if look is None or initial < 1:
        raise InputError(f"selection {strategy} looks at a student trained on the first rows; give 1 or more of them")
    if count <= initial:
        return pool[:count]
    later = LOOKING[strategy](look(pool), initial, count)
    return np.concatenate([pool[:initial], pool[later[: count - initial]]])


def first_student(config: "TrainConfig") -> Looker:
    """A student trained by cross-entropy on ``config.rows`` under view 0; read back where ``config.out`` holds it.

    What ``config`` says about losses and answers is left out: no teacher is asked, and the test split is not touched.
    """
    # Names of strategies are checked without torch, which takes seconds to import.
    from student_trainer.first_student import FirstStudent

    return FirstStudent(config)


def _class_rounds(labels_N: Ints) -> Ints:
    """Positions in rounds that take one row of each class; within a round, and within a class, in pool order."""
    by_class = np.argsort(labels_N, kind="stable")
    sorted_labels = labels_N[by_class]
    rank = np.empty(len(labels_N), dtype=np.int64)
    rank[by_class] = np.arange(len(labels_N)) - np.searchsorted(sorted_labels, sorted_labels)
    return np.argsort(rank, kind="stable")


def _k_center(look: Look, initial: int, count: int) -> Ints:
    """Sener and Savarese 2018, algorithm 1: always the row farthest from all that were chosen (Euclidean)."""
    features_ND = _centred(look.features)
    squares_N = np.einsum("nd,nd->n", features_ND, features_ND)
    gap_N = np.full(len(features_ND), np.inf)
    chosen = list(range(initial))
    for newest in range(count):
        if newest >= initial:
            chosen.append(int(gap_N.argmax()))
        centre = chosen[newest]
        np.minimum(gap_N, squares_N - 2 * (features_ND @ features_ND[centre]) + squares_N[centre], out=gap_N)
        # Below every distance, however it was rounded: a row is chosen once, and the copies of a row after all others.
        gap_N[centre] = -np.inf
    return np.array(chosen[initial:], dtype=np.int64)


def _herding(look: Look, initial: int, count: int) -> Ints:
    """Welling 2009 as greedy mean matching: always the row that brings the mean of all chosen nearest to the pool's."""
    # Around the pool's mean, the mean to match is 0: ||sum + x||^2 is to be smallest.
    features_ND = _centred(look.features)
    squares_N = np.einsum("nd,nd->n", features_ND, features_ND)
    squares_N[:initial] = np.inf
    sum_D = features_ND[:initial].sum(axis=0)
    chosen = []
    for _ in range(count - initial):
        nearest = int((squares_N + 2 * (features_ND @ sum_D)).argmin())
        chosen.append(nearest)
        sum_D += features_ND[nearest]
        squares_N[nearest] = np.inf
    return np.array(chosen, dtype=np.int64)


def _margin(look: Look, initial: int, _count: int) -> Ints:
    """Smallest difference between the two largest probabilities first (Scheffer et al. 2001)."""
    top_N2 = np.sort(softmax(look.logits[initial:].astype(np.float64), axis=1), axis=1)[:, -2:]
    return initial + np.argsort(top_N2[:, 1] - top_N2[:, 0], kind="stable")


def _entropy(look: Look, initial: int, _count: int) -> Ints:
    """Largest entropy of the probabilities first (Shannon 1948)."""
    entropy_N = entr(softmax(look.logits[initial:].astype(np.float64), axis=1)).sum(axis=1)
    return initial + np.argsort(-entropy_N, kind="stable")


LOOKING: Mapping[str, Callable[[Look, int, int], Ints]] = {
    "k-center": _k_center,
    "herding": _herding,
    "margin": _margin,
    "entropy": _entropy,
}
"""Strategies that look at a first student: (look at the pool, initial, count) -> positions to ask after the initial."""
STRATEGIES: tuple[str, ...] = ("random", "class-balanced", *LOOKING)


def _centred(features_ND: Floats) -> NDArray[np.float64]:
    """In float64 around their mean, so that little is lost where squares are subtracted."""
    wide = features_ND.astype(np.float64)
    centred: NDArray[np.float64] = wide - wide.mean(axis=0)
    return centred
