"""A user's own data sets: ``python:FILE.py:FUNCTION``, where FUNCTION(split) gives a map-style set of (image, label).

The set may have ``classes`` (names) and ``view_policy``; images are PIL images or uint8 arrays [H, W, 3] or [H, W].
"""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from shared.datasets.base import ImageDataset, ItemDataset, SplitFacts
from shared.datasets.source import SplitSource
from shared.errors import InputError, TeachonceError
from shared.pixels import pixels_of_array, pixels_of_image

VIEW_POLICY = "crop4flip"


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
            function = getattr(_run_file(Path(file)), name, None)
        if not callable(function):
            raise InputError(f"{file} has no function {name}; write one: {name}(split) -> set of (image, label)")
        with UserCode(file):
            items = function(split)
            labels = labels_of(items)
            classes = getattr(items, "classes", None) or [str(label) for label in range(max(labels, default=-1) + 1)]
            policy = getattr(items, "view_policy", VIEW_POLICY)
        facts = SplitFacts(
            name=self.split_name(split),
            classes=[str(name) for name in classes],
            labels=labels,
            view_policy=policy,
            statistics_from=None if split == "train" else lambda: self.open("train"),
        )
        return ItemDataset(facts, read=lambda row: _item_pixels(items, row, file=file))


class UserCode:
    """Turns whatever the code inside raises into one `InputError` line that names the user's file."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, TeachonceError):
            text = " ".join(str(error).split())[:200]
            while trace and trace.tb_next:
                trace = trace.tb_next
            line = f" (line {trace.tb_lineno} of {trace.tb_frame.f_code.co_filename})" if trace else ""
            raise InputError(f"{self._file} failed with {type(error).__name__}: {text}{line}") from error


def labels_of(items: Any) -> list[int]:
    """Labels of a map-style set: its ``targets``, ``labels`` or ``_labels`` where it has them, else row by row."""
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(items, attribute, None)
        if values is not None and not callable(values) and len(values) == len(items):
            array = np.asarray(values)
            if array.ndim == 1 and array.dtype.kind in "iu":
                return [int(label) for label in array]
    return [int(items[row][1]) for row in range(len(items))]


def item_pixels(image: Any) -> NDArray[np.uint8]:
    """Canonical pixels of an item's image, a PIL image or an array; raises `BadImageError`."""
    return pixels_of_image(image) if isinstance(image, Image) else pixels_of_array(np.asarray(image))


def _item_pixels(items: Any, row: int, *, file: str) -> NDArray[np.uint8]:
    with UserCode(f"{file} (row {row})"):
        return item_pixels(items[row][0])
    raise AssertionError("UserCode never swallows an error")


def _run_file(path: Path) -> object:
    if not path.is_file():
        raise InputError(f"no file {path}")
    spec = spec_from_file_location(f"teachonce_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file; its name must end in .py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
