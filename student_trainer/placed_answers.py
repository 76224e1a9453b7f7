"""A training's cached answers as one tensor per output on the device: a step gathers them by index.

Shape key: B batch, N rows, V views.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.reader import CacheReader
from shared.views import view_count
from student_trainer.memory import free_bytes

PART_OF_MEMORY = 4
"""Answers may take one part in this many of the memory that is free."""
MOST_ON_HOST_BYTES = 1 << 30
"""On the host a step saves little by it, and trainings side by side share the pages that the reader maps."""
ROWS_AT_ONCE = 8192
"""Rows per copy to the device."""


class PlacedAnswers:
    """Answers of rows [N] under views [V], in the cache's dtype; view after view, each in the order of the rows."""

    def __init__(
        self,
        reader: CacheReader,
        *,
        rows: NDArray[np.int64],
        views: Sequence[int],
        outputs: Sequence[str],
        device: torch.device,
    ) -> None:
        self._device = device
        # What was not placed makes every sum with it negative.
        nowhere = -len(rows) * len(views) - 1
        self._position = np.full(reader.num_rows, nowhere, dtype=np.int64)
        self._position[rows] = np.arange(len(rows))
        self._start = np.full(view_count(reader.view_policy) + 1, nowhere, dtype=np.int64)
        self._start[list(views)] = np.arange(len(views)) * len(rows)
        self._tensors: dict[str, Tensor] = {}
        for number, view in enumerate(views):
            for first in range(0, len(rows), ROWS_AT_ONCE):
                part = rows[first : first + ROWS_AT_ONCE]
                at = number * len(rows) + first
                for name, array in reader.gather(part, view=view, outputs=outputs).items():
                    self._place(name, torch.from_numpy(array), at=at, places=len(views) * len(rows))

    def _place(self, name: str, answers: Tensor, *, at: int, places: int) -> None:
        if name not in self._tensors:
            self._tensors[name] = torch.empty((places, *answers.shape[1:]), dtype=answers.dtype, device=self._device)
        self._tensors[name][at : at + len(answers)] = answers

    def gather(self, rows_B: NDArray[np.int64], views_B: NDArray[np.int64]) -> dict[str, Tensor] | None:
        """Outputs [B, ...] by name; None where not all were placed."""
        places_B = self._start[views_B] + self._position[rows_B]
        if places_B.min() < 0:
            return None
        on_device = torch.from_numpy(places_B).to(self._device, non_blocking=True)
        return {name: torch.index_select(tensor, 0, on_device) for name, tensor in self._tensors.items()}


def place_answers(
    reader: CacheReader,
    *,
    rows: NDArray[np.int64],
    views: Sequence[int],
    outputs: Sequence[str],
    device: torch.device,
) -> PlacedAnswers | None:
    """Answers of all rows under all views on the device; None where they would take too much of its memory."""
    if len(rows) == 0 or not outputs:
        return None
    one = reader.gather(rows[:1], view=views[0], outputs=outputs)
    wanted = len(rows) * len(views) * sum(array.nbytes for array in one.values())
    most = free_bytes(device) // PART_OF_MEMORY
    if wanted > (most if device.type == "cuda" else min(most, MOST_ON_HOST_BYTES)):
        return None
    return PlacedAnswers(reader, rows=rows, views=views, outputs=outputs, device=device)
