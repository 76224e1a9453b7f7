"""A teacher without weights or torch, for tests and smoke runs: deterministic in the pixels, NumPy only.

Shape key: B images, C classes, D feature width, H height, W width.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shared.descriptions import TeacherDescription
from shared.errors import InputError
from shared.identity import teacher_id
from shared.outputs import OutputForm, check_offered

GRID = 4
"""Cells per side of the grid whose mean colours are the features: D = 16."""
UNIT = 1024
"""Integer steps per grey level of a cell's mean: everything is exact, so no batch shape can change a bit."""


class FakeTeacher:
    """Answers with the mean colours of a 4 x 4 grid and a fixed projection of them, for images of any size.

    All sums are integers: an image's bytes do not depend on the batch it came in, on the machine, or on threads.
    """

    outputs = ("logits", "features")
    input = None
    device = "cpu"

    def __init__(self, *, classes: int) -> None:
        if not 1 <= classes <= 100_000:
            raise InputError(f"a fake teacher of {classes} classes; use fake:C with 1 <= C <= 100000")
        self._weights_CD = _fixed_weights(classes)
        weights = hashlib.sha256(self._weights_CD.astype("<i8").tobytes()).hexdigest()
        preprocessing = {"mean": None, "std": None, "resize": None, "crop": None, "interpolation": None}
        self.description = TeacherDescription(
            id=teacher_id(
                arch="fake", weights=weights, preprocessing=preprocessing, precision="float32", classes=classes
            ),
            arch="fake",
            weights=weights,
            preprocessing=preprocessing,
            precision="float32",
            classes=classes,
            features=GRID * GRID,
            libraries={"numpy": np.__version__},
        )

    @property
    def id(self) -> str:
        """``fake-{12 hex}``."""
        return self.description.id

    def answer(
        self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[np.float32]]:
        """Logits [B, C] and features [B, 16] of uint8 [H, W, 3] images, whose sizes may differ; it has nothing else."""
        check_offered(outputs, offered=self.outputs, teacher=self.id)
        cells_BD = np.array([_cell_means(image) for image in images], dtype=np.int64).reshape(-1, GRID * GRID)
        logits_BC = cells_BD @ self._weights_CD.T
        return {
            "logits": (logits_BC / (UNIT * 255.0 * 64)).astype(np.float32),
            "features": (cells_BD / (UNIT * 127.5)).astype(np.float32),
        }

    def forms(self, size: tuple[int, int]) -> dict[str, OutputForm]:
        """Logits and features, whatever the size."""
        about = self.description
        return {"logits": OutputForm(shape=(about.classes,)), "features": OutputForm(shape=(about.features,))}

    def constants(self) -> dict[str, NDArray[np.float32]]:
        """None."""
        return {}

    def close(self) -> None:
        """Nothing to let go of."""


def parse_fake(text: str) -> FakeTeacher:
    """The teacher of ``fake:C``, given ``C``."""
    if not text.isascii() or not text.isdigit():
        raise InputError(f"fake:{text[:40]} is not a fake teacher; use fake:C with C the number of classes, as fake:10")
    return FakeTeacher(classes=int(text[:9]))


def _fixed_weights(classes: int) -> NDArray[np.int64]:
    """Integers in -255..255 from a hash of their place, int64 [C, 16]."""
    stream = b"".join(hashlib.sha512(f"teachonce fake {label}".encode("ascii")).digest() for label in range(classes))
    words = np.frombuffer(stream, dtype="<u4").reshape(classes, GRID * GRID)
    return (words % 511).astype(np.int64) - 255


def _cell_means(image_HW3: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Mean grey level of each cell, minus the middle grey, in steps of 1/1024; int64 [16]."""
    height, width, _ = image_HW3.shape
    tops, lefts = np.arange(GRID) * height // GRID, np.arange(GRID) * width // GRID
    rows = np.add.reduceat(image_HW3.sum(axis=2, dtype=np.int64), tops, axis=0)
    sums = np.add.reduceat(rows, lefts, axis=1)
    # An image with fewer rows or columns than cells shows one of them in several cells.
    heights = np.maximum(np.diff(np.append(tops, height)), 1)
    widths = np.maximum(np.diff(np.append(lefts, width)), 1)
    means: NDArray[np.int64] = sums * UNIT // (3 * np.outer(heights, widths))
    return means.ravel() - UNIT * 255 // 2
