"""Which rows a sweep asks about, trains on and holds out; kept as files, so that every number can be traced to them.

OUT/rows/asked-SELECT-sS-nN.npy   the N images that seed S asks about      OUT/rows/held-sS-nN.npy   what validates them
OUT/rows/asked-all-sS.npy         all images but those held out            OUT/rows/held-all-sS.npy
Shape key: N rows.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.atomic_file import write_atomic
from shared.errors import IdentityError, InputError
from shared.identity import sample_rows

Ints = NDArray[np.int64]
HELD_OUT_EVERY = 5
"""One row in five of the drawn order validates: 20 % of all labels used."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Draw:
    """The rows of a data set in the order of one seed."""

    pool: Ints
    """May be asked about and trained on, in random order."""
    held: Ints
    """Validate, by label only; none where a recipe holds nothing out."""

    def held_for(self, images: int) -> Ints:
        """What validates a training on ``images`` images of the pool."""
        return self.held[: -(-images // (HELD_OUT_EVERY - 1))]


def draw_rows(*, num_rows: int, seed: int, val: bool) -> Draw:
    """The draw of one seed: the order of `shared.identity.sample_rows`, every fifth row held out."""
    order = sample_rows(num_rows=num_rows, count=num_rows, seed=seed)
    held = np.zeros(num_rows, dtype=np.bool_)
    held[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] = val
    return Draw(pool=order[~held], held=order[held])


def pool_rows(num_rows: int, *, val: bool) -> int:
    """How many rows may be asked about."""
    return num_rows - num_rows // HELD_OUT_EVERY if val else num_rows


def check_pool(*, num_rows: int, most_images: int, val: bool) -> None:
    """Raise InputError where a budget asks about more images than there are."""
    pool = pool_rows(num_rows, val=val)
    if most_images > pool:
        kept = f", of which {num_rows - pool:,} are kept for validation" if val else ""
        raise InputError(
            f"budgets: {most_images:,} images are more than the {pool:,} that may be asked about: the data set has"
            f" {num_rows:,}{kept}; use smaller budgets"
        )


class RowFiles:
    """The folder ``OUT/rows``."""

    def __init__(self, folder: Path, *, val: bool) -> None:
        self._folder = folder
        self._val = val

    def asked(self, *, select: str, seed: int, images: int) -> Path:
        """Rows that one seed asks about."""
        return self._folder / f"asked-{select}-s{seed}-n{images}.npy"

    def all(self, *, seed: int) -> Path:
        """All rows that are not held out."""
        return self._folder / f"asked-all-s{seed}.npy"

    def held(self, *, seed: int, images: int | None) -> Path | None:
        """Rows that validate ``images`` images, or all of them (None); None where nothing is held out."""
        name = f"held-all-s{seed}.npy" if images is None else f"held-s{seed}-n{images}.npy"
        return self._folder / name if self._val else None

    def keep(self, path: Path, rows: Ints) -> None:
        """Write rows, or hold them to what was written before: IdentityError where they differ."""
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, rows)
        if not path.exists():
            write_atomic(path, [buffer.getvalue()])
        elif path.read_bytes() != buffer.getvalue():
            raise IdentityError(
                f"{path} holds other rows than this sweep would draw: the data set or the way of selecting changed;"
                " choose another --out"
            )

    def keep_draw(self, draw: Draw, *, seed: int, images: list[int]) -> None:
        """Write what one seed trains on where it uses all labels, and what validates each number of images."""
        self.keep(self.all(seed=seed), draw.pool)
        for count in images:
            if (held := self.held(seed=seed, images=count)) is not None:
                self.keep(held, draw.held_for(count))
        if (held := self.held(seed=seed, images=None)) is not None:
            self.keep(held, draw.held)

    def keep_order(self, order: Ints, *, select: str, seed: int, images: list[int]) -> None:
        """Write the beginnings of an order of asking."""
        for count in images:
            self.keep(self.asked(select=select, seed=seed, images=count), order[:count])
