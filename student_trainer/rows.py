"""Which rows a run trains on, which it validates on, and which of them have answers.

Shape key: N training rows.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import ImageDataset
from shared.errors import InputError, MissingRowsError
from shared.identity import sample_rows
from student_trainer.config import TrainConfig
from student_trainer.order import split_rows

Present = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Rows -> which of them have an answer for every view that is used."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Selection:
    """The rows of a run."""

    train: NDArray[np.int64]
    """int64 [N]."""
    val: NDArray[np.int64]
    """Held out for validation; only their labels are used."""
    answered: NDArray[np.bool_]
    """bool [N]: which training rows have teacher answers."""

    def summary(self) -> str:
        """The rows in a few words that differ where any row does: what a resumed run is held to."""
        digest = hashlib.sha256()
        for part in (self.train, self.val, self.answered):
            digest.update(f"{len(part)}:".encode("ascii") + part.tobytes())
        return f"{len(self.train)} rows, {self.answered.sum()} answered, {digest.hexdigest()[:12]}"


def tested_rows(test_set: ImageDataset, *, sample: int | None) -> NDArray[np.int64]:
    """Test rows of every run that tests ``sample`` images (None: all), ascending; all of a smaller split."""
    count = test_set.num_rows if sample is None else min(sample, test_set.num_rows)
    return np.sort(sample_rows(num_rows=test_set.num_rows, count=count, seed=0))


def read_rows(path: Path) -> NDArray[np.int64]:
    """Row numbers of a file: .npy, or text with whole numbers between spaces, commas or line ends."""
    try:
        if path.suffix == ".npy":
            rows = np.load(path, allow_pickle=False)
        else:
            words = re.split(r"[\s,\[\]]+", path.read_text().strip(" \n\r\t,[]"))
            rows = np.array([int(word) for word in words if word], dtype=np.int64)
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read rows from {path}: {error}; give a .npy file or a text of whole numbers"
        ) from error
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise InputError(f"{path} holds {rows.dtype} {list(rows.shape)}; rows are whole numbers in one list")
    return np.asarray(rows, dtype=np.int64)


def named_rows(path: Path, dataset: ImageDataset) -> NDArray[np.int64]:
    """The rows of a file, each once; RowRangeError for one that the data set does not have."""
    rows = dataset.check_rows(read_rows(path))
    unique, first = np.unique(rows, return_index=True)
    if len(unique) != len(rows):
        repeated = rows[np.setdiff1d(np.arange(len(rows)), first)[0]]
        raise InputError(f"{path} names row {repeated} twice; name each row once")
    return rows


def wanted_rows(config: TrainConfig, dataset: ImageDataset) -> NDArray[np.int64]:
    """The rows that the options name, each once; RowRangeError for one that the data set does not have."""
    if config.rows is not None:
        return named_rows(config.rows, dataset)
    if config.sample is not None:
        if config.sample > dataset.num_rows:
            raise InputError(f"--sample {config.sample} is more than the {dataset.num_rows} rows of {dataset.name}")
        return sample_rows(num_rows=dataset.num_rows, count=config.sample, seed=config.sample_seed)
    return np.arange(dataset.num_rows, dtype=np.int64)


def select_rows(config: TrainConfig, dataset: ImageDataset, *, present: Present | None) -> Selection:
    """Choose rows, hold out validation rows, and look for answers; ``present`` is None where no teacher is used.

    ``skip`` drops rows without answers before anything is held out, so that no label outside the answered rows is used.
    """
    rows = wanted_rows(config, dataset)
    if present is not None and config.answer_rows is not None:
        present = _limited(present, allowed=named_rows(config.answer_rows, dataset))
    if present is not None and config.missing_policy == "skip":
        rows = rows[present(rows)]
        if len(rows) == 0:
            raise MissingRowsError(f"none of the rows of {dataset.name} has an answer; fill some first", rows=[])
    train, val = held_out(config, dataset, rows=rows)
    if len(train) == 0:
        option = f"--val {config.val:g}" if config.val_rows is None else f"--val-rows {config.val_rows}"
        raise InputError(f"{option} leaves none of the {len(rows)} rows of {dataset.name} for training; hold out fewer")
    answered = np.ones(len(train), dtype=bool) if present is None else present(train)
    if present is not None and config.missing_policy != "label-only" and not answered.all():
        raise missing_rows(dataset, train[~answered], config=config)
    if not answered.any():
        raise MissingRowsError(f"none of the training rows of {dataset.name} has an answer; fill some first", rows=[])
    return Selection(train=train, val=val, answered=answered)


def held_out(
    config: TrainConfig, dataset: ImageDataset, *, rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training rows, validation rows): the rows of a file, or a part of ``rows``."""
    if config.val_rows is None:
        return split_rows(rows, part=config.val, seed=config.seed)
    val = named_rows(config.val_rows, dataset)
    both = np.isin(rows, val)
    if both.any() and (config.rows is not None or config.sample is not None):
        raise InputError(
            f"row {rows[both][0]} (and {both.sum() - 1} more) is to be trained on and held out by --val-rows"
            f" {config.val_rows}; name each row for one of the two"
        )
    return rows[~both], val


def _limited(present: Present, *, allowed: NDArray[np.int64]) -> Present:
    return lambda rows: present(rows) & np.isin(rows, allowed)


def missing_rows(dataset: ImageDataset, rows: NDArray[np.int64], *, config: TrainConfig) -> MissingRowsError:
    """The error that names the first missing rows and what would fill them."""
    named = ", ".join(str(row) for row in rows[:5].tolist()) + (", ..." if len(rows) > 5 else "")
    which = ""
    if config.sample is not None:
        which = f" --sample {config.sample} --seed {config.sample_seed}"
    elif config.rows is not None:
        which = f" --rows {config.rows}"
    views = "" if config.teacher_views == "0" else f" --views {config.teacher_views}"
    if dataset.view_policy != dataset.own_policy:
        views += f" --view-policy {dataset.view_policy}"
    # Without a split `fill` would pay for the test images too.
    split = "/" + dataset.name.rpartition("/")[2]
    spec = config.dataset if config.dataset.endswith(split) else config.dataset.rstrip("/") + split
    return MissingRowsError(
        f"{len(rows)} training rows of {dataset.name} have no answer in {config.cache}: {named}; fill them with"
        f" `teacher-server fill --dataset {spec} --cache {config.cache}{which}{views} --teacher ...`,"
        " or use --missing skip or --missing label-only",
        rows=rows.tolist(),
    )
