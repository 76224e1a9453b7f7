"""Whether a cache and the images at hand belong together.

Shape key: N rows.
"""

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.descriptions import DatasetDescription
from shared.errors import IdentityError

if TYPE_CHECKING:
    from cache.reader import CacheReader

REMEDY = "use the images the cache was made from, or fill a new cache from these"


class KeyedDataset(Protocol):
    """Images whose keys can be asked for."""

    @property
    def description(self) -> DatasetDescription:
        """Name, rows, classes, fingerprint."""

    @property
    def num_rows(self) -> int:
        """N."""

    def key_of(self, row: int, view: int) -> bytes:
        """Key of a row under a view."""


def check_same_images(reader: "CacheReader", dataset: KeyedDataset, *, samples: int, seed: int) -> None:
    """Raise `IdentityError` naming the first offending row unless ``dataset`` is what the cache was made from.

    Compares fingerprints, then the keys of ``samples`` random cached answers with the images at hand.
    """
    ours, theirs = reader.dataset, dataset.description
    if not ours.fingerprint:
        raise IdentityError(f"{ours.name} are uploads without rows of a data set: open the cache of a data set")
    slots = _sample(reader.num_slots, samples=samples, seed=seed)
    rows, views = reader.rows_and_views(slots)
    keys = reader.slot_keys(slots)
    pixels = (
        f"decoded by {ours.decoder} for the cache, by {theirs.decoder} now; " if ours.decoder != theirs.decoder else ""
    )
    if ours.view_policy != theirs.view_policy:
        pixels += f"views of {ours.view_policy} in the cache, of {theirs.view_policy} here; "
    for row, view, key in zip(rows.tolist(), views.tolist(), keys, strict=True):
        if row >= dataset.num_rows:
            raise IdentityError(f"row {row} of the cache is not in {theirs.name} of {dataset.num_rows} rows: {REMEDY}")
        if dataset.key_of(row, view) != key.tobytes():
            raise IdentityError(
                f"row {row} view {view} of {theirs.name} shows other pixels than the cache's {ours.name}: "
                f"{pixels}{REMEDY}"
            )
    if ours.view_policy != theirs.view_policy and views.any():
        raise IdentityError(f"{theirs.name} is not the cache's {ours.name}: {pixels}{REMEDY}")
    if ours.fingerprint != theirs.fingerprint:
        what = _difference(ours, theirs)
        raise IdentityError(f"{theirs.name} is not the cache's {ours.name}: {what}; {pixels}{REMEDY}")


def _sample(slots: int, *, samples: int, seed: int) -> NDArray[np.int64]:
    """Distinct slots in slot order."""
    chosen = np.random.default_rng(seed).choice(slots, size=min(samples, slots), replace=False)
    return np.sort(chosen).astype(np.int64)


def _difference(ours: DatasetDescription, theirs: DatasetDescription) -> str:
    if ours.rows != theirs.rows:
        return f"{ours.rows} rows in the cache, {theirs.rows} here"
    if ours.classes != theirs.classes:
        return "other class names"
    return "labels, pixels or their order differ in rows that were not sampled"
