"""The policy ``rrc``: a random part of the image, resized (Inception's crop, as torchvision's RandomResizedCrop).

Its area is uniform from ``area`` per cent to all of the image, the logarithm of its proportions uniform between 3/4 and
4/3, and its place uniform; after ten parts that do not fit, the largest middle part of these proportions. All of it is
decided in whole numbers; Pillow resizes (bilinear). Shape key: H height, W width.
"""

from decimal import Context, Decimal, localcontext
from functools import cache
from math import isqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.draws import Draws
from shared.view_policy import RandomPolicy

ONE = 65_536
"""Areas and proportions are whole 65536ths."""
TRIES = 10
RATIO_STEPS = 256
DIGITS = 40


class Part(NamedTuple):
    """A rectangle of pixels; the last row and column are out."""

    top: int
    bottom: int
    left: int
    right: int


def draw_part(draws: Draws, *, height: int, width: int, area: int) -> Part:
    """The part of an image that a view shows; ``area`` is the least, in per cent."""
    least = -(-area * ONE // 100)
    for _ in range(TRIES):
        pixels = height * width * (least + draws.below(ONE - least + 1))
        ratio = ratios()[draws.below(RATIO_STEPS + 1)]
        # In 65536ths of a pixel: the square of the width is area * ratio, that of the height area / ratio.
        wide, high = _root(pixels * ratio // ONE**2), _root(pixels // ratio)
        top, left = draws.word(), draws.word()
        if 0 < wide <= width and 0 < high <= height:
            top, left = top * (height - high + 1) >> 32, left * (width - wide + 1) >> 32
            return Part(top=top, bottom=top + high, left=left, right=left + wide)
    return _middle(height=height, width=width)


@cache
def ratios() -> tuple[int, ...]:
    """Width to height in 65536ths, from 3/4 to 4/3 in equal steps of the logarithm."""
    with localcontext(Context(prec=DIGITS)):
        middle = RATIO_STEPS // 2
        powers = [(Decimal(4) / 3) ** (Decimal(step - middle) / middle) for step in range(RATIO_STEPS + 1)]
        return tuple(int((power * ONE).to_integral_value()) for power in powers)


def resized_crop(pixels_HW3: NDArray[np.uint8], *, draws: Draws, policy: RandomPolicy) -> NDArray[np.uint8]:
    """The drawn part at the policy's size, uint8 [H, W, 3]."""
    height, width, _ = pixels_HW3.shape
    part = draw_part(draws, height=height, width=width, area=policy.area)
    size = (policy.size, policy.size) if policy.size else (width, height)
    picture = Image.fromarray(pixels_HW3).crop((part.left, part.top, part.right, part.bottom))
    return np.array(picture.resize(size, Image.Resampling.BILINEAR), dtype=np.uint8)


def _root(square: int) -> int:
    """The square root, rounded to the nearest whole number."""
    return (isqrt(4 * square) + 1) // 2


def _middle(*, height: int, width: int) -> Part:
    wide, high = width, height
    if width * 4 < height * 3:
        high = (width * 4 + 1) // 3
    elif width * 3 > height * 4:
        wide = (height * 4 + 1) // 3
    top, left = (height - high) // 2, (width - wide) // 2
    return Part(top=top, bottom=top + high, left=left, right=left + wide)
