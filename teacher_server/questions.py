"""What is asked of the teacher: rows of a data set, or images that the caller brought.

Shape key: B images of one question, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cache.handle import CacheHandle, Place
from shared.datasets.base import ImageDataset
from shared.errors import InputError, TooLargeError
from shared.identity import pixel_key
from shared.pixels import MAX_PIXELS
from shared.views import check_view

Pixels = NDArray[np.uint8]


def image_list(images: NDArray[Any], *, name: str) -> list[Pixels]:
    """The images of a tensor that a caller brought; raises `InputError` and `TooLargeError` for anything else."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape[1:]:
        raise InputError(f"{name!r} must be uint8 [B, H, W, 3]; got {images.dtype} {list(images.shape)}")
    if images.shape[1] * images.shape[2] > MAX_PIXELS:
        raise TooLargeError(f"images of {images.shape[1]} x {images.shape[2]} pixels; at most {MAX_PIXELS} in one")
    return list(images)


class Question(Protocol):
    """Images by their position in the request; what is expensive is asked for only where no answer is cached."""

    @property
    def cache(self) -> CacheHandle:
        """Where answers are kept."""

    @property
    def lane(self) -> str:
        """Who takes turns with others for the teacher; empty: the run that pays."""

    def __len__(self) -> int:
        """Images asked about, duplicates included."""

    def cached(self) -> list[Place | None]:
        """The place of every image whose own slot is committed already, without computing any key."""

    @property
    def keys_are_known(self) -> bool:
        """Whether `keys` takes no time worth a thread."""

    @property
    def known_by_key(self) -> bool:
        """Whether an image is known by its key alone, so that a committed key is all there is to an answer."""

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """Keys of the pixels after the view; may decode and render."""

    def pixels(self, indices: Sequence[int]) -> list[Pixels]:
        """Canonical pixels after the view, uint8 [H, W, 3] each."""

    def name(self, index: int) -> str:
        """What an error calls this image."""

    def number(self, index: int) -> tuple[int, int, int] | None:
        """(row, view, label) that this image is known by; None for an upload, known by its key alone."""


@dataclass(frozen=True, kw_only=True)
class RowsQuestion:
    """Rows of a data set under one view."""

    cache: CacheHandle
    dataset: ImageDataset
    rows: tuple[int, ...]
    """Checked against the data set, in request order."""
    view: int
    lane: str = ""
    """See `Question`."""
    _rendered: dict[int, Pixels] = field(default_factory=dict, repr=False)
    """Pixels that were rendered for their key and wait for the teacher."""

    @classmethod
    def ask(
        cls, dataset: ImageDataset, *, cache: CacheHandle, rows: Sequence[int], view: int, lane: str = ""
    ) -> "RowsQuestion":
        """A question with rows and view checked; raises `RowRangeError` naming the first wrong one."""
        check_view(view, policy=dataset.description.view_policy)
        checked = dataset.check_rows(rows).tolist()
        return cls(cache=cache, dataset=dataset, rows=tuple(checked), view=view, lane=lane)

    def __len__(self) -> int:
        return len(self.rows)

    def cached(self) -> list[Place | None]:
        """See `Question`."""
        return [self.cache.place_of(row, self.view) for row in self.rows]

    @property
    def keys_are_known(self) -> bool:
        """See `Question`."""
        return self.view == 0

    @property
    def known_by_key(self) -> bool:
        """See `Question`."""
        return False

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """See `Question`; keys of view 0 are known, others are rendered."""
        if self.view == 0:
            return [self.dataset.keys[self.rows[index]].tobytes() for index in indices]
        for index in indices:
            self._rendered[index] = self.dataset.rendered(self.rows[index], self.view)
        return [pixel_key(self._rendered[index]) for index in indices]

    def pixels(self, indices: Sequence[int]) -> list[Pixels]:
        """See `Question`."""
        if self.view == 0:
            return self.dataset.images([self.rows[index] for index in indices])
        return [self._take(index) for index in indices]

    def _take(self, index: int) -> Pixels:
        pixels = self._rendered.pop(index, None)
        return self.dataset.rendered(self.rows[index], self.view) if pixels is None else pixels

    def name(self, index: int) -> str:
        """See `Question`."""
        view = f" view {self.view}" if self.view else ""
        return f"row {self.rows[index]}{view} of {self.dataset.name}"

    def number(self, index: int) -> tuple[int, int, int] | None:
        """See `Question`."""
        row = self.rows[index]
        return row, self.view, int(self.dataset.labels[row])


@dataclass(frozen=True, kw_only=True)
class ImagesQuestion:
    """Images that the caller brought."""

    cache: CacheHandle
    images: Sequence[Pixels]
    known_keys: Sequence[bytes]
    """Keys of the images."""
    lane: str = ""
    """See `Question`."""

    def __len__(self) -> int:
        return len(self.images)

    def cached(self) -> list[Place | None]:
        """See `Question`; an upload is known by its key alone."""
        return [None] * len(self.images)

    @property
    def keys_are_known(self) -> bool:
        """See `Question`."""
        return True

    @property
    def known_by_key(self) -> bool:
        """See `Question`."""
        return True

    def keys(self, indices: Sequence[int]) -> list[bytes]:
        """See `Question`."""
        return [self.known_keys[index] for index in indices]

    def pixels(self, indices: Sequence[int]) -> list[Pixels]:
        """See `Question`."""
        return [self.images[index] for index in indices]

    def name(self, index: int) -> str:
        """See `Question`."""
        return f"image {index}"

    def number(self, index: int) -> tuple[int, int, int] | None:
        """See `Question`."""
        return None
