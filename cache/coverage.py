"""How much of a data set is answered: a picture of views by blocks of rows, in characters.

Shape key: N rows, V views, L lines, K columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SHADES = " ░▒▓█"
"""From no answer to all of them, for a terminal."""
PLAIN_SHADES = " .:*#"
"""The same in ASCII."""
MOST_LINES = 18
MOST_COLUMNS = 54
"""With its frame, a picture is as wide as a terminal of 80."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CoverageLine:
    """Some views that follow each other."""

    views: str
    """``0`` or ``1-9``."""
    shares: tuple[float, ...]
    """Share of the answers that are there, per block of rows [K], 0 to 1."""

    @property
    def share(self) -> float:
        """Over all blocks, each counted alike."""
        return sum(self.shares) / len(self.shares)

    def draw(self, shades: str) -> str:
        """One character per block: the first only for nothing at all, the last only for everything."""
        last = len(shades) - 1
        return "".join(
            shades[last if share == 1 else 0 if share == 0 else 1 + int(share * (last - 1))] for share in self.shares
        )


def measure_coverage(
    present: Callable[[int], NDArray[np.bool_]], *, rows: int, views: Sequence[int]
) -> list[CoverageLine]:
    """At most 18 lines of at most 54 blocks for these views, ascending; ``present`` says which rows [N] a view has."""
    if not rows or not views:
        return []
    edges = np.linspace(0, rows, min(rows, MOST_COLUMNS) + 1).astype(np.int64)
    per_line = -(-len(views) // MOST_LINES)
    lines = []
    for at in range(0, len(views), per_line):
        group = views[at : at + per_line]
        counts = np.mean([np.add.reduceat(present(view).astype(np.int64), edges[:-1]) for view in group], axis=0)
        name = str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"
        lines.append(CoverageLine(views=name, shares=tuple((counts / np.diff(edges)).tolist())))
    return lines


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockCounts:
    """Rows answered, by view and block of rows."""

    views: tuple[int, ...]
    """Ascending [V]."""
    sizes: NDArray[np.int64]
    """Rows of every block [K]."""
    counts: NDArray[np.int64]
    """Of these, answered ones [V, K]."""


def count_blocks(
    present: Callable[[int], NDArray[np.bool_]], *, rows: int, views: Sequence[int], blocks: int
) -> BlockCounts:
    """At most ``blocks`` blocks of (nearly) equal size; ``present`` says which rows [N] a view has."""
    edges = np.linspace(0, rows, min(rows, blocks) + 1).astype(np.int64)
    counts = np.zeros((len(views), len(edges) - 1), dtype=np.int64)
    for line, view in enumerate(views):
        # Rows up to every edge, from the sorted rows: no array of numbers as long as the data set.
        counts[line] = np.diff(np.searchsorted(np.flatnonzero(present(view)), edges))
    return BlockCounts(views=tuple(views), sizes=np.diff(edges), counts=counts)
