"""Views that mix two rows, of many images at once, on the device: `shared.mixing` as a few gathers.

Shape key: B batch, N rows of the data set, H height, W width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shared.mixing import WEIGHTS, Mixes, draw_mixes
from shared.view_policy import RandomPolicy
from student_trainer.augment import padded, render_views


class MixedViews:
    """Every row of a data set on the device, for any may be a partner."""

    def __init__(self, pixels_NHW3: NDArray[np.uint8], *, rows: NDArray[np.int64], policy: RandomPolicy) -> None:
        """``rows`` [n] are those of the positions that are asked for."""
        self._policy = policy
        self._base = str(policy.base)
        self._rows = rows
        self._num_rows = len(pixels_NHW3)
        self._size = (pixels_NHW3.shape[1], pixels_NHW3.shape[2])
        self._last: tuple[tuple[bytes, bytes], Mixes] | None = None
        self._pixels = padded(torch.from_numpy(pixels_NHW3), policy=self._base)

    def to(self, device: torch.device) -> "MixedViews":
        """Move the images; returns itself."""
        self._pixels = self._pixels.to(device)
        return self

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
        places = torch.from_numpy(rows_B).to(self._pixels.device)
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
