"""The way of a logit from its key on: cached, joined, or reserved, computed, checked, committed; then answered.

Used by the HTTP routes and by `fill` alike. Shape key: B images of one question.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cache.handle import CacheHandle, Place
from cache.model_call import ModelCall
from cache.payer import LOCAL_OWNER, Payer
from cache.writer import CacheWriter
from shared.errors import (
    DeadlineError,
    DiskFullError,
    OutputNotCachedError,
    StorageError,
    TeachonceError,
    UnavailableError,
)
from shared.teacher import Teacher
from teacher_server.batcher import Batcher, Outputs
from teacher_server.observer import NOBODY, Observer
from teacher_server.questions import Question
from teacher_server.queueing import Item
from teacher_server.room import DiskRoom
from teacher_server.settings import AnsweringSettings
from teacher_server.store import Got, Store
from teacher_server.uploads import Hold

log = logging.getLogger(__name__)

FlightId = tuple[frozenset[tuple[str, str]], bytes]
"""Outputs and dtypes that the asking cache keeps, and the key."""
Flight = asyncio.Future[tuple[Place, bool] | None]
"""A key on its way: its committed place and whether it was kept all along, or None where the one who asked first could
not pay."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What the teacher said about every image of a question, in request order."""

    outputs: dict[str, NDArray[Any]]
    """Arrays [B, ...] in the dtype they are kept in."""
    cached: NDArray[np.bool_]
    """Whether the answer was there before this question, bool [B]."""
    teacher_calls: int
    """Calls that this question caused."""
    computed: int = 0
    """Answers that these calls brought; each may take more than one."""


