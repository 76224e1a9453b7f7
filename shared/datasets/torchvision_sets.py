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
from shared.datasets.python_file import item_pixels, labels_of
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
PROBED_ROWS = 3


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

    @property
    def splits(self) -> tuple[str, ...]:
        """``train`` and ``test``, or what stands in for them on the constructor's ``split``."""
        if "train" in self._parameters and "split" not in self._parameters:
            return "train", "test"
        return tuple(split for split in COMMON_SPLITS if self._knows(split))

    def _knows(self, split: str) -> bool:
        """Whether the constructor takes this split; it says so before it looks at the disk."""
        try:
            self._class(root=str(self._root), split=split)
        except ValueError as error:
            return "Valid values" not in str(error)
        except (RuntimeError, OSError, ImportError):
            pass
        return True

    def open(self, split: str) -> ImageDataset:
        """Open one split; raises `UnknownNameError`, or `InputError` for files that are missing or damaged."""
        by_train = "split" not in self._parameters
        if by_train:
            self.check_split(split)
        items = self._construct({"train": split == "train"} if by_train else {"split": split})
        name = str(getattr(self._class, "__name__", self.spec.argument))
        labels = labels_of(items)
        classes = getattr(items, "classes", None) or [str(label) for label in range(max(labels, default=-1) + 1)]
        facts = SplitFacts(
            name=self.split_name(split),
            classes=[str(name) for name in classes],
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
        options = {"download": True} if self.options.download and "download" in self._parameters else {}
        try:
            return self._class(root=str(self._root), **which, **options)
        except ValueError as error:
            if "Valid values" not in str(error):
                raise self._unusable(error) from error
            raise UnknownNameError(f"data set {self.spec.name!r}: {' '.join(str(error).split())}") from error
        except (RuntimeError, OSError, ImportError, EOFError, LookupError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: BaseException) -> InputError:
        name = self.spec.argument
        if self.options.download:
            text = " ".join(str(error).split())[:200]
            return InputError(f"cannot download {name} to {self._root}: {type(error).__name__}: {text}")
        return InputError(
            f"{name} is not (whole) in {self._root}; say where it is with --data-root DIR, or fetch it with --download"
        )


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
    for row in np.linspace(0, len(items) - 1, PROBED_ROWS).astype(int).tolist():
        image, label = items[row]
        if int(label) != labels[row] or not np.array_equal(item_pixels(image), array[row]):
            return None
    return np.ascontiguousarray(array)
