"""Views that mix two rows, of many images at once, on the device: `shared.mixing` as a few gathers.

Shape key: B batch, N rows of the data set, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.mixing import WEIGHTS, Mixes, draw_mixes
from shared.view_policy import RandomPolicy
from student_trainer.augment import padded, render_views


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ShownImages:
    """Images that views show."""

    pixels: NDArray[np.uint8]
    """uint8 [n, H, W, 3]."""
    rows: NDArray[np.int64]
    """int64 [n], each once."""
    num_rows: int
    """N: rows of the data set."""


def shown_rows(
    rows_B: NDArray[np.int64], views: Sequence[int], *, policy: RandomPolicy, num_rows: int
) -> NDArray[np.int64]:
    """Rows that the views of ``rows_B`` show: their own and their partners; all, where any view may be asked for."""
    # More would nearly all be partners of something.
    if not views or len(rows_B) * len(views) > num_rows:
        return np.arange(num_rows)
    partners = [
        draw_mixes(rows_B.tolist(), [view] * len(rows_B), policy=policy, num_rows=num_rows).partner for view in views
    ]
    return np.unique(np.concatenate([rows_B, *partners]))


class MixedViews:
    """Rows and their partners on the device."""

    def __init__(
        self, shown: ShownImages, *, rows: NDArray[np.int64], policy: RandomPolicy, device: torch.device
    ) -> None:
        """``rows`` [n] are those of the positions that are asked for."""
        self._policy = policy
        self._base = str(policy.base)
        self._rows = rows
        self._num_rows = shown.num_rows
        self._size = (shown.pixels.shape[1], shown.pixels.shape[2])
        self._last: tuple[tuple[bytes, bytes], Mixes] | None = None
        self._place = np.full(shown.num_rows, -1, dtype=np.int64)
        self._place[shown.rows] = np.arange(len(shown.rows))
        self._pixels = padded(torch.from_numpy(shown.pixels).to(device), policy=self._base)

    def pixels(self, positions_B: NDArray[np.int64], views_B: NDArray[np.int64]) -> Tensor:
        """uint8 [B, H, W, 3]: the bytes of `shared.rendering.render_row`."""
        mixes = self._drawn(positions_B, views_B)
        own = self._cropped(self._rows[positions_B], views_B=mixes.own_view)
        partner = self._cropped(mixes.partner, views_B=mixes.partner_view)
        if self._policy.kind == "mixup":
            weight = torch.from_numpy(mixes.weight).to(own.device, torch.int32)[:, None, None, None]
            return ((own * weight + partner * (WEIGHTS - weight) + 128) >> 8).to(torch.uint8)
        return torch.where(self._in_box(mixes, device=own.device), partner, own)

    def mixing(
        self, positions_B: NDArray[np.int64], views_B: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(partner rows int64 [B], the rows' own shares float64 [B])."""
        mixes = self._drawn(positions_B, views_B)
        height, width = self._size
        return mixes.partner, mixes.shares(self._policy, height=height, width=width)

    def _drawn(self, positions_B: NDArray[np.int64], views_B: NDArray[np.int64]) -> Mixes:
        """What the views are made of; remembered, since a step asks for pixels and labels."""
        asked = positions_B.tobytes(), views_B.tobytes()
        if self._last is None or self._last[0] != asked:
            rows = self._rows[positions_B].tolist()
            mixes = draw_mixes(rows, views_B.tolist(), policy=self._policy, num_rows=self._num_rows)
            self._last = asked, mixes
        return self._last[1]

    def _cropped(self, rows_B: NDArray[np.int64], *, views_B: NDArray[np.int64]) -> Tensor:
        places_B = self._place[rows_B]
        if (places_B < 0).any():
            raise AssertionError("a view was asked for whose partner was not loaded")
        places = torch.from_numpy(places_B).to(self._pixels.device)
        return render_views(self._pixels, positions_B=places, views_B=views_B, policy=self._base)

    def _in_box(self, mixes: Mixes, *, device: torch.device) -> Tensor:
        """bool [B, H, W, 1]."""
        height, width = self._size
        top, bottom, left, right = (
            torch.from_numpy(edge_B).to(device)[:, None] for edge_B in mixes.boxes(height=height, width=width)
        )
        y, x = torch.arange(height, device=device)[None], torch.arange(width, device=device)[None]
        inside_BH, inside_BW = (y >= top) & (y < bottom), (x >= left) & (x < right)
        return (inside_BH[:, :, None] & inside_BW[:, None, :])[..., None]
