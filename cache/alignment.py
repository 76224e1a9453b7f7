"""Whether answers belong to the labels beside them: a block of other rows' answers stands out from its neighbours.

Shape key: B slots of one piece, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.arrays import open_array
from cache.catalog import CatalogEntry

PIECE_SLOTS = 1024
"""Slots judged together."""
FEWEST_LABELLED = 256
"""Fewer in a piece say nothing."""
MOST_OF_ONE_CLASS = 0.5
"""Pieces whose labels agree with each other by more than this would agree with shuffled ones too."""
SUSPECT = 0.25
"""Alarm where agreement beyond chance is below this share of what the other pieces have."""
SIGMAS = 5.0
"""And below the middle between the two by this many standard errors."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Some slots' first choices, compared with their labels."""

    first: int
    end: int
    labelled: int
    right: float
    """Share of first choices that are the label."""
    chance: float
    """The same, were the piece's own answers dealt out to its own labels at random."""
    one_class: float
    """The same, were its labels dealt out to each other."""

    @property
    def kappa(self) -> float:
        """Agreement beyond chance: 0 for another row's answers, 1 for perfect ones (Cohen 1960)."""
        return (self.right - self.chance) / (1 - self.chance) if self.chance < 1 else 0.0


def find_misaligned(entry: CatalogEntry) -> Iterator[str]:
    """One line per piece that agrees with its labels by chance only, where the others do not.

    Pieces are compared with each other: a weak teacher and noisy labels lower them all, and raise no alarm.
    """
    pieces = [piece for piece in _pieces(entry) if piece.labelled >= FEWEST_LABELLED]
    telling = [piece for piece in pieces if piece.one_class <= MOST_OF_ONE_CLASS]
    for piece in telling:
        others = [other for other in telling if other is not piece]
        if not others:
            continue
        usual = float(np.median([other.kappa for other in others]))
        error = np.sqrt(max(piece.chance * (1 - piece.chance), 1e-9) / piece.labelled) / (1 - piece.chance)
        if piece.kappa < SUSPECT * usual and piece.kappa < usual / 2 - SIGMAS * error:
            yield (
                f"slots {piece.first} to {piece.end - 1} of {entry.folder} agree with their labels in {piece.right:.1%}"
                f", by chance in {piece.chance:.1%}: they look like answers about other rows; "
                "fill a new cache from the images it was made from"
            )


def _pieces(entry: CatalogEntry) -> Iterator[Piece]:
    _, slots, labels = open_array(entry.folder / "labels")
    _, _, logits = open_array(entry.folder / "logits")
    classes = entry.teacher.classes
    for first in range(0, slots, PIECE_SLOTS):
        chosen = np.arange(first, min(first + PIECE_SLOTS, slots), dtype=np.int64)
        labels_B: Ints = np.empty(len(chosen), dtype=np.int64)
        labels.take(chosen, out=labels_B)
        known_B = (labels_B >= 0) & (labels_B < classes)
        logits_BC = np.empty((len(chosen), classes), dtype=logits.head(0).dtype)
        logits.take(chosen, out=logits_BC)
        said_B, labels_B = logits_BC[known_B].argmax(axis=1), labels_B[known_B]
        said_C = np.bincount(said_B, minlength=classes) / max(1, len(labels_B))
        labels_C = np.bincount(labels_B, minlength=classes) / max(1, len(labels_B))
        yield Piece(
            first=first,
            end=int(chosen[-1]) + 1,
            labelled=len(labels_B),
            right=float((said_B == labels_B).mean()) if len(labels_B) else 0.0,
            chance=float(said_C @ labels_C),
            one_class=float(labels_C @ labels_C),
        )
