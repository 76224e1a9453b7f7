"""Numbered views of many images at once, on the device: `shared.views` as one gather.

Shape key: B batch, N images, H height, W width, P padding.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shared.views import decompose, padding_of


def padded(images_NHW3: Tensor, *, policy: str) -> Tensor:
    """Images with the policy's zero border, uint8 [N, H + 2P, W + 2P, 3]: what `render_views` cuts from."""
    border = padding_of(policy)
    return functional.pad(images_NHW3, (0, 0, border, border, border, border))


def render_views(padded_NHW3: Tensor, *, positions_B: Tensor, views_B: NDArray[np.int64], policy: str) -> Tensor:
    """View ``views_B[i]`` of image ``positions_B[i]``, uint8 [B, H, W, 3]: the bytes of `shared.views.render`.

    Views are trusted to be in range.
    """
    border = padding_of(policy)
    device = padded_NHW3.device
    height, width = padded_NHW3.shape[1] - 2 * border, padded_NHW3.shape[2] - 2 * border
    flip_B, dy_B, dx_B = decompose(views_B, policy)
    columns_BW = np.arange(width)[None, :]
    columns_BW = np.where(flip_B[:, None] == 1, width - 1 - columns_BW, columns_BW) + dx_B[:, None]
    rows_BH = np.arange(height)[None, :] + dy_B[:, None]
    # Small integer tables travel to the device; the pixels are gathered there.
    rows = torch.from_numpy(rows_BH).to(device, non_blocking=True)[:, :, None]
    columns = torch.from_numpy(columns_BW).to(device, non_blocking=True)[:, None, :]
    return padded_NHW3[positions_B[:, None, None], rows, columns]
