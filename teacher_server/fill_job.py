"""What one fill over HTTP is to do, checked, and whether its payer can pay for it.

Shape key: B rows asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cache.handle import CacheHandle
from cache.payer import Payer
from cache.writer import CacheWriter
from shared.datasets.base import ImageDataset
from shared.errors import BudgetExhaustedError, InputError
from shared.fill_schemas import FillRequest
from shared.identity import sample_rows
from shared.views import parse_views
from teacher_server.opening import each_once
from teacher_server.plan import plan_fill


@dataclass(frozen=True, kw_only=True, slots=True)
class FillJob:
    """Rows of one data set under some views."""

    dataset: ImageDataset
    cache: CacheHandle
    rows: NDArray[np.int64]
    """Rows [B], each once."""
    views: tuple[int, ...]
    views_text: str
    """As they were asked for."""
    payer: Payer

    @property
    def total(self) -> int:
        """Answers asked for."""
        return len(self.rows) * len(self.views)


def read_job(asked: FillRequest, *, dataset: ImageDataset, cache: CacheHandle, payer: Payer) -> FillJob:
    """The job that a request describes; raises `InputError` and `RowRangeError`. Takes seconds for a million rows."""
    if asked.sample is not None and asked.rows is not None:
        raise InputError("sample and rows both choose rows; give one of them")
    return FillJob(
        dataset=dataset,
        cache=cache,
        rows=_rows(asked, dataset=dataset),
        views=parse_views(asked.views, policy=dataset.view_policy),
        views_text=asked.views,
        payer=payer,
    )


def _rows(asked: FillRequest, *, dataset: ImageDataset) -> NDArray[np.int64]:
    if asked.sample is not None:
        return sample_rows(num_rows=dataset.num_rows, count=asked.sample, seed=asked.seed)
    if asked.rows is not None:
        return each_once(dataset.check_rows(asked.rows))
    return np.arange(dataset.num_rows, dtype=np.int64)


def is_bounded(job: FillJob, *, writer: CacheWriter) -> bool:
    """Whether any budget bounds what the payer spends."""
    return writer.remaining(job.payer.run, owner=job.payer.owner) is not None


def check_affordable(job: FillJob, *, writer: CacheWriter, teacher: str, check_open: Callable[[], None]) -> None:
    """Raise `BudgetExhaustedError` where the payer cannot pay for all that is missing.

    Takes minutes for many views; ``check_open`` is called between two of them and may raise.
    """

    def present(view: int) -> NDArray[np.bool_]:
        check_open()
        return job.cache.present(view)

    run, owner = job.payer.run, job.payer.owner
    needed = plan_fill(
        job.dataset,
        rows=job.rows,
        views=job.views,
        present=present,
        is_known=partial(_is_known, writer, teacher, job.cache),
        calls_per_answer=job.cache.calls_per_answer,
    ).calls
    # Asked once more: others have spent meanwhile.
    remaining = writer.remaining(run, owner=owner)
    if remaining is not None and needed > remaining:
        raise BudgetExhaustedError(
            f"{needed} teacher calls needed, {remaining} remain for run {run}; nothing was computed: ask for fewer "
            "rows, or raise the budget (GET /v1/ledger shows whose)",
            needed=needed,
            remaining=remaining,
        )


def _is_known(writer: CacheWriter, teacher: str, cache: CacheHandle, key: bytes) -> bool:
    return writer.find(teacher, key, cache=cache) is not None
