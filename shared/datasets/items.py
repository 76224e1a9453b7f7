"""Map-style sets of (image, label), as torchvision and users' own code give them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from shared.errors import InputError
from shared.pixels import pixels_of_array, pixels_of_image

LABEL_ATTRIBUTES = ("targets", "labels", "_labels")
"""Where sets keep all labels, so that no image needs to be read for them."""
PROBED_ROWS = 3


def probe_rows(items: Any) -> list[int]:
    """A few rows to compare a shortcut with what the set itself gives: the first, the middle, the last."""
    return [int(row) for row in np.linspace(0, len(items) - 1, PROBED_ROWS)] if len(items) else []


def item_pixels(image: Any) -> NDArray[np.uint8]:
    """Canonical pixels of an item's image, a PIL image or a uint8 array; raises `BadImageError`."""
    return pixels_of_image(image) if isinstance(image, Image) else pixels_of_array(np.asarray(image))


def item_label(items: Any, row: int) -> int:
    """The label that the set gives for a row; raises `InputError` where it is not one whole number."""
    label = np.asarray(items[row][1])
    if label.size != 1 or label.dtype.kind not in "iu":
        raise InputError(f"row {row} has a label of {label.dtype} {list(label.shape)}; expected one whole number")
    return int(label.reshape(()))


def item_labels(items: Any) -> list[int]:
    """All labels: those that the set keeps, if they are the ones it gives, else row by row."""
    for attribute in LABEL_ATTRIBUTES:
        kept = getattr(items, attribute, None)
        if kept is None or callable(kept) or len(kept) != len(items):
            continue
        labels = np.asarray(kept)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            continue
        if all(labels[row] == item_label(items, row) for row in probe_rows(items)):
            return [int(label) for label in labels]
    return [item_label(items, row) for row in range(len(items))]


def item_classes(items: Any, *, labels: list[int]) -> list[str]:
    """Class names by label: the set's ``classes``, else the numbers."""
    names = getattr(items, "classes", None)
    return [str(name) for name in names] if names else [str(label) for label in range(max(labels, default=-1) + 1)]
