"""Holds the ledger to the rows: what was counted must follow from what was asked about, to the last call.

Shape key: N answers.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.reader import CacheReader
from shared.datasets.base import ImageDataset
from shared.errors import InputError, TeachonceError
from student_trainer.rows import read_rows
from student_trainer.sweep.asking import Asked, Spending


class LedgerMismatchError(TeachonceError):
    """The ledger and the rows that were asked about disagree."""

    code = "ledger_mismatch"


def check_ledger(asked: Asked, *, cache: Path, spendings: Sequence[Spending], own: bool) -> None:
    """Raise `LedgerMismatchError` where a run's counts do not follow from its rows; identical images are one answer.

    ``own``: the ledger counts this sweep's calls only, so they must be the distinct answers, each called for once.
    """
    keys = {spending.name: answer_keys(cache, spending, teacher=asked.teacher) for spending in spendings}
    for spending in spendings:
        counts, distinct = asked.runs[spending.name], len(keys[spending.name])
        # A server that runs elsewhere is asked for each answer once, so a larger budget is charged for the rest only.
        agrees = counts.charged == distinct if own else counts.charged <= distinct
        _hold(agrees, f"run {spending.name} consumed {distinct} answers and was charged {counts.charged}")
        _hold(
            counts.teacher_calls <= min(distinct, spending.budget) and counts.teacher_calls <= counts.attempts,
            f"run {spending.name} needs at most {distinct} calls of {spending.budget}, and its ledger has"
            f" {counts.teacher_calls} in {counts.attempts} attempts",
        )
    if own and spendings:
        distinct = len(np.unique(np.concatenate(list(keys.values()))))
        called = sum(asked.runs[spending.name].teacher_calls for spending in spendings)
        _hold(called == distinct, f"{distinct} distinct answers took {called} teacher calls")
        _hold(called == asked.teacher_calls, f"the runs make {called} calls, in all {asked.teacher_calls}")


def answer_keys(cache: Path, spending: Spending, *, teacher: str) -> NDArray[np.void]:
    """The distinct keys of a run's answers; MissingRowsError where one has no answer."""
    rows_N = read_rows(spending.rows)
    with CacheReader.open(cache, teacher=teacher, dataset=spending.dataset) as reader:
        keys = np.ascontiguousarray(np.concatenate([reader.keys(rows_N, view=view) for view in spending.views]))
    return np.unique(keys.view(np.dtype((np.void, keys.shape[1]))).ravel())


def teacher_accuracy(cache: Path, *, teacher: str, test_set: ImageDataset, rows_N: NDArray[np.int64]) -> float | None:
    """The teacher's accuracy on test rows, 0 to 1, from its answers; None where they are not all in the cache."""
    try:
        with CacheReader.open(cache, teacher=teacher, dataset=test_set.name) as reader:
            logits_NC = reader.gather(rows_N, outputs="logits")["logits"]
    except InputError:  # a cache that somebody else filled holds what they asked about
        return None
    return float((logits_NC.argmax(axis=1) == test_set.labels[rows_N]).mean())


def _hold(true: bool, sentence: str) -> None:
    if not true:
        raise LedgerMismatchError(f"the ledger and the rows disagree: {sentence}; please report this with the log")
