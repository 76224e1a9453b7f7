"""scikit-learn's bundled digits: 1,797 hand-written digits of 8 x 8 pixels, split into train (1437) and test (360)."""

import gzip
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import ArrayDataset, ImageDataset, SplitFacts
from shared.datasets.source import SplitSource
from shared.errors import InputError

TEST_ROWS = 360
GREY_LEVELS = 16
SIDE = 8
VIEW_POLICY = "crop1"
"""No flips: a mirrored digit is another sign, or none."""


class DigitsSource(SplitSource):
    """The data set ``digits``."""

    @property
    def splits(self) -> tuple[str, ...]:
        """``train`` and ``test``."""
        return "train", "test"

    def open(self, split: str) -> ImageDataset:
        """Open one split; raises `InputError` where scikit-learn, which ships the file, is not installed."""
        self.check_split(split)
        pixels_NHW3, labels_N = read_digits()
        train_rows, test_rows = stratified_split(labels_N, test_rows=TEST_ROWS)
        rows = train_rows if split == "train" else test_rows
        facts = SplitFacts(
            name=self.split_name(split),
            classes=[str(digit) for digit in range(10)],
            labels=labels_N[rows],
            view_policy=VIEW_POLICY,
            statistics_from=None if split == "train" else lambda: self.open("train"),
        )
        return ArrayDataset(facts, pixels=pixels_NHW3[rows])


@lru_cache(maxsize=1)
def read_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pixels uint8 [1797, 8, 8, 3], ``round(level * 255 / 16)``, and labels int64 [1797], in the file's order."""
    # The file is read where it lies: importing sklearn.datasets takes over a second, and pandas with it.
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise InputError('digits come with scikit-learn, which is not installed; pip install "teachonce[trainer]"')
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    if not path.is_file():
        raise InputError(f"the installed scikit-learn has no digits at {path}; install scikit-learn 1.5 or newer")
    with gzip.open(path, "rt") as lines:
        table = np.array([line.split(",") for line in lines], dtype=np.float64).astype(np.int64)
    levels_NHW = table[:, :-1].reshape(-1, SIDE, SIDE)
    grey_NHW = np.round(levels_NHW * 255 / GREY_LEVELS).astype(np.uint8)
    return np.repeat(grey_NHW[..., None], 3, axis=3), table[:, -1]


def stratified_split(labels_N: NDArray[np.int64], *, test_rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training and test rows exactly as scikit-learn's ``train_test_split(stratify=labels, random_state=0)`` gives."""
    # The legacy generator is meant: its stream is frozen, and scikit-learn draws from it.
    generator = np.random.RandomState(0)
    counts = np.bincount(labels_N)
    per_class_train = _shares(counts, total=len(labels_N) - test_rows, generator=generator)
    per_class_test = _shares(counts - per_class_train, total=test_rows, generator=generator)
    train: list[int] = []
    test: list[int] = []
    for label, (in_train, in_test) in enumerate(zip(per_class_train, per_class_test, strict=True)):
        rows = np.flatnonzero(labels_N == label)[generator.permutation(counts[label])]
        train.extend(rows[:in_train].tolist())
        test.extend(rows[in_train : in_train + in_test].tolist())
    return generator.permutation(train), generator.permutation(test)


def _shares(counts: NDArray[np.int64], *, total: int, generator: np.random.RandomState) -> NDArray[np.int64]:
    """``total`` divided in proportion to ``counts``; the largest remainders are rounded up, ties drawn at random."""
    exact = counts / counts.sum() * total
    shares: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    missing = total - int(shares.sum())
    remainders = exact - shares
    for remainder in np.unique(remainders)[::-1]:
        if missing == 0:
            break
        tied = np.flatnonzero(remainders == remainder)
        chosen = generator.choice(tied, size=min(len(tied), missing), replace=False)
        shares[chosen] += 1
        missing -= len(chosen)
    return shares
