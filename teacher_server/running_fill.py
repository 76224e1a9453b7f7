"""One fill that a server works on: how far it is, how it is stopped, and what its watchers see."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from time import monotonic

from shared.errors import BudgetExhaustedError, DeadlineError, TeachonceError, UnavailableError
from shared.fill_schemas import ENDED, FillError, FillState, FillStatus
from teacher_server.answering import Answering
from teacher_server.fill import FillCounts, fill
from teacher_server.fill_job import FillJob

EVENTS_EVERY_S = 0.5
"""Least time between two events about progress; a change of state is told at once."""
RATE_OVER_S = 10.0
HEARTBEAT_S = 15.0
"""Longest silence of a stream: proxies close what says nothing for a minute."""


class RunningFill:
    """Belongs to the server, not to the request that began it: who watches may come and go."""

    def __init__(self, job: FillJob, *, fill_id: str | None = None) -> None:
        self.id = fill_id or secrets.token_hex(8)
        self.payer = job.payer
        self._job: FillJob | None = job
        """None once it has ended: a list of the last fills holds no rows."""
        self._dataset, self._views = job.dataset.name, job.views_text
        self._counts = FillCounts(total=job.total)
        self._state: FillState = "queued"
        self._error: FillError | None = None
        self._began_s: float | None = None
        self._seconds: float | None = None
        """How long it took; None before its end."""
        self._stop = asyncio.Event()
        self._stopped_as: FillState = "cancelled"
        self._marks: deque[tuple[float, int]] = deque([(0.0, 0)])
        """(when, answers then) of the last seconds: what was cached is passed quickly and says nothing of the rest."""
        self._changed = asyncio.Event()
        """Set when the state changes; then another takes its place."""

    @property
    def state(self) -> FillState:
        """Where it is."""
        return self._state

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self._state in ENDED

    def is_of(self, job: FillJob) -> bool:
        """Whether it is what ``job`` asks for, and its payer the same."""
        asked = job.dataset.name, job.views_text, job.total, job.payer
        return asked == (self._dataset, self._views, self._counts.total, self.payer)

    def status(self) -> FillStatus:
        """How far it has come."""
        counts, seconds = self._counts, self._passed_s()
        rate = self._rate(seconds)
        left = 0.0 if self.ended else (counts.total - counts.done) / rate if rate else None
        return FillStatus(
            id=self.id,
            dataset=self._dataset,
            views=self._views,
            run=self.payer.run,
            owner=self.payer.owner,
            state=self._state,
            total=counts.total,
            done=counts.done,
            cached=counts.hits,
            teacher_calls=counts.teacher_calls,
            images_per_s=round(rate, 1),
            seconds=round(seconds, 3),
            eta_s=None if left is None else round(left, 1),
            error=self._error,
        )

    def _rate(self, seconds: float) -> float:
        """Images per second: lately, at the end in all."""
        since_s, before = (0.0, 0) if self.ended else self._marks[0]
        passed_s = seconds - since_s
        return (self._counts.done - before) / passed_s if passed_s > 0 else 0.0

    def _passed_s(self) -> float:
        if self._seconds is not None:
            return self._seconds
        return 0.0 if self._began_s is None else monotonic() - self._began_s

    async def work(self, answering: Answering, *, batch_images: int) -> None:
        """Do it, to the end or until it is stopped; what the teacher or the budget refuses becomes its state."""
        job = self._job
        if job is None:
            return
        self._began_s = monotonic()
        self._become("running")
        try:
            self._counts = await fill(
                answering,
                dataset=job.dataset,
                cache=job.cache,
                rows=job.rows,
                views=job.views,
                run=self.payer.run,
                owner=self.payer.owner,
                batch_images=batch_images,
                progress=self._note,
                lane=f"fill {self.id}",
                stop=self._stop,
            )
        except TeachonceError as error:
            if not (self._stop.is_set() and isinstance(error, UnavailableError)):
                self.fail(error)
                return
        self._end("done" if self._counts.done == self._counts.total else self._stopped_as)

    def stop(self, state: FillState, *, why: TeachonceError | None = None) -> None:
        """Ask nothing more; ``state`` once what is in flight is kept, at once where nothing was begun."""
        if self.ended or self._stop.is_set():
            return
        self._stop.set()
        self._stopped_as, self._error = state, _described(why)
        if self._state == "queued":
            self._end(state)

    def fail(self, error: TeachonceError) -> None:
        """End with an error."""
        self._error = _described(error)
        self._end("failed")

    async def wait(self, *, timeout_s: float) -> None:
        """Return at its end; raises `DeadlineError`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ended:
                    await self._changed.wait()
        except TimeoutError as error:
            raise DeadlineError(f"fill {self.id} finishes what is in flight; ask again") from error

    async def watch(self) -> AsyncIterator[FillStatus | None]:
        """Its status now and whenever it moves on, the last at its end; None after a long silence."""
        told, told_s = None, 0.0
        while True:
            changed, status = self._changed, self.status()
            if status.ended or (status.state, status.done) != told:
                told, told_s = (status.state, status.done), monotonic()
                yield status
            elif monotonic() - told_s >= HEARTBEAT_S:
                told_s = monotonic()
                yield None
            if status.ended:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(EVENTS_EVERY_S):
                    await changed.wait()

    def _note(self, counts: FillCounts) -> None:
        self._counts = counts
        now_s = self._passed_s()
        self._marks.append((now_s, counts.done))
        # One mark stays that is older: a batch may take longer than the window.
        while now_s - self._marks[1][0] > RATE_OVER_S:
            self._marks.popleft()

    def _end(self, state: FillState) -> None:
        if state == "done":
            self._error = None
        self._job, self._seconds = None, self._passed_s()
        self._become(state)

    def _become(self, state: FillState) -> None:
        self._state = state
        self._changed.set()
        self._changed = asyncio.Event()


def _described(error: TeachonceError | None) -> FillError | None:
    if error is None:
        return None
    if isinstance(error, BudgetExhaustedError):
        return FillError(error=str(error), code=error.code, needed=error.needed, remaining=error.remaining)
    return FillError(error=str(error), code=error.code)
