"""A user's own data sets: ``python:FILE.py:FUNCTION``, where FUNCTION(split) gives a map-style set of (image, label).

The set may have ``classes`` (names) and ``view_policy``; images are PIL images or uint8 arrays [H, W, 3] or [H, W].
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import ImageDataset, ItemDataset, SplitFacts
from shared.datasets.items import item_classes, item_labels, item_pixels
from shared.datasets.source import SplitSource
from shared.errors import DatasetFailedError, InputError
from shared.user_code import UserCode, run_file
from shared.view_policy import DEFAULT_POLICY, read_policy

log = logging.getLogger(__name__)


class PythonSource(SplitSource):
    """A function in a Python file. Opening runs the file."""

    @property
    def splits(self) -> tuple[str, ...]:
        """``train`` and ``test`` are asked for where none is named; a function may know others."""
        return "train", "test"

    def open(self, split: str) -> ImageDataset:
        """Call the function; raises `InputError` naming the file and what it raised."""
        file, _, name = self.spec.argument.rpartition(":")
        with UserCode(file):
            function = getattr(run_file(Path(file)), name, None)
        if not callable(function):
            raise InputError(f"{file} has no function {name}; write one: {name}(split) -> set of (image, label)")
        with UserCode(file):
            items = function(split)
            labels = item_labels(items)
            facts = SplitFacts(
                name=self.split_name(split),
                classes=item_classes(items, labels=labels),
                labels=labels,
                view_policy=str(read_policy(str(getattr(items, "view_policy", DEFAULT_POLICY)))),
                statistics_from=None if split == "train" else lambda: self.open("train"),
            )
        return ItemDataset(facts, read=lambda row: _read_item(items, row, file=file))


def _read_item(items: Any, row: int, *, file: str) -> NDArray[np.uint8]:
    # The name alone, and nothing that the code said: a server's callers hear this too.
    name = Path(file).name
    try:
        with UserCode(file):
            image = items[row][0]
    except InputError as error:
        log.error("row %d: %s", row, error)
        kind = type(error.__cause__).__name__
        raise DatasetFailedError(f"{name}: row {row} failed with {kind}; the log says where") from error
    try:
        with UserCode(f"{name}: row {row}"):
            return item_pixels(image)
    except InputError as error:
        raise DatasetFailedError(str(error)) from error
