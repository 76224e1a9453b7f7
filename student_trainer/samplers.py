"""Batches with several samples of each class drawn, for losses that compare samples: RKD's authors draw 5.

Shape key: N training samples.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from shared.errors import InputError
from student_trainer.order import ORDER, epoch_batches, stream


def per_class_batches(
    labels_N: ArrayLike, *, batch: int, per_class: int, least: int = 1, seed: int, epoch: int
) -> list[NDArray[np.int64]]:
    """Positions 0..N-1 in as many batches, and of the same sizes, as `epoch_batches` has, from seed and epoch alone.

    A batch takes ``per_class`` samples of one class after the other until it is full, those classes first that gave
    the fewest in this epoch; the last may give fewer, as may one that has fewer, and classes give again where there
    are too few of them. No batch holds a sample twice. A class goes through its samples in a random
    order before it repeats one, so with classes of one size nearly every sample is seen once an epoch; small classes
    are seen more often than large ones, as in the samplers of RKD's and CKD's authors, which draw classes at random.
    """
    labels_N = np.asarray(labels_N)
    if per_class < 1:
        raise InputError(f"per_class={per_class}: draw at least 1 sample of a class")
    draws = stream(seed, purpose=ORDER, epoch=epoch)
    classes = _Classes(labels_N, generator=draws)
    usual = epoch_batches(count=len(labels_N), batch=batch, least=least, seed=seed, epoch=epoch)
    return [classes.draw(len(positions), per_class=per_class) for positions in usual]


class _Classes:
    """The samples of each class in a random order, and where each class stands in it."""

    def __init__(self, labels_N: NDArray[np.int64], *, generator: np.random.Generator) -> None:
        shuffled_N = generator.permutation(len(labels_N))
        by_class_N = shuffled_N[np.argsort(labels_N[shuffled_N], kind="stable")]
        sizes = np.unique(labels_N, return_counts=True)[1]
        self._samples = np.split(by_class_N, np.cumsum(sizes)[:-1])
        self._generator = generator
        self._next = [0] * len(sizes)
        self._given = np.zeros(len(sizes), dtype=np.int64)

    def draw(self, count: int, *, per_class: int) -> NDArray[np.int64]:
        """Positions of ``count`` distinct samples, those of a class side by side."""
        by_chance = self._generator.permutation(len(self._samples))
        order = by_chance[np.argsort(self._given[by_chance], kind="stable")].tolist()
        taken: dict[int, int] = {}
        while (missing := count - sum(taken.values())) > 0:
            for one in order:
                already = taken.get(one, 0)
                more = min(per_class, len(self._samples[one]) - already, missing)
                taken[one] = already + more
                missing -= more
                if missing == 0:
                    break
        return np.concatenate([self._take(one, number) for one, number in taken.items()])

    def _take(self, one: int, number: int) -> NDArray[np.int64]:
        """The next samples of a class, from the start again after its last."""
        samples, first = self._samples[one], self._next[one]
        self._next[one] = (first + number) % len(samples)
        self._given[one] += number
        return np.take(samples, np.arange(first, first + number), mode="wrap")


class PerClassSampler(Sampler[list[int]]):
    """`per_class_batches` for a ``DataLoader(dataset, batch_sampler=...)``; each pass over it is the next epoch."""

    def __init__(self, labels: ArrayLike, *, batch: int, per_class: int = 5, least: int = 2, seed: int = 0) -> None:
        """``labels`` of all samples of the data set, in its order."""
        self._labels_N = np.asarray(labels)
        self._batch = batch
        self._per_class = per_class
        self._least = least
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next pass is, from 0: a resumed training says where it goes on."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        """Positions of each batch of the epoch."""
        batches = per_class_batches(
            self._labels_N,
            batch=self._batch,
            per_class=self._per_class,
            least=self._least,
            seed=self._seed,
            epoch=self._epoch,
        )
        self._epoch += 1
        return (positions.tolist() for positions in batches)

    def __len__(self) -> int:
        """Batches of an epoch."""
        return len(epoch_batches(count=len(self._labels_N), batch=self._batch, least=self._least, seed=0, epoch=0))
