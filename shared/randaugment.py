"""The policy ``randaug``: RandAugment (Cubuk et al. 2020), with torchvision's fourteen operations and magnitudes.

Pillow does the operations. What it is told are whole 65536ths (geometry) and 256ths (blends) of which it computes exact
results, so that no compiler's rounding can change a pixel. Shape key: H height, W width.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from shared.draws import Draws
from shared.view_policy import RandomPolicy

Picture = Image.Image
ONE = 65_536
"""Matrices are whole 65536ths."""
MOST = 30
"""The largest magnitude."""

Operation = Callable[[Picture, int, int], Picture]
"""(picture, magnitude 0 to 30, sign 1 or -1) -> picture of the same size."""


def augmented(pixels_HW3: NDArray[np.uint8], *, draws: Draws, policy: RandomPolicy) -> NDArray[np.uint8]:
    """The image after ``policy.n`` operations, uint8 [H, W, 3]."""
    picture = Image.fromarray(pixels_HW3)
    for operation, sign in draw_operations(draws, count=policy.n):
        picture = OPERATIONS[operation](picture, policy.m, sign)
    return np.array(picture, dtype=np.uint8)


def draw_operations(draws: Draws, *, count: int) -> list[tuple[str, int]]:
    """(operation, sign) of each step; of operations that have no sign it is drawn too, and left aside."""
    names = tuple(OPERATIONS)
    return [(names[draws.below(len(names))], 1 - 2 * draws.below(2)) for _ in range(count)]


def _identity(picture: Picture, magnitude: int, sign: int) -> Picture:
    return picture


def _shear_x(picture: Picture, magnitude: int, sign: int) -> Picture:
    return _moved(picture, (ONE, sign * _shear(magnitude), 0, 0, ONE, 0))


def _shear_y(picture: Picture, magnitude: int, sign: int) -> Picture:
    return _moved(picture, (ONE, 0, 0, sign * _shear(magnitude), ONE, 0))


def _shear(magnitude: int) -> int:
    """Up to 0.3."""
    return (magnitude * ONE + 50) // 100


def _translate_x(picture: Picture, magnitude: int, sign: int) -> Picture:
    return _moved(picture, (ONE, 0, sign * _shift(picture.width, magnitude) * ONE, 0, ONE, 0))


def _translate_y(picture: Picture, magnitude: int, sign: int) -> Picture:
    return _moved(picture, (ONE, 0, 0, 0, ONE, sign * _shift(picture.height, magnitude) * ONE))


def _shift(side: int, magnitude: int) -> int:
    """Up to 150 of 331 pixels."""
    return side * 150 * magnitude // (331 * MOST)


def _rotate(picture: Picture, magnitude: int, sign: int) -> Picture:
    """By as many degrees as the magnitude, around the middle."""
    # None of these 31 cosines and sines is near the middle of two steps: every mathematical library rounds them alike.
    cosine = round(ONE * math.cos(math.radians(magnitude)))
    sine = sign * round(ONE * math.sin(math.radians(magnitude)))
    across = ((ONE - cosine) * picture.width - sine * picture.height) // 2
    down = ((ONE - cosine) * picture.height + sine * picture.width) // 2
    return _moved(picture, (cosine, sine, across, -sine, cosine, down))


def _moved(picture: Picture, matrix: tuple[int, ...]) -> Picture:
    """Where each pixel comes from, by a matrix in 65536ths; black where that is outside."""
    data = [number / ONE for number in matrix]
    return picture.transform(picture.size, Image.Transform.AFFINE, data, Image.Resampling.NEAREST)


def _blended(picture: Picture, magnitude: int, sign: int, *, towards: Callable[[Picture], Picture]) -> Picture:
    """By 1 +- 0.03 per magnitude away from an image that lacks something, rounded to 256ths."""
    factor = ((100 + sign * 3 * magnitude) * 256 + 50) // 100
    return Image.blend(towards(picture), picture, factor / 256)


def _black(picture: Picture) -> Picture:
    return Image.new("RGB", picture.size)


def _grey(picture: Picture) -> Picture:
    return picture.convert("L").convert("RGB")


def _mean_grey(picture: Picture) -> Picture:
    levels = np.asarray(picture.convert("L"))
    mean = (2 * int(levels.sum(dtype=np.int64)) + levels.size) // (2 * levels.size)
    return Image.new("RGB", picture.size, (mean, mean, mean))


def _smooth(picture: Picture) -> Picture:
    """Pillow's SMOOTH filter, (5 * pixel + its eight neighbours) / 13 within the border, in whole numbers."""
    pixels = np.array(picture, dtype=np.uint8)
    height, width, _ = pixels.shape
    if min(height, width) < 3:
        return picture
    wide = pixels.astype(np.uint16)
    sums = 4 * wide[1:-1, 1:-1] + np.uint16(6)
    for y in range(3):
        for x in range(3):
            sums += wide[y : y + height - 2, x : x + width - 2]
    pixels[1:-1, 1:-1] = sums // 13
    return Image.fromarray(pixels)


def _posterize(picture: Picture, magnitude: int, sign: int) -> Picture:
    return ImageOps.posterize(picture, 8 - (4 * magnitude + MOST // 2) // MOST)


def _solarize(picture: Picture, magnitude: int, sign: int) -> Picture:
    # Levels from 255 * (1 - magnitude / 30) on are inverted.
    return ImageOps.solarize(picture, -(-255 * (MOST - magnitude) // MOST))


def _autocontrast(picture: Picture, magnitude: int, sign: int) -> Picture:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Picture, magnitude: int, sign: int) -> Picture:
    return ImageOps.equalize(picture)


OPERATIONS: Mapping[str, Operation] = {
    "identity": _identity,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": partial(_blended, towards=_black),
    "color": partial(_blended, towards=_grey),
    "contrast": partial(_blended, towards=_mean_grey),
    "sharpness": partial(_blended, towards=_smooth),
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
"""By name, in the order that draws count them in."""
