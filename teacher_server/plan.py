"""How many teacher calls a fill would make, before it makes any.

Shape key: B rows asked for, N rows of the data set, V views.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.layout import INDEX_ARRAYS, ArraySpec
from shared.datasets.base import ImageDataset
from shared.view_policy import random_policy
from shared.views import decompose, padding_of

IsKnown = Callable[[bytes], bool]
"""Whether the teacher has answered these pixels before, for any data set."""
Present = Callable[[int], NDArray[np.bool_]]
"""Which rows are cached under a view, bool [N]."""
# Beside the answers, every slot keeps its label, row, view and key.
SLOT_BYTES = sum(array.slot_bytes for array in INDEX_ARRAYS)


@dataclass(frozen=True, kw_only=True, slots=True)
class FillPlan:
    """What a fill would do."""

    answers: int
    """Rows times views asked for."""
    present: int
    """Of these, answers that are cached already."""
    shared_pixels: int
    """Of these, answers that come with another one's: the same pixels."""
    calls: int
    """Teacher calls that are left."""
    calls_per_answer: int = 1

    @property
    def new_slots(self) -> int:
        """Slots that the cache would grow by."""
        return self.answers - self.present


def plan_fill(
    dataset: ImageDataset,
    *,
    rows: NDArray[np.int64],
    views: Sequence[int],
    present: Present,
    is_known: IsKnown,
    calls_per_answer: int = 1,
) -> FillPlan:
    """Count without decoding an image: exact, save for views whose pixels are equal by chance, which cost less."""
    # What a random view shows depends on the row: equal images have different ones.
    by_row = random_policy(dataset.view_policy) is not None
    cached = missing = asked = 0
    groups: dict[int, list[int]] = {}
    for view in views:
        groups.setdefault(canonical_view(view, policy=dataset.view_policy), []).append(view)
    # One group after another: the keys of all views together may not fit in memory.
    for canonical, group in groups.items():
        keys: set[bytes] = set()
        for view in group:
            present_B = present(view)[rows]
            missing_rows = rows[~present_B]
            cached += int(present_B.sum())
            missing += len(missing_rows)
            if by_row and view:
                asked += len(missing_rows)
            else:
                keys.update(dataset.keys[row].tobytes() for row in missing_rows.tolist())
        asked += sum(canonical != 0 or not is_known(key) for key in keys)
    return FillPlan(
        answers=cached + missing,
        present=cached,
        shared_pixels=missing - asked,
        calls=asked * calls_per_answer,
        calls_per_answer=calls_per_answer,
    )


def canonical_view(view: int, *, policy: str) -> int:
    """0 for the crop that is the image itself, else the view."""
    if random_policy(policy) is not None:
        return view
    padding = padding_of(policy)
    return 0 if decompose(view, policy) == (0, padding, padding) else view


def slot_bytes(arrays: Iterable[ArraySpec]) -> int:
    """Bytes that one answer takes in the cache, in the arrays of its outputs and beside them."""
    return SLOT_BYTES + sum(array.slot_bytes for array in arrays)


def disk_bytes(arrays: Iterable[ArraySpec], *, before: int, slots: int) -> int:
    """Bytes by which chunk files grow when ``slots`` follow ``before``: a chunk takes its room as soon as it begins."""
    return sum(
        (-(-(before + slots) // array.chunk_slots) - -(-before // array.chunk_slots)) * array.chunk_bytes
        for array in arrays
    )
