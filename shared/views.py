"""Numbered views: view 0 is the image itself, view v >= 1 is one crop of the zero-padded image, maybe flipped.

A policy of crops is ``crop{P}`` or ``crop{P}flip``, P the padding in pixels. With S = 2P + 1 offsets per direction,
``v - 1 = flip * S * S + dy * S + dx``: pad by P on each side, cut an image of the old size at row dy and column dx,
then mirror it left to right if flip is 1. So crop4flip has 162 views, and its view 41 has view 0's pixels.
Views of the policies that draw at random (`shared.view_policy`) are numbered here too, and drawn by `shared.rendering`.

Shape key: H height, W width.
"""

import re
from typing import overload

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError, RowRangeError, UnknownNameError
from shared.view_policy import CropPolicy, read_policy

RANGE_PATTERN = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)


def padding_of(policy: str) -> int:
    """Pixels of zero padding on each side; raises `UnknownNameError` for a policy that is no crop."""
    return _crop(policy).padding


def has_flip(policy: str) -> bool:
    """Whether half of the views are mirrored."""
    return _crop(policy).flip


def _crop(policy: str) -> CropPolicy:
    read = read_policy(policy)
    if not isinstance(read, CropPolicy):
        raise UnknownNameError(f"view policy {policy} draws its views at random; crops are crop4flip and the like")
    return read


def view_count(policy: str) -> int:
    """Number of augmented views: they are 1 to this number, beside view 0."""
    return read_policy(policy).views


def check_view(view: int, *, policy: str) -> int:
    """Return ``view`` if the policy has it; else raise `RowRangeError`."""
    if not 0 <= view <= view_count(policy):
        raise RowRangeError(f"view {view} is out of range: {policy} has views 0 to {view_count(policy)}")
    return view


def parse_views(text: str, *, policy: str) -> tuple[int, ...]:
    """Read ``0,5,1-162``: views in the order written, each once; raises `InputError` or `RowRangeError`."""
    views: dict[int, None] = {}
    for part in text.split(","):
        found = RANGE_PATTERN.fullmatch(part.strip())
        if not found:
            raise InputError(f"cannot read views {text[:80]!r}; write numbers and ranges such as 0 or 0,5 or 1-162")
        first = check_view(int(found[1]), policy=policy)
        last = check_view(int(found[2] or first), policy=policy)
        if last < first:
            raise InputError(f"views {part.strip()} run backwards; write {last}-{first}")
        views.update(dict.fromkeys(range(first, last + 1)))
    return tuple(views)


@overload
def decompose(view: int, policy: str) -> tuple[int, int, int]: ...


@overload
def decompose(
    view: NDArray[np.int64], policy: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]: ...


def decompose(
    view: int | NDArray[np.int64], policy: str
) -> tuple[int | NDArray[np.int64], int | NDArray[np.int64], int | NDArray[np.int64]]:
    """(flip, dy, dx) of one view or of an array of views; view 0 is the unflipped crop in the middle, (0, P, P).

    The views are trusted to be in range; `check_view` says whether they are.
    """
    padding = padding_of(policy)
    side = 2 * padding + 1
    middle = padding * side + padding
    index = (view == 0) * middle + (view != 0) * (view - 1)
    return index // (side * side), index // side % side, index % side


def compose(flip: int, *, dy: int, dx: int, policy: str) -> int:
    """The view (1 or more) of a flip and an offset; `decompose` backwards."""
    side = 2 * padding_of(policy) + 1
    return 1 + (flip * side + dy) * side + dx


def render(pixels_HW3: NDArray[np.uint8], *, view: int, policy: str) -> NDArray[np.uint8]:
    """The pixels of a crop, uint8 [H, W, 3]; view 0 is the array itself. Raises `RowRangeError`."""
    if check_view(view, policy=policy) == 0:
        return pixels_HW3
    padding = padding_of(policy)
    flip, dy, dx = decompose(view, policy)
    height, width, _ = pixels_HW3.shape
    to_y, from_y = _overlap(dy - padding, size=height)
    to_x, from_x = _overlap(dx - padding, size=width)
    crop_HW3 = np.zeros_like(pixels_HW3, order="C")
    crop_HW3[to_y, to_x] = pixels_HW3[from_y, from_x]
    return np.ascontiguousarray(crop_HW3[:, ::-1]) if flip else crop_HW3


def _overlap(shift: int, *, size: int) -> tuple[slice, slice]:
    """Where a window moved by ``shift`` pixels meets the image: in the window, and in the image."""
    length = max(0, size - abs(shift))
    to, source = max(0, -shift), max(0, shift)
    return slice(to, to + length), slice(source, source + length)
