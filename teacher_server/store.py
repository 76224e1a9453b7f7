"""The writer on a thread of its own: claims are paid together, batches kept in one commit, answers read back.

Shape key: B items of one batch.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache.writer import CacheHandle, CacheWriter, Place, Reservation
from shared.answers import check_answers
from shared.descriptions import TeacherDescription
from shared.errors import AnswerError, TeachonceError
from teacher_server.questions import Question
from teacher_server.queueing import Item

Outputs = dict[str, NDArray[Any]]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What asking for keys came to."""

    places: dict[bytes, Place]
    """Keys that the cache held already."""
    reservation: Reservation | None
    """Pays for the others; None where there are none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    cache: CacheHandle
    run: str
    keys: list[bytes]
    claim: "asyncio.Future[Claim]"


class Store:
    """One thread, so that nothing waits for a lock; callers wait for the thread."""

    def __init__(self, writer: CacheWriter, *, description: TeacherDescription) -> None:
        self._writer = writer
        self._description = description
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._asked: list[_Asked] = []
        self._lock = Lock()

    def close(self) -> None:
        """Wait for what was asked of the thread."""
        self._thread.shutdown()

    async def _on_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def claim(self, cache: CacheHandle, *, run: str, keys: list[bytes]) -> Claim:
        """Find keys, and durably reserve calls for all that are missing; `BudgetExhaustedError` reserves none."""
        loop = asyncio.get_running_loop()
        asked = _Asked(cache=cache, run=run, keys=keys, claim=loop.create_future())
        with self._lock:
            self._asked.append(asked)
            first = len(self._asked) == 1
        # Claims that arrive while the thread is busy are paid in one transaction.
        if first:
            loop.run_in_executor(self._thread, self._pay, loop)
        return await asked.claim

    def _pay(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            asked, self._asked = self._asked, []
        try:
            outcomes = self._outcomes(asked)
        except BaseException as error:
            loop.call_soon_threadsafe(_deliver, asked, [error] * len(asked))
            raise
        loop.call_soon_threadsafe(_deliver, asked, outcomes)

    def _outcomes(self, asked: list[_Asked]) -> Sequence[Claim | BaseException]:
        outcomes: list[Claim | BaseException] = []
        found = [self._find(one) for one in asked]
        reserved = self._reserve_together(asked, found=found)
        for one, places in zip(asked, found, strict=True):
            calls = len(one.keys) - len(places)
            try:
                paid = reserved.get(_payer(one)) or (self._reserve(one, calls=calls) if calls else None)
                outcomes.append(Claim(places=places, reservation=paid if calls else None))
            except (TeachonceError, OSError, sqlite3.Error) as error:
                outcomes.append(error)
        return outcomes

    def _find(self, asked: _Asked) -> dict[bytes, Place]:
        teacher = self._description.id
        return {key: place for key in asked.keys if (place := self._writer.find(teacher, key)) is not None}

    def _reserve(self, asked: _Asked, *, calls: int) -> Reservation:
        return self._writer.reserve(run=asked.run, cache=asked.cache, calls=calls)

    def _reserve_together(
        self, asked: list[_Asked], *, found: list[dict[bytes, Place]]
    ) -> dict[tuple[str, int], Reservation]:
        """One reservation per payer of several claims; a payer that cannot pay for all is left to pay one by one."""
        groups: dict[tuple[str, int], list[int]] = {}
        for one, places in zip(asked, found, strict=True):
            groups.setdefault(_payer(one), []).append(len(one.keys) - len(places))
        first = {_payer(one): one for one in reversed(asked)}
        reserved = {}
        for payer, calls in groups.items():
            if sum(calls):
                with suppress(TeachonceError):
                    reserved[payer] = self._reserve(first[payer], calls=sum(calls))
        return reserved

    async def settle(self, items: Sequence[Item], outputs: Outputs) -> list[Place | TeachonceError]:
        """Check and keep a batch's answers; a bad answer is refused alone, its attempt stays counted."""
        return await self._on_thread(self._settle, items, outputs)

    def _settle(self, items: Sequence[Item], outputs: Outputs) -> list[Place | TeachonceError]:
        outcomes: list[Place | TeachonceError | None] = self._refusals(items, outputs)
        for group in _groups(items):
            good = [index for index in group if outcomes[index] is None]
            refused = len(group) - len(good)
            if refused:
                self._writer.fail(items[group[0]].reservation, calls=refused)
            if good:
                for index, place in zip(good, self._keep(items, good, outputs=outputs), strict=True):
                    outcomes[index] = place
        return [outcome for outcome in outcomes if outcome is not None]

    def _refusals(self, items: Sequence[Item], outputs: Outputs) -> list[Place | TeachonceError | None]:
        """An error for every answer that must not be kept, None for the others."""
        names = [item.question.name(item.index) for item in items]
        try:
            check_answers(outputs, description=self._description, names=names)
        except AnswerError as error:
            if any(len(array) != len(items) for array in outputs.values()):
                return [error] * len(items)
            return [self._refusal(outputs, index=index, name=name) for index, name in enumerate(names)]
        return [None] * len(items)

    def _refusal(self, outputs: Outputs, *, index: int, name: str) -> AnswerError | None:
        one = {output: array[index : index + 1] for output, array in outputs.items()}
        try:
            check_answers(one, description=self._description, names=[name])
        except AnswerError as error:
            return error
        return None

    def _keep(self, items: Sequence[Item], good: list[int], *, outputs: Outputs) -> Sequence[Place]:
        first = items[good[0]]
        cache = first.question.cache
        known = [items[index].question.place_of(items[index].index) for index in good]
        # Uploads have no row of their own: they are numbered as they arrive.
        arrival = cache.num_slots
        places = [place or (arrival + offset, 0, -1) for offset, place in enumerate(known)]
        rows, views, labels = np.array(places, dtype=np.int64).T
        kept: Sequence[Place] = self._writer.commit(
            cache,
            run=first.run,
            reservation=first.reservation,
            keys=np.frombuffer(b"".join(items[index].key for index in good), dtype=np.uint8).reshape(len(good), -1),
            rows=rows,
            views=views,
            labels=labels,
            outputs={name: outputs[name][good] for name in cache.outputs},
        )
        return kept

    async def fail(self, items: Sequence[Item]) -> None:
        """The forward raised: attempts stay counted."""
        await self._on_thread(self._per_reservation, items, self._writer.fail)

    async def release(self, items: Sequence[Item]) -> None:
        """The forward never began: calls are given back."""
        await self._on_thread(self._per_reservation, items, self._writer.release)

    def _per_reservation(self, items: Sequence[Item], settle: Callable[..., None]) -> None:
        for group in _groups(items):
            settle(items[group[0]].reservation, calls=len(group))

    async def finish(
        self, question: Question, *, places: Sequence[Place], outputs: Sequence[str], run: str, joined: int
    ) -> Outputs:
        """Give every row a slot of its own, charge the run, and read the answers as they are kept."""
        return await self._on_thread(self._finish, question, places, outputs, run, joined)

    def _finish(
        self, question: Question, places: Sequence[Place], outputs: Sequence[str], run: str, joined: int
    ) -> Outputs:
        items = []
        for index, (own, place) in enumerate(zip(question.cached(), places, strict=True)):
            known = question.place_of(index)
            if own is None and known is not None:
                items.append((*known, place))
        if items:
            self._writer.alias(question.cache, run=run, items=items)
        self._writer.note_hits(run=run, cache=question.cache, places=places, joined=joined)
        return dict(self._writer.read(places, outputs)) if outputs else {}


def _payer(asked: _Asked) -> tuple[str, int]:
    return asked.run, id(asked.cache)


def _deliver(asked: list[_Asked], outcomes: Sequence[Claim | BaseException]) -> None:
    for one, outcome in zip(asked, outcomes, strict=True):
        if isinstance(outcome, BaseException):
            one.claim.set_exception(outcome)
        else:
            one.claim.set_result(outcome)


def _groups(items: Sequence[Item]) -> list[list[int]]:
    """Indices of items by what pays for them."""
    groups: dict[int, list[int]] = {}
    for index, item in enumerate(items):
        groups.setdefault(id(item.reservation), []).append(index)
    return list(groups.values())
