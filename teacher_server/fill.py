"""Fills a cache without HTTP, by the same way that requests take.

Shape key: B rows of one question.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.handle import CacheHandle
from shared.datasets.base import ImageDataset
from teacher_server.answering import Answering, Answers
from teacher_server.questions import RowsQuestion


@dataclass(slots=True)
class FillCounts:
    """How far a fill has come."""

    total: int
    """Answers asked for: rows times views."""
    done: int = 0
    """Answers that are committed now."""
    teacher_calls: int = 0
    """Calls that this fill caused."""
    computed: int = 0
    """Answers that these calls brought."""

    @property
    def hits(self) -> int:
        """Answers that cost no call: cached before, or with the pixels of another row."""
        return self.done - self.computed

    def plus(self, other: "FillCounts") -> "FillCounts":
        """Both together."""
        return FillCounts(
            total=self.total + other.total,
            done=self.done + other.done,
            teacher_calls=self.teacher_calls + other.teacher_calls,
            computed=self.computed + other.computed,
        )


async def fill(
    answering: Answering,
    *,
    dataset: ImageDataset,
    cache: CacheHandle,
    rows: NDArray[np.int64],
    views: Sequence[int],
    run: str,
    batch_images: int,
    progress: Callable[[FillCounts], None],
) -> FillCounts:
    """Ask about every row under every view; cancelled or failed, it keeps what was answered.

    ``answering`` is entered by the caller. Raises what `Answering.answer` raises, once the rest in flight is kept.
    """
    counts = FillCounts(total=len(rows) * len(views))
    flying: set[asyncio.Task[Answers]] = set()
    for question in _questions(dataset, cache=cache, rows=rows, views=views, batch_images=batch_images):
        # A crash costs the attempts of these and no more.
        if len(flying) >= answering.batches_under_way:
            flying = await _some(flying, counts=counts, progress=progress)
        # No outputs: they stay in the cache, nobody reads them here.
        flying.add(asyncio.create_task(answering.answer(question, outputs=(), run=run)))
    while flying:
        flying = await _some(flying, counts=counts, progress=progress)
    return counts


def _questions(
    dataset: ImageDataset,
    *,
    cache: CacheHandle,
    rows: NDArray[np.int64],
    views: Sequence[int],
    batch_images: int,
) -> Iterator[RowsQuestion]:
    for view in views:
        for start in range(0, len(rows), batch_images):
            yield RowsQuestion.ask(dataset, cache=cache, rows=rows[start : start + batch_images].tolist(), view=view)


async def _some(
    flying: "set[asyncio.Task[Answers]]", *, counts: FillCounts, progress: Callable[[FillCounts], None]
) -> "set[asyncio.Task[Answers]]":
    """Wait for one or more questions; count them, and return those still on their way."""
    done, waiting = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
    failed = [task for task in done if task.exception() is not None]
    if failed and waiting:
        # Only the first error is raised; asyncio would log the others with their tracebacks if nobody looked at them.
        await asyncio.gather(*waiting, return_exceptions=True)
    for task in done:
        answers = task.result()
        counts.done += len(answers.cached)
        counts.teacher_calls += answers.teacher_calls
        counts.computed += answers.computed
    progress(counts)
    return waiting
