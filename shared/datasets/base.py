"""What every data set gives: numbered rows of canonical pixels with labels, keys, and a fingerprint over all of them.

Shape key: B rows asked for, N rows, H height, W width.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import RLock
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shared.descriptions import DatasetDescription
from shared.errors import InputError, RowRangeError
from shared.identity import dataset_fingerprint, pixel_key, pixel_keys, sample_rows
from shared.pixels import DECODER
from shared.rendering import render_row
from shared.view_policy import random_policy, read_policy

STATISTICS_ROWS = 10_000
"""Rows that normalisation statistics are computed over, at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalisation:
    """Mean and standard deviation of pixels / 255, per channel (red, green, blue)."""

    mean: tuple[float, float, float]
    """Between 0 and 1."""
    std: tuple[float, float, float]
    """Above 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitFacts:
    """What is known about a split besides its pixels."""

    name: str
    """``NAME/SPLIT``."""
    classes: Sequence[str]
    """Class names by label."""
    labels: ArrayLike
    """N whole numbers, 0 to the number of classes - 1."""
    view_policy: str
    """Which numbered views exist, see `shared.views`."""
    decoder: str = ""
    """Library and version that decoded the pixels."""
    normalisation: Normalisation | None = None
    """Known constants; None to compute them."""
    statistics_from: "Callable[[], ImageDataset] | None" = None
    """Opens the training split, where this is another one."""


class ImageDataset(ABC):
    """One split of a data set; row r is the same image for ever. Safe to use from several threads."""

    def __init__(self, facts: SplitFacts) -> None:
        self.name = facts.name
        """``NAME/SPLIT``."""
        self.classes = tuple(facts.classes)
        """Class names by label."""
        self.labels = np.array(facts.labels, dtype=np.int64)
        """int64 [N], read-only."""
        self.labels.flags.writeable = False
        self.view_policy = facts.view_policy
        """Which numbered views exist, see `shared.views`; the data set's own, unless `with_views` chose another."""
        self._facts = facts
        self._lock = RLock()
        self._keys: NDArray[np.uint8] | None = None
        if self.num_rows == 0:
            raise InputError(f"data set {self.name} has no images")
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise InputError(
                f"data set {self.name} has labels from {self.labels.min()} to {self.labels.max()}; "
                f"its {len(self.classes)} classes need 0 to {len(self.classes) - 1}"
            )

    @property
    def own_policy(self) -> str:
        """The views that the data set has where nobody chooses others."""
        return self._facts.view_policy

    def with_views(self, policy: str | None) -> Self:
        """The same images under another view policy, which may leave parameters out; None: under their own.

        Raises `UnknownNameError` and `InputError`.
        """
        changed = copy.copy(self)
        changed.view_policy = self.own_policy if policy is None else str(read_policy(policy, self.own_policy))
        return changed

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.labels)

    @abstractmethod
    def _load(self, row: int) -> NDArray[np.uint8]:
        """Canonical pixels of a row that exists."""

    def image(self, row: int) -> NDArray[np.uint8]:
        """Canonical pixels of one row, uint8 [H, W, 3]; raises `RowRangeError`."""
        if not 0 <= row < self.num_rows:
            raise self._outside(row)
        return self._load(row)

    def images(self, rows: ArrayLike) -> list[NDArray[np.uint8]]:
        """Canonical pixels of many rows, in the order asked for; sizes may differ from image to image."""
        return [self._load(row) for row in self.check_rows(rows).tolist()]

    def check_rows(self, rows: ArrayLike) -> NDArray[np.int64]:
        """The rows as int64 [B]; raises `RowRangeError` naming the first that the data set does not have."""
        rows_B = np.atleast_1d(np.asarray(rows))
        if rows_B.size == 0:
            return np.empty(0, dtype=np.int64)
        if rows_B.ndim != 1 or rows_B.dtype.kind not in "iu":
            raise RowRangeError(f"rows must be whole numbers in one list; got {rows_B.dtype} {list(rows_B.shape)}")
        outside_B = (rows_B < 0) | (rows_B >= self.num_rows)
        if outside_B.any():
            raise self._outside(int(rows_B[outside_B][0]))
        return rows_B.astype(np.int64)

    def _outside(self, row: int) -> RowRangeError:
        return RowRangeError(f"row {row} is out of range: {self.name} has rows 0 to {self.num_rows - 1}")

    @property
    def keys(self) -> NDArray[np.uint8]:
        """Keys of view 0, uint8 [N, 32], read-only; computed at the first use."""
        with self._lock:
            if self._keys is None:
                self._keys = self._compute_keys()
            return self._keys

    def _compute_keys(self) -> NDArray[np.uint8]:
        return pixel_keys(self._load(row) for row in range(self.num_rows))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over keys, labels and class names."""
        return dataset_fingerprint(keys_N32=self.keys, labels_N=self.labels, classes=self.classes)

    @property
    def description(self) -> DatasetDescription:
        """What a cache writes down about this data set."""
        return DatasetDescription(
            name=self.name,
            rows=self.num_rows,
            classes=self.classes,
            fingerprint=self.fingerprint,
            view_policy=self.view_policy,
            # Pillow draws random views, and so decides their pixels where no file is decoded.
            decoder=self._facts.decoder or (DECODER if random_policy(self.view_policy) else ""),
        )

    @cached_property
    def normalisation(self) -> Normalisation:
        """Statistics of the training split: known constants, or computed over a fixed sample of its rows."""
        if self._facts.normalisation is not None:
            return self._facts.normalisation
        if self._facts.statistics_from is not None:
            return self._facts.statistics_from().normalisation
        count = min(self.num_rows, STATISTICS_ROWS)
        rows = np.sort(sample_rows(num_rows=self.num_rows, count=count, seed=0))
        return pixel_statistics(self._load(row) for row in rows.tolist())

    def rendered(self, row: int, view: int) -> NDArray[np.uint8]:
        """Pixels of one view of a row, uint8 [H, W, 3]; raises `RowRangeError`."""
        return render_row(row, view, policy=self.view_policy, num_rows=self.num_rows, load=self.image)

    def key_of(self, row: int, view: int) -> bytes:
        """The key of one view of a row, from its pixels and never from memory."""
        return pixel_key(self.rendered(row, view))


def pixel_statistics(images: Iterable[NDArray[np.uint8]]) -> Normalisation:
    """Mean and standard deviation over all pixels, exact: counted as integers, rounded to 6 decimals at the end.

    A channel of one value throughout gets a deviation of 1, so that it can be divided by.
    """
    counts_C256 = np.zeros((3, 256), dtype=np.int64)
    for image_HW3 in images:
        for channel in range(3):
            counts_C256[channel] += np.bincount(image_HW3[:, :, channel].ravel(), minlength=256)
    total = int(counts_C256[0].sum())
    levels = range(256)
    means, deviations = [], []
    for counts in counts_C256.tolist():
        first = sum(level * count for level, count in zip(levels, counts, strict=True))
        second = sum(level * level * count for level, count in zip(levels, counts, strict=True))
        # Integers of any size: no cancellation, and the same bytes on every machine (the values enter teacher ids).
        variance = (second * total - first * first) / (total * total)
        means.append(round(first / total / 255, 6))
        deviations.append(round(variance**0.5 / 255, 6) or 1.0)
    return Normalisation(mean=(means[0], means[1], means[2]), std=(deviations[0], deviations[1], deviations[2]))


class ArrayDataset(ImageDataset):
    """A data set held in memory as one uint8 array [N, H, W, 3]."""

    def __init__(self, facts: SplitFacts, *, pixels: NDArray[np.uint8]) -> None:
        super().__init__(facts)
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or len(pixels) != self.num_rows:
            raise InputError(
                f"data set {self.name} needs uint8 [{self.num_rows}, H, W, 3]; got {pixels.dtype} {list(pixels.shape)}"
            )
        self._pixels_NHW3 = np.ascontiguousarray(pixels)

    def _load(self, row: int) -> NDArray[np.uint8]:
        pixels_HW3: NDArray[np.uint8] = self._pixels_NHW3[row]
        return pixels_HW3


class ItemDataset(ImageDataset):
    """A data set whose pixels come from a function of the row."""

    def __init__(self, facts: SplitFacts, *, read: Callable[[int], NDArray[np.uint8]]) -> None:
        super().__init__(facts)
        self._read = read

    def _load(self, row: int) -> NDArray[np.uint8]:
        return self._read(row)