class Answering:
    """One teacher, one cache, one loop; an async context manager that drains at its end.

    A caller that leaves changes nothing: the work belongs to this object, the caller only waits.
    """

    def __init__(
        self,
        writer: CacheWriter,
        *,
        teacher: Teacher,
        settings: AnsweringSettings,
        observer: Observer = NOBODY,
    ) -> None:
        self.died = asyncio.Event()
        """Set when answers can no longer be kept; the process should end."""
        self.room = DiskRoom(writer.path)
        """Whether the disk is full."""
        self._settings = settings
        self._store = Store(writer, description=teacher.description)
        self._flights: dict[FlightId, Flight] = {}
        self._work: set[asyncio.Task[Answers]] = set()
        self._draining = False
        self._observer = observer
        self._batcher = Batcher(
            teacher,
            settings=settings,
            settle=self._settle,
            fail=self._fail,
            give_up=self._give_up,
            observer=observer,
        )

    async def __aenter__(self) -> Self:
        self._loop = asyncio.create_task(self._batcher.run(), name="batcher")
        self._loop.add_done_callback(self._loop_ended)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.drain()

    @property
    def trouble(self) -> str | None:
        """Why nothing should be asked now; None where all is well."""
        if self.died.is_set():
            return "the batcher stopped; see the log"
        if self._draining:
            return "draining: the server is about to stop"
        return "the disk is full; make room, nothing was lost" if self.room.full else None

    @property
    def waiting_images(self) -> int:
        """Distinct images on their way."""
        return len(self._flights)

    @property
    def queue_images(self) -> int:
        """Of these, the ones that no batch has taken yet."""
        return self._batcher.queue_images

    @property
    def batches_under_way(self) -> int:
        """Full batches that keep the teacher busy."""
        return self._batcher.batches_under_way

    async def drain(self) -> None:
        """Refuse new questions, finish and commit what was asked."""
        self._draining = True
        while self._work:
            await asyncio.wait(self._work)
        self._batcher.close()
        await asyncio.wait([self._loop])
        self._store.close()

    async def answer(
        self,
        question: Question,
        *,
        outputs: Sequence[str],
        run: str,
        owner: str = LOCAL_OWNER,
        timeout_s: float | None = None,
        hold: Hold | None = None,
    ) -> Answers:
        """Answers to a question, paid by ``run`` where nobody has paid before; all of it durable when it returns.

        ``owner``: whose key asks, counted and bounded beside the run. ``hold``: the room that the question's images
        take, held as long as anything works on them.

        Raises `BudgetExhaustedError` before computing anything, `AnswerError` and `TeacherFailedError` after keeping
        what could be kept, `UnavailableError`, `DeadlineError`, and `UnknownNameError` for a run that does not exist.
        """
        check_outputs(outputs, cache=question.cache)
        payer = Payer(owner, run)
        places = self._store.cached(question)
        if None not in places:
            hits = [place for place in places if place is not None]
            got = Got(places=hits, free=hits, new=False)
            arrays = await self._store.finish(question, got=got, outputs=outputs, payer=payer)
            return Answers(outputs=arrays, cached=np.ones(len(hits), dtype=np.bool_), teacher_calls=0)
        self._check_open()
        work = asyncio.create_task(self._answer(question, places=places, outputs=outputs, payer=payer))
        self._work.add(work)
        work.add_done_callback(self._forget)
        if hold is not None:
            hold.share()
            work.add_done_callback(lambda _: hold.release())
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(work)
        except TimeoutError as error:
            raise DeadlineError(f"no answer within {timeout_s:g} s; it will be kept: ask again") from error

    def _forget(self, work: "asyncio.Task[Answers]") -> None:
        self._work.discard(work)
        # Looked at, so that asyncio does not complain where the caller has left.
        error = None if work.cancelled() else work.exception()
        if isinstance(error, StorageError) and not self.died.is_set():
            log.critical("answers can no longer be kept: %s", error)
            self.died.set()

    def _check_open(self) -> None:
        if self._draining or self.died.is_set():
            raise UnavailableError(f"not now: {self.trouble}")

    async def _answer(
        self, question: Question, *, places: list[Place | None], outputs: Sequence[str], payer: Payer
    ) -> Answers:
        missing = [index for index, place in enumerate(places) if place is None]
        indices: dict[bytes, list[int]] = {}
        for index, key in zip(missing, await self._batcher.keys(question, missing), strict=True):
            indices.setdefault(key, []).append(index)
        cached = np.array([place is not None for place in places], dtype=np.bool_)
        paid: set[int] = set()
        joined = 0
        while wanted := {key: group[0] for key, group in indices.items() if places[group[0]] is None}:
            landed = await self._land_all(question, wanted=wanted, payer=payer)
            for key, place in landed.places.items():
                for index in indices[key]:
                    places[index] = place
                    cached[index] = key in landed.found
            paid |= {wanted[key] for key in landed.paid}
            joined += sum(len(indices[key]) for key in landed.joined)
        found = [place for place in places if place is not None]
        free = [place for index, place in enumerate(found) if index not in paid]
        got = Got(places=found, free=free, joined=joined)
        arrays = await self._store.finish(question, got=got, outputs=outputs, payer=payer)
        calls = len(paid) * question.cache.calls_per_answer
        return Answers(outputs=arrays, cached=cached, teacher_calls=calls, computed=len(paid))

    async def _land_all(self, question: Question, *, wanted: Mapping[bytes, int], payer: Payer) -> "Landed":
        """One round: join what others compute, claim the rest; keys that another gave up are not in the result."""
        kind = question.cache.kind
        joined = {key: flight for key in wanted if (flight := self._flights.get((kind, key))) is not None}
        mine = {key: index for key, index in wanted.items() if key not in joined}
        claimed, found = await self._claim(question, mine=mine, payer=payer) if mine else ({}, {})
        if flights := [*joined.values(), *claimed.values()]:
            await asyncio.wait(flights)
        landings = {key: it for key, flight in [*joined.items(), *claimed.items()] if (it := flight.result())}
        kept = {key for key, (_, was_kept) in landings.items() if was_kept}
        return Landed(
            places={**found, **{key: place for key, (place, _) in landings.items()}},
            found=frozenset(found) | kept,
            paid=frozenset(claimed) & landings.keys(),
            joined=frozenset(joined) & landings.keys() - kept,
        )

    async def _claim(
        self, question: Question, *, mine: Mapping[bytes, int], payer: Payer
    ) -> tuple[dict[bytes, Flight], dict[bytes, Place]]:
        """Take keys on: those that the cache holds after all, and flights of those that are paid for and submitted."""
        if self._flights and len(self._flights) + len(mine) > self._settings.queue_images:
            raise UnavailableError(f"{len(self._flights)} images are waiting already; ask again in a moment")
        kind = question.cache.kind
        loop = asyncio.get_running_loop()
        # Registered before the first await: from here on nobody else computes these keys.
        flights: dict[bytes, Flight] = {key: loop.create_future() for key in mine}
        self._flights.update({(kind, key): flight for key, flight in flights.items()})
        try:
            claim = await self._store.claim(question.cache, payer=payer, keys=list(mine))
            self.room.full = False
        except DiskFullError:
            self.room.full = True
            for key in mine:
                self._land((kind, key), None)
            raise
        except BaseException:
            for key in mine:
                self._land((kind, key), None)
            raise
        for key, place in claim.places.items():
            self._land((kind, key), place, was_kept=True)
            del flights[key]
        if self.died.is_set():
            for key in flights:
                self._land((kind, key), self._died_error())
        self._batcher.submit(
            [
                Item(
                    question=question,
                    index=mine[key],
                    key=key,
                    run=payer.run,
                    reservation=claim.reservation,
                    lane=question.lane,
                )
                for key in flights
            ]
        )
        return flights, claim.places

    def _land(self, flight_id: FlightId, outcome: Place | TeachonceError | None, *, was_kept: bool = False) -> None:
        """Tell everyone who waits for a key; later questions start over, so errors are never remembered."""
        flight = self._flights.pop(flight_id, None)
        if flight is None:
            return
        if isinstance(outcome, TeachonceError):
            flight.set_exception(outcome)
            # Looked at: a question that hears of many errors raises the first, and asyncio logs what nobody looked at.
            flight.exception()
        else:
            flight.set_result(None if outcome is None else (outcome, was_kept))

    def _land_items(self, items: Sequence[Item], *, outcomes: Sequence[Place | TeachonceError]) -> None:
        for item, outcome in zip(items, outcomes, strict=True):
            self._land((item.question.cache.kind, item.key), outcome)

    async def _settle(self, items: list[Item], outputs: Outputs, call: ModelCall) -> None:
        """Keep a batch's answers, then tell their callers."""
        began_s = perf_counter()
        try:
            outcomes = await self._store.settle(items, outputs, call=call)
            self._observer.committed(perf_counter() - began_s)
            self.room.full = False
        except DiskFullError as error:
            log.error("no room for %d answers: %s", len(items), error)
            self.room.full = True
            await self._store.fail(items, call=call)
            outcomes = [error] * len(items)
        self._land_items(items, outcomes=outcomes)

    async def _fail(self, items: list[Item], error: TeachonceError, call: ModelCall) -> None:
        """The teacher raised: the attempts stay counted, the callers hear why."""
        await self._store.fail(items, call=call)
        self._land_items(items, outcomes=[error] * len(items))

    async def _give_up(self, items: list[Item], error: TeachonceError) -> None:
        """The teacher was never asked: the calls are given back."""
        await self._store.release(items)
        self._land_items(items, outcomes=[error] * len(items))

    def _loop_ended(self, loop: "asyncio.Task[None]") -> None:
        error = loop.exception() if not loop.cancelled() else None
        if error is None and self._draining:
            return
        if isinstance(error, TeachonceError):
            log.critical("the batcher stopped: %s", error)
        else:
            log.critical("the batcher stopped", exc_info=error)
        self.died.set()
        for flight_id in list(self._flights):
            self._land(flight_id, self._died_error())

    def _died_error(self) -> UnavailableError:
        return UnavailableError("the server stopped while this was being answered; ask again")


@dataclass(frozen=True, kw_only=True, slots=True)
class Landed:
    """What one round brought."""

    places: dict[bytes, Place]
    found: frozenset[bytes]
    """Keys that the cache held."""
    paid: frozenset[bytes]
    """Keys that this question had computed."""
    joined: frozenset[bytes]
    """Keys that another question had computed."""


def check_outputs(outputs: Sequence[str], *, cache: CacheHandle) -> None:
    """Raise `OutputNotCachedError` for an output that the cache was not created with."""
    for name in outputs:
        if name not in cache.outputs:
            kept = ", ".join(cache.outputs)
            raise OutputNotCachedError(f"output {name[:80]!r} is not kept in this cache; it keeps {kept}")
