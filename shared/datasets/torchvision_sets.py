"""torchvision's classification data sets: ``torchvision:CIFAR100`` and every other of (image, label) with splits.

Shape key: N rows, H height, W width.
"""

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import ArrayDataset, ImageDataset, ItemDataset, Normalisation, SplitFacts
from shared.datasets.items import item_classes, item_labels, item_pixels, probe_rows
from shared.datasets.source import SplitSource
from shared.errors import InputError, UnknownNameError

DEFAULT_ROOT = Path("data")
KNOWN_STATISTICS = {
    "CIFAR10": Normalisation(mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616)),
    "CIFAR100": Normalisation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761)),
}
"""The constants that the literature uses."""
DIGITS = frozenset({"MNIST", "QMNIST", "KMNIST", "EMNIST", "USPS", "SVHN"})
"""Sets of characters: a mirrored one is another character, or none."""
COMMON_SPLITS = ("train", "test", "val", "valid")
CONSTRUCTION_ERRORS = (OSError, RuntimeError, ValueError, TypeError, ImportError, EOFError, LookupError)
"""What torchvision raises for files that are missing, damaged, out of reach, or need another package."""


class TorchvisionSource(SplitSource):
    """One class of ``torchvision.datasets``."""

    @cached_property
    def _class(self) -> Callable[..., Any]:
        # torchvision imports torch, which takes seconds and is not needed for other kinds.
        try:
            from torchvision import datasets  # type: ignore[import-untyped]
        except ImportError as error:
            raise InputError('torchvision is not installed; pip install "teachonce[trainer]"') from error
        name = self.spec.argument
        known = {known.lower(): known for known in datasets.__all__}
        if name.lower() not in known:
            near = [known[match] for match in get_close_matches(name.lower(), known, n=3)]
            raise UnknownNameError(
                f"torchvision has no data set {name!r}; {'near: ' + ', '.join(near) if near else 'try CIFAR100'}"
            )
        found: Callable[..., Any] = getattr(datasets, known[name.lower()])
        return found

    @cached_property
    def _parameters(self) -> frozenset[str]:
        names = frozenset(inspect.signature(self._class).parameters)
        if "root" not in names or not names & {"train", "split"}:
            raise InputError(
                f"torchvision's {self.spec.argument} has no train and test split; unpack it and use folder:PATH, or "
                f"write a few lines and use python:FILE.py:FUNCTION"
            )
        return names

    @property
    def _root(self) -> Path:
        return DEFAULT_ROOT if self.options.root is None else self.options.root

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """``train`` and ``test``, or those of them and ``val``, ``valid`` that the constructor's ``split`` takes."""
        if "split" not in self._parameters:
            return "train", "test"
        try:
            self._class(root=str(self._root), split="?")
        except ValueError as error:  # the names are checked before the disk, and listed
            known = tuple(split for split in COMMON_SPLITS if f"'{split}'" in str(error))
            if not known:
                raise InputError(f"data set {self.spec.name!r} has no common split: {_one_line(error)}") from error
            return known
        except CONSTRUCTION_ERRORS:
            pass
        return "train", "test"

    def open(self, split: str) -> ImageDataset:
        """Open one split; raises `UnknownNameError`, or `InputError` for files that are missing or damaged."""
        by_train = "split" not in self._parameters
        if by_train:
            self.check_split(split)
        items = self._construct({"train": split == "train"} if by_train else {"split": split})
        name = str(getattr(self._class, "__name__", self.spec.argument))
        labels = item_labels(items)
        facts = SplitFacts(
            name=self.split_name(split),
            classes=item_classes(items, labels=labels),
            labels=labels,
            view_policy="crop4" if name in DIGITS else "crop4flip",
            normalisation=KNOWN_STATISTICS.get(name),
            statistics_from=None if split == "train" else lambda: self.open("train"),
        )
        pixels_NHW3 = exposed_pixels(items, labels=labels)
        if pixels_NHW3 is not None:
            return ArrayDataset(facts, pixels=pixels_NHW3)
        return ItemDataset(facts, read=lambda row: item_pixels(items[row][0]))

    def _construct(self, which: dict[str, Any]) -> Any:
        takes_download = bool(self._parameters & {"download", "kwargs"})
        options = {"download": True} if self.options.download and takes_download else {}
        try:
            return self._class(root=str(self._root), **which, **options)
        except CONSTRUCTION_ERRORS as error:
            name = self.spec.argument
            if "Valid values" in str(error):
                raise UnknownNameError(f"data set {self.spec.name!r}: {_one_line(error)}") from error
            if self.options.download:
                raise InputError(
                    f"cannot download {name} to {self._root}: {type(error).__name__}: {_one_line(error)}"
                ) from error
            raise InputError(
                f"{name} is not (whole) in {self._root}; "
                f"say where it is with --data-root DIR, or fetch it with --download"
            ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def exposed_pixels(items: Any, *, labels: list[int]) -> NDArray[np.uint8] | None:
    """All pixels uint8 [N, H, W, 3] of a set that keeps them as one array in ``data``, else None.

    The array is compared with what the set itself gives for a few rows, so an unknown layout is never guessed.
    """
    data = getattr(items, "data", None)
    if data is None or not hasattr(data, "shape") or len(data) != len(items):
        return None
    array = np.asarray(data)
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        return None
    if array.ndim == 3:
        array = np.repeat(array[..., None], 3, axis=3)
    elif array.shape[3] != 3:
        array = array.transpose(0, 2, 3, 1)
    if array.shape[3] != 3:
        return None
    for row in probe_rows(items):
        image, label = items[row]
        if int(label) != labels[row] or not np.array_equal(item_pixels(image), array[row]):
            return None
    return np.ascontiguousarray(array)
