"""The fills of one server: some run, some wait, the last ones are remembered."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from types import TracebackType
from typing import Self

from cache.writer import CacheWriter
from shared.errors import IdentityError, TeachonceError, UnauthorizedError, UnavailableError, UnknownNameError
from teacher_server.answering import Answering
from teacher_server.fill_job import FillJob, check_affordable, is_bounded
from teacher_server.fill_turns import Turns
from teacher_server.fill_watchers import Watchers
from teacher_server.running_fill import RunningFill
from teacher_server.settings import AnsweringSettings

log = logging.getLogger(__name__)

MOST_RUNNING = 4
"""Fills that ask at one time: they share one teacher, more would only all be slow."""
MOST_WAITING = 16
"""Each holds the numbers of its rows; more are refused with 503."""
REMEMBERED = 100
"""Fills that can be asked about, the running ones included."""


class Fills:
    """An async context manager; at its end no fill runs any more."""

    def __init__(
        self, answering: Answering, *, writer: CacheWriter, settings: AnsweringSettings, teacher: str, shared: bool
    ) -> None:
        """``shared``: several owners may come, so that one has half of the places at most."""
        self._answering = answering
        self._writer = writer
        self._teacher = teacher
        self._batch_images, running = share_of_queue(settings, batches=answering.batches_under_way)
        self._turns = Turns(running, share=max(1, running // 2) if shared else running)
        self._most_waiting = MOST_WAITING // 2 if shared else MOST_WAITING
        """Of one owner."""
        self._planning = Turns(1, share=1)
        self.watchers = Watchers()
        self._planners: Counter[str] = Counter()
        """Requests that are not fills yet, by owner; each holds its rows too."""
        self._fills: dict[str, RunningFill] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def start(
        self, job: FillJob, *, fill_id: str | None, check_wanted: Callable[[], Awaitable[None]]
    ) -> RunningFill:
        """Begin a fill, or put it behind those that run; one of this id that there is already is returned as it is.

        ``check_wanted`` is asked once its cost is known, and may raise. Raises `IdentityError` where the id is of
        another fill, `BudgetExhaustedError` before computing anything where its payer cannot pay for all of it, and
        `UnavailableError` where too many wait.
        """
        if (known := self._known(job, fill_id=fill_id)) is not None:
            return known
        owner = job.payer.owner
        self._check_room(owner)
        self._planners[owner] += 1
        try:
            await self._plan(job)
        finally:
            self._planners[owner] -= 1
        await check_wanted()
        self._check_open()
        # Sent twice, both may have been costed.
        if (known := self._known(job, fill_id=fill_id)) is not None:
            return known
        fill = RunningFill(job, fill_id=fill_id)
        self._forget_old()
        self._fills[fill.id] = fill
        task = asyncio.create_task(self._work(fill), name=f"fill {fill.id}")
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, fill))
        return fill

    def _known(self, job: FillJob, *, fill_id: str | None) -> RunningFill | None:
        fill = self._fills.get(fill_id) if fill_id is not None else None
        if fill is not None and not fill.is_of(job):
            raise IdentityError(f"the id {fill_id} is of another fill; make a random one for each, or give none")
        return fill

    async def _plan(self, job: FillJob) -> None:
        if not await asyncio.to_thread(is_bounded, job, writer=self._writer):
            return
        # One at a time: each may look at millions of keys.
        async with self._planning.turn(job.payer.owner):
            await asyncio.to_thread(
                check_affordable, job, writer=self._writer, teacher=self._teacher, check_open=self._check_open
            )

    def get(self, fill_id: str, *, owner: str | None) -> RunningFill:
        """The fill of this id, where ``owner`` pays for it (None: whoever does); raises `UnknownNameError`."""
        fill = self._fills.get(fill_id)
        if fill is None or owner not in (None, fill.payer.owner):
            raise UnknownNameError(
                f"unknown fill {fill_id[:40]!r}: a server remembers the last {REMEMBERED} since its start; submit it "
                "again, what is cached costs nothing"
            )
        return fill

    def recent(self, *, owner: str | None) -> list[RunningFill]:
        """The fills that ``owner`` may see, the newest first."""
        return [fill for fill in reversed(self._fills.values()) if owner in (None, fill.payer.owner)]

    def stop(self) -> None:
        """Let every fill end after what is in flight, and begin none; watchers are told."""
        self._stopping = True
        why = UnavailableError("the server stops; all that was done is kept: submitted again, it goes on where it was")
        for fill in self._fills.values():
            fill.stop("stopped", why=why)

    def revoke(self, owner: str) -> None:
        """End the fills of a key that counts no more; what is in flight is kept."""
        why = UnauthorizedError(f"the API key {owner!r} was revoked; all that was done is kept")
        for fill in self._fills.values():
            if fill.payer.owner == owner:
                fill.stop("cancelled", why=why)

    def _check_open(self) -> None:
        if self._stopping or self._answering.died.is_set():
            raise UnavailableError(f"not now: {self._answering.trouble or 'the server is about to stop'}")

    def _check_room(self, owner: str) -> None:
        self._check_open()
        waiting = Counter(fill.payer.owner for fill in self._fills.values() if fill.state == "queued")
        waiting.update(self._planners)
        if waiting.total() >= MOST_WAITING or waiting[owner] >= self._most_waiting:
            raise UnavailableError(
                f"{waiting.total()} fills are waiting already, {waiting[owner]} of them for {owner}; ask again later, "
                "or cancel one"
            )

    async def _work(self, fill: RunningFill) -> None:
        async with self._turns.turn(fill.payer.owner):
            await fill.work(self._answering, batch_images=self._batch_images)

    def _ended(self, fill: RunningFill, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("fill %s failed; its traceback follows", fill.id, exc_info=error)
            fill.fail(TeachonceError(f"an internal error; the server's log has it under fill {fill.id}"))

    def _forget_old(self) -> None:
        """Make room for one more."""
        ended = [fill.id for fill in self._fills.values() if fill.ended]
        for fill_id in ended[: max(0, len(self._fills) + 1 - REMEMBERED)]:
            del self._fills[fill_id]


def share_of_queue(settings: AnsweringSettings, *, batches: int) -> tuple[int, int]:
    """(images that a fill asks about at a time, fills at a time): at most half of the queue, requests have the rest.

    ``batches``: how many a fill has under way.
    """
    share = settings.queue_images // 2
    batch_images = max(1, min(settings.batch_images, share // batches))
    return batch_images, max(1, min(MOST_RUNNING, share // (batch_images * batches)))
