"""Two feature maps brought to one size, as losses that compare place by place need it.

Shape key: B batch, C channels, H height, W width.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

Pool = Callable[[Tensor, tuple[int, int]], Tensor]
"""What makes a map smaller: (map [B, C, H, W], (H, W)) -> map."""


def at_one_size(
    first_BCHW: Tensor, second_BCHW: Tensor, *, pool: Pool = functional.adaptive_avg_pool2d
) -> tuple[Tensor, Tensor]:
    """Both at the smaller height and the smaller width of the two; channels stay as they are."""
    (first_H, first_W), (second_H, second_W) = first_BCHW.shape[2:], second_BCHW.shape[2:]
    size = (min(first_H, second_H), min(first_W, second_W))
    first, second = (one if one.shape[2:] == size else pool(one, size) for one in (first_BCHW, second_BCHW))
    return first, second
