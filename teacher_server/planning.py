"""What a cache holds already, for a plan: read without the lock, also while a server writes it.

Shape key: N rows of a data set.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cache.catalog import read_catalog
from cache.info import describe_cache
from cache.key_index import KeyIndex
from cache.layout import ADDING, LEDGER
from cache.ledger_schema import SLOT_BITS
from cache.reader import CacheReader
from cache.records import check_same_dataset
from cache.snapshot import read_snapshot
from shared.datasets.base import ImageDataset
from shared.outputs import OutputForm


class CachedAlready:
    """One teacher's answers in a folder, which need not exist."""

    def __init__(self, readers: dict[str, CacheReader], *, budgets: dict[str, Any]) -> None:
        self._readers = readers
        self._budgets = budgets
        # Numbered one cache after another.
        self._caches = list(readers.values())
        self._keys = [KeyIndex(self._key_of) for _ in self._caches]
        for number, (reader, keys) in enumerate(zip(self._caches, self._keys, strict=True)):
            keys.extend(reader.slot_keys(np.arange(reader.num_slots)), base=number << SLOT_BITS, first_slot=0)

    def _key_of(self, number: int) -> bytes:
        slot = np.array([number & ((1 << SLOT_BITS) - 1)])
        return self._caches[number >> SLOT_BITS].slot_keys(slot).tobytes()

    @classmethod
    def open(cls, path: Path, *, teacher: str) -> Self:
        """What the teacher of this id has answered in the cache at ``path``."""
        if not (path / LEDGER).exists():
            return cls({}, budgets={})
        names = [entry.dataset.name for entry in read_catalog(path) if entry.teacher.id == teacher]
        readers = {name: CacheReader.open(path, teacher=teacher, dataset=name, journal=True) for name in names}
        return cls(readers, budgets=describe_cache(path)["budgets"])

    def outputs(self, dataset: str) -> dict[str, str] | None:
        """Name to dtype of what the data set's cache keeps; None where there is none yet."""
        return self._readers[dataset].dtypes if dataset in self._readers else None

    def slots(self, dataset: str) -> int:
        """Answers that the data set's cache holds."""
        return self._readers[dataset].num_slots if dataset in self._readers else 0

    def forms(self, dataset: str) -> dict[str, OutputForm]:
        """What the outputs of the data set's cache look like."""
        return self._readers[dataset].forms if dataset in self._readers else {}

    def unanswered(self, path: Path, dataset: str) -> tuple[int, int]:
        """Slots that an interrupted adding of outputs has still to answer, and the distinct images of them."""
        reader = self._readers[dataset]
        done = 0
        for entry in read_catalog(path, unfinished=True):
            if (entry.teacher.id, entry.dataset.name) == (reader.teacher.id, dataset + ADDING):
                done = read_snapshot(path, entry=entry, journal=True).slots
        keys = [key.tobytes() for key in reader.slot_keys(np.arange(reader.num_slots))]
        return len(keys) - done, len(set(keys[done:]) - set(keys[:done]))

    def present(self, dataset: ImageDataset, *, view: int) -> NDArray[np.bool_]:
        """Which rows are cached, bool [N]; raises `IdentityError` for another data set of that name."""
        if dataset.name not in self._readers:
            return np.zeros(dataset.num_rows, dtype=np.bool_)
        self.check_same(dataset)
        return self._readers[dataset.name].present(view)

    def check_same(self, dataset: ImageDataset) -> None:
        """Raise `IdentityError` where the cache of this name is about other images or views."""
        check_same_dataset(self._readers[dataset.name].dataset, dataset.description)

    def has_key(self, key: bytes, *, outputs: Mapping[str, str]) -> bool:
        """Whether the teacher has answered these pixels, in any data set, with all of these outputs in their dtypes."""
        return any(
            keys.get(key) is not None
            for reader, keys in zip(self._caches, self._keys, strict=True)
            if outputs.items() <= reader.dtypes.items()
        )

    def remaining(self, run: str, *, budget: int | None) -> int | None:
        """Calls that a run may still make, under ``budget`` or the one it has; None where nothing bounds it."""
        counts = self._budgets.get(run, {"budget": None, "attempts": 0})
        bound = counts["budget"] if budget is None else budget
        return None if bound is None else max(0, bound - counts["attempts"])
