"""Views that show two rows, ``cutmix`` (Yun et al. 2019) and ``mixup`` (Zhang et al. 2018), in whole numbers.

A view of a row draws a partner among all other rows of the data set, a crop of each image, and a weight w of 0 to 256
from Beta(alpha, alpha). ``mixup`` is ``(own * w + partner * (256 - w) + 128) >> 8``. ``cutmix`` shows the partner in a
box of ``floor(side * sqrt((256 - w) / 256))`` pixels per side around a drawn pixel, cut off at the borders.

Shape key: B views, H height, W width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal, localcontext
from functools import lru_cache
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from shared.draws import Draws
from shared.errors import InputError
from shared.view_policy import RandomPolicy, read_policy

Ints = NDArray[np.int64]
WEIGHTS = 256
"""Steps of a weight: 256 is the row itself, 0 its partner."""
DIGITS = 60
SERIES_TERMS = 160
"""Terms of a series that more than halves at each: what is left out is below 2^-150."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mixes:
    """What was drawn for B views, each int64 [B]; view 0 is the row itself."""

    partner: Ints
    """Row of the data set."""
    weight: Ints
    """0 to 256: the share asked for."""
    own_view: Ints
    """View of the base policy that the row is cropped by."""
    partner_view: Ints
    """The same for the partner."""
    middle_y: Ints
    """Where the box is, in 2^32ths of the height."""
    middle_x: Ints
    """In 2^32ths of the width."""

    def boxes(self, *, height: int, width: int) -> tuple[Ints, Ints, Ints, Ints]:
        """(top, bottom, left, right) of the partner's boxes in pixels, each int64 [B]; bottom and right are out."""
        top_B, bottom_B = _span(self.middle_y, weight=self.weight, side=height)
        left_B, right_B = _span(self.middle_x, weight=self.weight, side=width)
        return top_B, bottom_B, left_B, right_B

    def shares(self, policy: RandomPolicy, *, height: int, width: int) -> NDArray[np.float64]:
        """Share of the row in each image, 0 to 1, float64 [B]: of ``cutmix`` by the pixels that the box left."""
        if policy.kind == "mixup":
            return self.weight / WEIGHTS
        top_B, bottom_B, left_B, right_B = self.boxes(height=height, width=width)
        return 1 - (bottom_B - top_B) * (right_B - left_B) / (height * width)


def draw_mixes(rows_B: Sequence[int], views_B: Sequence[int], *, policy: RandomPolicy, num_rows: int) -> Mixes:
    """What each view of a row is made of; rows and views are trusted to be in range."""
    thresholds = weight_thresholds(policy.alpha)
    drawn = np.array(
        [
            _draw(row, view, policy=policy, num_rows=num_rows) if view else (row, 1 << 32, 0, 0, 0, 0)
            for row, view in zip(rows_B, views_B, strict=True)
        ],
        dtype=np.int64,
    ).reshape(-1, 6)
    partner_B, word_B, own_view_B, partner_view_B, middle_y_B, middle_x_B = drawn.T
    return Mixes(
        partner=partner_B,
        weight=np.searchsorted(thresholds, word_B, side="right"),
        own_view=own_view_B,
        partner_view=partner_view_B,
        middle_y=middle_y_B,
        middle_x=middle_x_B,
    )


def mixing(
    rows_B: Sequence[int], views_B: Sequence[int], *, policy: str, num_rows: int, size: tuple[int, int]
) -> tuple[Ints, NDArray[np.float64]]:
    """(partner rows int64 [B], the rows' own shares float64 [B]) of views of images of ``size`` (H, W).

    What soft labels are made of: ``share * label + (1 - share) * partner's label``. Raises `InputError` for a policy
    that mixes nothing.
    """
    read = read_policy(policy)
    if not isinstance(read, RandomPolicy) or not read.mixes:
        raise InputError(f"views of {policy} show one row each; cutmix and mixup mix two")
    mixes = draw_mixes(rows_B, views_B, policy=read, num_rows=num_rows)
    return mixes.partner, mixes.shares(read, height=size[0], width=size[1])


def mixed(
    own_HW3: NDArray[np.uint8], partner_HW3: NDArray[np.uint8], *, mixes: Mixes, policy: RandomPolicy
) -> NDArray[np.uint8]:
    """The one view of ``mixes`` from its two images, cropped already; uint8 [H, W, 3]."""
    weight = int(mixes.weight[0])
    if policy.kind == "mixup":
        # At most 255 * 256 + 128: it fits into 16 bits.
        own, partner = own_HW3.astype(np.uint16), partner_HW3.astype(np.uint16)
        blended: NDArray[np.uint8] = ((own * weight + partner * (WEIGHTS - weight) + 128) >> 8).astype(np.uint8)
        return blended
    height, width, _ = own_HW3.shape
    top, bottom, left, right = (int(edge[0]) for edge in mixes.boxes(height=height, width=width))
    cut_HW3 = own_HW3.copy()
    cut_HW3[top:bottom, left:right] = partner_HW3[top:bottom, left:right]
    return cut_HW3


@lru_cache(maxsize=64)
def weight_thresholds(alpha: str) -> Ints:
    """int64 [256], in 2^32ths: weight w is drawn where w of them are at most the word drawn.

    ``P(weight < w)`` is the distribution function of Beta(alpha, alpha) at w / 257, in decimal arithmetic: it is
    specified digit by digit, so that no mathematical library can change a view.
    """
    with localcontext(Context(prec=DIGITS)):
        a = Decimal(alpha)
        half = _incomplete_beta(Decimal(1) / 2, a=a)
        # The lower half by the series, the upper half by symmetry.
        below = [_incomplete_beta(Decimal(w) / (WEIGHTS + 1), a=a) / half / 2 for w in range(1, WEIGHTS // 2 + 1)]
        lower = [int((share * 2**32).to_integral_value()) for share in below]
    return np.array(lower + [2**32 - threshold for threshold in reversed(lower)], dtype=np.int64)


def _incomplete_beta(x: Decimal, *, a: Decimal) -> Decimal:
    """Up to a factor, the integral of ``(t (1 - t))^(a - 1)`` from 0 to x, for x of 1/2 at most: its power series."""
    term, total = Decimal(1), Decimal(0)
    for k in range(SERIES_TERMS):
        total += term / (a + k)
        term *= (k + 1 - a) / (k + 1) * x
    return x**a * total


def _draw(row: int, view: int, *, policy: RandomPolicy, num_rows: int) -> tuple[int, ...]:
    """(partner, weight's word, own crop, partner's crop, the box's middle as two words)."""
    draws = Draws(policy.kind, policy.seed, row, view)
    # A set of one row has no other: it is its own partner.
    partner = (row + 1 + draws.below(num_rows - 1)) % num_rows if num_rows > 1 else row
    word, crops = draws.word(), policy.base.views
    return partner, word, 1 + draws.below(crops), 1 + draws.below(crops), draws.word(), draws.word()


def _span(middle_B: Ints, *, weight: Ints, side: int) -> tuple[Ints, Ints]:
    length_B = _box_lengths(side)[weight]
    first_B = (middle_B * side >> 32) - length_B // 2
    return np.maximum(0, first_B), np.minimum(side, first_B + length_B)


@lru_cache(maxsize=64)
def _box_lengths(side: int) -> Ints:
    """Pixels of a box's side by weight, int64 [257]."""
    return np.array([isqrt(side * side * (WEIGHTS - w)) // 16 for w in range(WEIGHTS + 1)], dtype=np.int64)
