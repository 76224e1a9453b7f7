"""Fills a cache by the same way that requests take: the work of the command, and of a fill over HTTP.

Shape key: B rows of one question.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.handle import CacheHandle
from cache.payer import LOCAL_OWNER
from shared.datasets.base import ImageDataset
from shared.errors import UnavailableError
from teacher_server.answering import Answering, Answers
from teacher_server.questions import RowsQuestion

ROOM_S = 0.1
"""Seconds between two looks for room in a queue that requests have filled."""


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
    owner: str = LOCAL_OWNER,
    lane: str = "",
    stop: asyncio.Event | None = None,
) -> FillCounts:
    """Ask about every row under every view; cancelled or failed, it keeps what was answered.

    ``answering`` is entered by the caller. ``owner`` pays, ``lane`` takes its turns (see `Question.lane`). Once
    ``stop`` is set nothing more is asked, and it returns when what is in flight is kept. Raises what
    `Answering.answer` raises, once the rest in flight is kept.
    """
    counts = FillCounts(total=len(rows) * len(views))
    flying: set[asyncio.Task[Answers]] = set()
    stop = stop or asyncio.Event()
    for question in _questions(dataset, cache=cache, rows=rows, views=views, batch_images=batch_images, lane=lane):
        # A crash costs the attempts of these and no more.
        if len(flying) >= answering.batches_under_way:
            flying = await _some(flying, counts=counts, progress=progress)
        if stop.is_set():
            break
        flying.add(asyncio.create_task(_ask(answering, question, run=run, owner=owner, stop=stop)))
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
    lane: str,
) -> Iterator[RowsQuestion]:
    for view in views:
        for start in range(0, len(rows), batch_images):
            part = rows[start : start + batch_images].tolist()
            yield RowsQuestion.ask(dataset, cache=cache, rows=part, view=view, lane=lane)


async def _ask(answering: Answering, question: RowsQuestion, *, run: str, owner: str, stop: asyncio.Event) -> Answers:
    """Ask, as soon as there is room: requests that filled the queue come first."""
    while True:
        try:
            # No outputs: they stay in the cache, nobody reads them here.
            return await answering.answer(question, outputs=(), run=run, owner=owner)
        except UnavailableError:
            if answering.trouble is not None or stop.is_set():
                raise
        await asyncio.sleep(ROOM_S)


async def _some(
    flying: "set[asyncio.Task[Answers]]", *, counts: FillCounts, progress: Callable[[FillCounts], None]
) -> "set[asyncio.Task[Answers]]":
    """Wait for one or more questions; count them, and return those still on their way."""
    done, waiting = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
    if waiting and any(task.exception() is not None for task in done):
        late, waiting = await asyncio.wait(waiting)
        done |= late
    # Looked at, all of them: asyncio logs the traceback of an error that nobody looked at.
    answered = [task.result() for task in done if task.exception() is None]
    for answers in answered:
        counts.done += len(answers.cached)
        counts.teacher_calls += answers.teacher_calls
        counts.computed += answers.computed
    progress(counts)
    # The reason first, then what it did to the others.
    for task in sorted(done, key=lambda task: isinstance(task.exception(), UnavailableError)):
        task.result()
    return waiting
