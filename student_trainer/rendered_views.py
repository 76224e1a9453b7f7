"""Views that Pillow draws one by one, on the host: by threads ahead of the step, and kept where they come back.

Shape key: B batch, N positions, V views that are kept, H height, W width.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from shared.host_cores import usable_cores
from student_trainer.memory import free_bytes

MOST_THREADS = 8
PART_OF_MEMORY = 4
"""Kept views may take one part in this many of the memory that is free."""

Pixels = NDArray[np.uint8]
Ints = NDArray[np.int64]


class RenderedViews:
    """Pixels of (position, view), drawn by a function that may be called from several threads."""

    def __init__(
        self,
        draw: Callable[[int, int], Pixels],
        *,
        count: int,
        shape: tuple[int, int],
        kept_views: Sequence[int],
    ) -> None:
        """``draw(position, view)`` gives uint8 [H, W, 3] of ``shape`` (H, W); ``count`` is N."""
        self._draw = draw
        self._shape = (*shape, 3)
        wanted = len(kept_views) * count * prod(self._shape)
        kept = tuple(kept_views) if wanted <= free_bytes(torch.device("cpu")) // PART_OF_MEMORY else ()
        self._place = {view: place for place, view in enumerate(kept)}
        # Pages are taken as they are written.
        self._kept_VNHW3 = np.empty((len(kept), count, *self._shape), dtype=np.uint8)
        self._is_kept_VN = np.zeros((len(kept), count), dtype=np.bool_)
        self._pool = ThreadPoolExecutor(max(1, min(MOST_THREADS, usable_cores() - 1)), thread_name_prefix="views")
        self._ahead: dict[tuple[bytes, bytes], list[Future[list[Pixels]]]] = {}

    def will_need(self, positions_B: Ints, views_B: Ints) -> None:
        """Begin to draw a batch that is asked for next."""
        self._ahead[positions_B.tobytes(), views_B.tobytes()] = self._begin(positions_B, views_B)

    def pixels(self, positions_B: Ints, views_B: Ints) -> Pixels:
        """uint8 [B, H, W, 3]; raises what ``draw`` raises."""
        parts = self._ahead.pop((positions_B.tobytes(), views_B.tobytes()), None)
        if parts is None:
            parts = self._begin(positions_B, views_B)
        drawn = [image for part in parts for image in part.result()]
        return np.stack(drawn) if drawn else np.empty((0, *self._shape), dtype=np.uint8)

    def close(self) -> None:
        """End the threads; what was begun and nobody asked for is dropped."""
        self._ahead.clear()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, positions_B: Ints, views_B: Ints) -> list["Future[list[Pixels]]"]:
        places = list(zip(positions_B.tolist(), views_B.tolist(), strict=True))
        step = max(1, -(-len(places) // MOST_THREADS))
        return [self._pool.submit(self._drawn, places[first : first + step]) for first in range(0, len(places), step)]

    def _drawn(self, places: list[tuple[int, int]]) -> list[Pixels]:
        return [self._one(position, view) for position, view in places]

    def _one(self, position: int, view: int) -> Pixels:
        place = self._place.get(view)
        if place is None:
            return self._draw(position, view)
        kept_HW3: Pixels = self._kept_VNHW3[place, position]
        if not self._is_kept_VN[place, position]:
            # Two threads that draw the same view write the same bytes.
            kept_HW3[...] = self._draw(position, view)
            self._is_kept_VN[place, position] = True
        return kept_HW3
