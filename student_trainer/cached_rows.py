"""A map-style data set whose rows are those that a cache has answers for.

Shape key: B batch, N rows, H height, W width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from cache.reader import CacheReader
from shared.errors import IdentityError, InputError, MissingRowsError, RowRangeError
from shared.identity import pixel_key
from shared.mixing import mixing
from shared.rendering import render_row
from shared.views import check_view
from student_trainer.order import TEACHER_VIEWS, drawn_views

Item = tuple[Any, int, int, int]
"""(image, label, row, view)."""


class MapStyle(Protocol):
    """What any map-style data set offers."""

    def __getitem__(self, index: int, /) -> Any:
        """(image, label) of a row."""

    def __len__(self) -> int:
        """Number of rows."""


class CachedTeacherDataset(Dataset[Item]):
    """``(image, label, row, view)`` of the rows that a cache has answers for.

    With ``views`` other than (0,) one is drawn per row and epoch (see `set_epoch`) and cut from the image, which must
    then be uint8 [H, W, 3] or a PIL image; view 0 leaves the image as it is. ``transform`` comes last, and should add
    no randomness of its own: the student would see other pixels than the teacher.

    ``samples`` random rows are held to the cache before anything is trained: by the key of their pixels where they are
    such images, else by their labels. Raises IdentityError naming the first that differs; 0 checks nothing.
    """

    def __init__(
        self,
        dataset: MapStyle,
        reader: CacheReader,
        *,
        rows: Sequence[int] | NDArray[np.int64] | None = None,
        views: Sequence[int] = (0,),
        transform: Callable[[Any], Any] | None = None,
        seed: int = 0,
        samples: int = 32,
    ) -> None:
        if len(dataset) != reader.num_rows:
            raise InputError(
                f"the data set has {len(dataset)} rows and the cache's {reader.dataset.name} has {reader.num_rows};"
                " wrap the whole data set, and choose with rows="
            )
        self._policy = reader.dataset.view_policy
        self.views = tuple(check_view(view, policy=self._policy) for view in views)
        """The views that items are drawn from."""
        present = np.logical_and.reduce([reader.present(view) for view in self.views])
        self.rows = np.flatnonzero(present) if rows is None else _checked(rows, reader=reader)
        """int64 [N]: the row of each item."""
        absent = self.rows[~present[self.rows]]
        if len(absent):
            raise MissingRowsError(
                f"row {absent[0]} (and {len(absent) - 1} more) of {reader.dataset.name} has no answer; fill it with"
                " `teacher-server fill`, or leave rows= out to use those that have one",
                rows=absent.tolist(),
            )
        self.reader = reader
        self._dataset = dataset
        self._transform = transform
        self._seed = seed
        self._check_samples(samples)
        self.set_epoch(0)

    def _check_samples(self, count: int) -> None:
        view = self.views[0]
        for row in np.random.default_rng(self._seed).permutation(self.rows)[:count].tolist():
            image, label = self._dataset[row]
            pixels = _pixels(image)
            if pixels is None:
                same = int(label) == self.reader.labels([row], view=view)[0]
            else:
                key = pixel_key(self._rendered(row, view, image=pixels))
                same = key == self.reader.keys([row], view=view)[0].tobytes()
            if not same:
                raise IdentityError(
                    f"row {row} of the data set has another {'label' if pixels is None else 'image'} than row {row} of"
                    f" the cache's {self.reader.dataset.name}: give the rows in the cache's order, and what changes"
                    " images as transform="
                )

    def set_epoch(self, epoch: int) -> None:
        """Draw each row's view for this epoch. Workers that outlive an epoch (persistent_workers) do not see it."""
        count = len(self.rows)
        self._drawn = drawn_views(self.views, count=count, seed=self._seed, epoch=epoch, purpose=TEACHER_VIEWS)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        row, view = int(self.rows[index]), int(self._drawn[index])
        image, label = self._dataset[row]
        if view != 0:
            image = self._rendered(row, view, image=image)
        return (image if self._transform is None else self._transform(image)), int(label), row, view

    def _rendered(self, row: int, view: int, *, image: Any) -> NDArray[np.uint8]:
        """Pixels of a view; ``image`` is the row's own, and a partner's is loaded."""

        def load(wanted: int) -> NDArray[np.uint8]:
            found = image if wanted == row else self._dataset[wanted][0]
            pixels = _pixels(found)
            if pixels is None:
                raise InputError(
                    f"row {wanted} is no uint8 [H, W, 3] and no PIL image, so that view {view} cannot be drawn from it;"
                    " give what changes images as transform="
                )
            return pixels

        return render_row(row, view, policy=self._policy, num_rows=len(self._dataset), load=load)

    def mixing(
        self, rows: Sequence[int], views: Sequence[int], *, size: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(partner rows [B], shares of the rows themselves [B]) of views of images of ``size`` (H, W), for soft labels.

        Raises `InputError` where the cache's views are not those of cutmix or mixup.
        """
        return mixing(rows, views, policy=self._policy, num_rows=len(self._dataset), size=size)

    def __getstate__(self) -> Mapping[str, Any]:
        # Workers load images only; the answers are gathered in the main process.
        return {**self.__dict__, "reader": None}


def _checked(rows: Sequence[int] | NDArray[np.int64], *, reader: CacheReader) -> NDArray[np.int64]:
    """The rows as int64 [N]; RowRangeError for one that the data set does not have."""
    rows_N = np.asarray(rows, dtype=np.int64)
    outside = rows_N[(rows_N < 0) | (rows_N >= reader.num_rows)]
    if len(outside):
        raise RowRangeError(
            f"row {outside[0]} is out of range: {reader.dataset.name} has rows 0 to {reader.num_rows - 1}"
        )
    return rows_N


def _pixels(image: object) -> NDArray[np.uint8] | None:
    """Canonical pixels uint8 [H, W, 3] of an array or a PIL image; None for anything else, such as a tensor."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        return image
    return None
