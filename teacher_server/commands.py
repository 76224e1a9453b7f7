"""``teacher-server fill``: what it is told, which is what ``plan`` is told too, and what it does."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.handle import CacheHandle
from cache.payer import LOCAL_OWNER
from cache.writer import CacheWriter
from shared.datasets.base import ImageDataset
from shared.errors import BudgetExhaustedError, CacheLockedError, InputError
from shared.progress import FillProgress
from shared.teacher import Teacher
from shared.views import parse_views
from teacher_server.answering import Answering
from teacher_server.fill import FillCounts, fill
from teacher_server.opening import RowOptions, TeacherOptions, choose_rows, open_datasets, open_teacher
from teacher_server.plan import plan_fill
from teacher_server.serve import INDEX_FOLDER
from teacher_server.service import open_cache
from teacher_server.settings import AnsweringSettings
from teacher_server.warm_up import warm_up


@dataclass(frozen=True, kw_only=True, slots=True)
class FillOptions:
    """What `fill` and `plan` are told."""

    teacher: TeacherOptions
    datasets: tuple[str, ...]
    cache: Path
    data_root: Path | None
    download: bool
    rows: RowOptions
    views: str
    """Such as ``0,5,1-162``."""
    view_policy: str | None
    """Which views there are; None = the data set's own."""
    outputs: dict[str, str] | None
    """What a new cache keeps; None = as created, or the default."""
    added: dict[str, str] | None
    """What caches that exist are to keep besides; None: nothing is added, rows are filled."""
    budget: int | None
    """None leaves the run's budget as it is."""
    run: str
    batch_images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One data set to fill."""

    dataset: ImageDataset
    rows: NDArray[np.int64]
    """Rows [B], each once."""
    views: tuple[int, ...]


def open_jobs(options: FillOptions, *, index_dir: Path | None) -> list[Job]:
    """Data sets with the rows and views asked for."""
    datasets = open_datasets(
        options.datasets,
        root=options.data_root,
        download=options.download,
        index_dir=index_dir,
        view_policy=options.view_policy,
    )
    if options.rows.selects and len(datasets) > 1:
        names = " or ".join(dataset.name for dataset in datasets)
        raise InputError(f"--sample and --rows choose rows of one split; name it in --dataset: {names}")
    return [
        Job(
            dataset=dataset,
            rows=choose_rows(dataset, options=options.rows),
            views=parse_views(options.views, policy=dataset.view_policy),
        )
        for dataset in datasets
    ]


def fill_cache(options: FillOptions) -> str:
    """Fill, and return one line that says what was done.

    Raises `BudgetExhaustedError` before computing anything where the budget cannot cover all of it.
    """
    with closing(_open_writer(options.cache)) as writer:
        jobs = open_jobs(options, index_dir=options.cache / INDEX_FOLDER)
        with closing(open_teacher(options.teacher, datasets=[job.dataset for job in jobs])) as teacher:
            writer.ensure_run(options.run)
            caches = [
                open_cache(
                    writer,
                    teacher=teacher,
                    dataset=job.dataset.description,
                    image=partial(job.dataset.image, 0),
                    outputs=options.outputs,
                )
                for job in jobs
            ]
            _set_budget(options, writer=writer, teacher=teacher, jobs=jobs, caches=caches)
            if not all(_is_filled(cache, job=job) for job, cache in zip(jobs, caches, strict=True)):
                warm_up(
                    teacher,
                    batch_images=options.batch_images,
                    partial=False,
                    compiled=options.teacher.compiled,
                    datasets=[job.dataset for job in jobs],
                )
            began_s = time.monotonic()
            counts = asyncio.run(_fill(options, writer=writer, teacher=teacher, jobs=jobs, caches=caches))
            seconds = time.monotonic() - began_s
    return summary(counts, seconds=seconds)


def _is_filled(cache: CacheHandle, *, job: Job) -> bool:
    """Whether nothing is left to be asked."""
    return all(cache.present(view)[job.rows].all() for view in job.views)


def _open_writer(path: Path) -> CacheWriter:
    try:
        return CacheWriter.open(path)
    except CacheLockedError as error:
        raise CacheLockedError(
            f"{error}; if it is a server, let it do this: teacher-server fill --server http://HOST:PORT"
        ) from error


def summary(counts: FillCounts, *, seconds: float) -> str:
    """One line that says what was done."""
    return (
        f"{counts.done} rows, {counts.teacher_calls} teacher calls, {counts.hits} hits, "
        f"{seconds:.1f} s, {counts.done / seconds:.0f} images/s"
    )


async def _fill(
    options: FillOptions, *, writer: CacheWriter, teacher: Teacher, jobs: list[Job], caches: list[CacheHandle]
) -> FillCounts:
    settings = AnsweringSettings(batch_images=options.batch_images, max_delay_s=0.0)
    total = FillCounts(total=0)
    async with Answering(writer, teacher=teacher, settings=settings) as answering:
        for job, cache in zip(jobs, caches, strict=True):
            remaining = writer.ledger_counts()["runs"][options.run]["remaining"]
            with FillProgress(job.dataset.name, budget_left=remaining) as progress:
                counts = await fill(
                    answering,
                    dataset=job.dataset,
                    cache=cache,
                    rows=job.rows,
                    views=job.views,
                    run=options.run,
                    batch_images=options.batch_images,
                    progress=progress,
                )
            total = total.plus(counts)
    return total


def _set_budget(
    options: FillOptions, *, writer: CacheWriter, teacher: Teacher, jobs: list[Job], caches: list[CacheHandle]
) -> None:
    """Give the run its budget; raise where it cannot pay for all that is missing, and leave the budget it had."""
    if options.budget is None and writer.remaining(options.run) is None:
        return

    # Counted first: it can take minutes, and an end in between must change nothing.
    check_budget(options, writer=writer, needed=_count_needed(writer, teacher=teacher, jobs=jobs, caches=caches))


def check_budget(options: FillOptions, *, writer: CacheWriter, needed: int) -> None:
    """Raise `BudgetExhaustedError` where the run cannot pay; else give it its budget."""
    remaining = writer.remaining(options.run, options.budget)
    if remaining is not None and needed > remaining:
        raise _exhausted(options, counts=writer.ledger_counts(), needed=needed, remaining=remaining)
    writer.ensure_run(options.run, budget=options.budget)


def _count_needed(writer: CacheWriter, *, teacher: Teacher, jobs: list[Job], caches: list[CacheHandle]) -> int:
    """Calls that all jobs together take."""
    return sum(
        plan_fill(
            job.dataset,
            rows=job.rows,
            views=job.views,
            present=cache.present,
            is_known=partial(_is_known, writer, teacher.description.id, cache),
            calls_per_answer=cache.calls_per_answer,
        ).calls
        for job, cache in zip(jobs, caches, strict=True)
    )


def _exhausted(options: FillOptions, *, counts: Mapping[str, Any], needed: int, remaining: int) -> BudgetExhaustedError:
    """Names every budget that is too small, by how much, and what ate it where nobody got an answer for it."""
    run, owner = counts["runs"][options.run], counts["owners"][LOCAL_OWNER]
    budget = run["budget"] if options.budget is None else options.budget
    limits = (
        (budget, run, "raise --budget to {total} ({short} more)"),
        (owner["budget"], owner, f"raise the budget of the key owner {LOCAL_OWNER} to {{total}} ({{short}} more)"),
        (
            counts["budget"],
            counts,
            "raise what all runs share to {total} ({short} more): teacher-server serve --budget",
        ),
    )
    remedies = [
        remedy.format(total=made["attempts"] + needed, short=made["attempts"] + needed - limit)
        for limit, made, remedy in limits
        if limit is not None and made["attempts"] + needed > limit
    ]
    eaten = run["attempts"] - run["teacher_calls"]
    lost = f" ({eaten} of its attempts brought no answer: cut off by a crash, or failed)" if eaten else ""
    return BudgetExhaustedError(
        f"{needed} teacher calls needed, {remaining} remain for run {options.run}{lost}; nothing was computed: "
        f"ask for fewer rows, or {' and '.join(remedies)}",
        needed=needed,
        remaining=remaining,
    )


def _is_known(writer: CacheWriter, teacher: str, cache: CacheHandle, key: bytes) -> bool:
    """Whether a cache can take an answer over: one with all of its outputs, in its dtypes."""
    return writer.find(teacher, key, cache=cache) is not None
