"""The pixels of a view, whatever the policy: the one place that the teacher, the trainer and every check go through.

Shape key: H height, W width.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shared.draws import Draws
from shared.mixing import draw_mixes, mixed
from shared.randaugment import augmented
from shared.resized_crop import resized_crop
from shared.view_policy import RandomPolicy, random_policy
from shared.views import check_view, render

Load = Callable[[int], NDArray[np.uint8]]
"""Row -> canonical pixels uint8 [H, W, 3]."""


def render_row(row: int, view: int, *, policy: str, num_rows: int, load: Load) -> NDArray[np.uint8]:
    """The pixels of one view of a row of a data set, uint8 [H, W, 3]; raises `RowRangeError` for a wrong view."""
    drawn = random_policy(policy)
    if drawn is None:
        return render(load(row), view=view, policy=policy)
    if check_view(view, policy=policy) == 0:
        return load(row)
    if drawn.mixes:
        return _mixed(row, view, policy=drawn, num_rows=num_rows, load=load)
    draws = Draws(drawn.kind, drawn.seed, row, view)
    cropped = render(load(row), view=1 + draws.below(drawn.base.views), policy=str(drawn.base))
    return (augmented if drawn.kind == "randaug" else resized_crop)(cropped, draws=draws, policy=drawn)


def _mixed(row: int, view: int, *, policy: RandomPolicy, num_rows: int, load: Load) -> NDArray[np.uint8]:
    mixes = draw_mixes([row], [view], policy=policy, num_rows=num_rows)
    own, partner = load(row), load(int(mixes.partner[0]))
    if partner.shape != own.shape:
        height, width, _ = own.shape
        partner = np.array(Image.fromarray(partner).resize((width, height), Image.Resampling.BILINEAR), dtype=np.uint8)
    base = str(policy.base)
    return mixed(
        render(own, view=int(mixes.own_view[0]), policy=base),
        render(partner, view=int(mixes.partner_view[0]), policy=base),
        mixes=mixes,
        policy=policy,
    )
