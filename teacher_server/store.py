"""The writer on a thread of its own: claims are paid together, batches kept in one commit, answers read back.

Shape key: B items of one batch.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from cache.batch import AnswerBatch
from cache.handle import CacheHandle, Place
from cache.model_call import ModelCall
from cache.payer import Payer
from cache.stage import AliasItem
from cache.writer import CacheWriter, CallRequest, Reservation
from shared.answers import check_answers
from shared.descriptions import TeacherDescription
from shared.errors import AnswerError, TeachonceError
from teacher_server.questions import Question
from teacher_server.queueing import Item

FEW_IMAGES = 64
"""Answers read from memory in less time than a change of threads takes."""

UPLOADED = (-1, 0, -1)
"""Row, view and label of an upload: the writer gives it the next row."""

Outputs = dict[str, NDArray[Any]]
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What asking for keys came to."""

    places: dict[bytes, Place]
    """Keys that the cache held already."""
    reservation: Reservation
    """Pays for the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Got:
    """The places of a question's answers."""

    places: Sequence[Place]
    """In request order."""
    free: Sequence[Place]
    """Of these, the ones that cost this question no call."""
    joined: int = 0
    """Of these, the ones that another question was having computed."""
    new: bool = True
    """Whether some image had no slot of its own when it was asked about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Asked:
    cache: CacheHandle
    payer: Payer
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

    def cached(self, question: Question) -> list[Place | None]:
        """Places of the images that can be told at once; the others may still be cached."""
        places = question.cached()
        if not question.known_by_key or len(places) > FEW_IMAGES:
            return places
        keys = question.keys(range(len(places)))
        return self._writer.find_at_once(self._description.id, keys, cache=question.cache)

    async def claim(self, cache: CacheHandle, *, payer: Payer, keys: list[bytes]) -> Claim:
        """Find keys, and durably reserve calls for all that are missing; `BudgetExhaustedError` reserves none."""
        loop = asyncio.get_running_loop()
        asked = _Asked(cache=cache, payer=payer, keys=keys, claim=loop.create_future())
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
        outcomes: Sequence[Claim | BaseException]
        try:
            outcomes = self._outcomes(asked)
        except TeachonceError as error:
            # Not raised again: the callers hear of it, and asyncio logs what nobody waits for.
            outcomes = [error] * len(asked)
        except BaseException as error:
            loop.call_soon_threadsafe(_deliver, asked, [error] * len(asked))
            raise
        loop.call_soon_threadsafe(_deliver, asked, outcomes)

    def _outcomes(self, asked: list[_Asked]) -> Sequence[Claim | BaseException]:
        teacher = self._description.id
        found = [
            {key: place for key in one.keys if (place := self._writer.find(teacher, key, cache=one.cache)) is not None}
            for one in asked
        ]
        missing = [
            CallRequest(
                run=one.payer.run,
                owner=one.payer.owner,
                cache=one.cache,
                calls=(len(one.keys) - len(places)) * one.cache.calls_per_answer,
            )
            for one, places in zip(asked, found, strict=True)
        ]
        paid = self._writer.reserve_all(missing)
        return [
            outcome if isinstance(outcome, TeachonceError) else Claim(places=places, reservation=outcome)
            for outcome, places in zip(paid, found, strict=True)
        ]

    async def settle(self, items: Sequence[Item], outputs: Outputs, *, call: ModelCall) -> list[Place | TeachonceError]:
        """Check and keep a batch's answers; a bad answer is refused alone, its attempt stays counted."""
        return await self._on_thread(self._settle, items, outputs, call)

    def _settle(self, items: Sequence[Item], outputs: Outputs, call: ModelCall) -> list[Place | TeachonceError]:
        outcomes: list[Place | TeachonceError | None] = self._refusals(items, outputs)
        groups = [[index for index in group if outcomes[index] is None] for group in _groups(items)]
        kept = [group for group in groups if group]
        batches = [self._answer_batch(items, group, outputs=outputs, call=call) for group in kept]
        for group, places in zip(kept, self._writer.commit_all(batches), strict=True):
            for index, place in zip(group, places, strict=True):
                outcomes[index] = place
        refused = [item for item, outcome in zip(items, outcomes, strict=True) if isinstance(outcome, TeachonceError)]
        self._fail(refused, call)
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

    def _answer_batch(
        self, items: Sequence[Item], group: list[int], *, outputs: Outputs, call: ModelCall
    ) -> AnswerBatch:
        """What one payer gets kept."""
        first = items[group[0]]
        cache = first.question.cache
        numbers = [items[index].question.number(items[index].index) or UPLOADED for index in group]
        rows, views, labels = np.array(numbers, dtype=np.int64).T
        return AnswerBatch(
            cache=cache,
            run=first.run,
            owner=first.reservation.payer.owner,
            reservation=first.reservation,
            keys=np.frombuffer(b"".join(items[index].key for index in group), dtype=np.uint8).reshape(len(group), -1),
            rows=rows,
            views=views,
            labels=labels,
            outputs={name: outputs[name][group] for name in cache.outputs},
            call=call,
        )

    async def fail(self, items: Sequence[Item], *, call: ModelCall) -> None:
        """The forward raised: attempts stay counted."""
        await self._on_thread(self._fail, items, call)

    def _fail(self, items: Sequence[Item], call: ModelCall) -> None:
        self._per_reservation(items, partial(self._writer.fail, call=call))

    async def release(self, items: Sequence[Item]) -> None:
        """The forward never began: calls are given back."""
        await self._on_thread(self._per_reservation, items, self._writer.release)

    def _per_reservation(self, items: Sequence[Item], settle: Callable[..., None]) -> None:
        for group in _groups(items):
            first = items[group[0]]
            settle(first.reservation, calls=len(group) * first.question.cache.calls_per_answer)

    async def finish(self, question: Question, *, got: Got, outputs: Sequence[str], payer: Payer) -> Outputs:
        """Give every row a slot of its own, charge the run, and read the answers as they are kept."""
        # Whoever gives slots looks again on the thread: two questions may want one for the same row.
        if len(got.places) <= FEW_IMAGES and not _without_slot(question, got=got):
            return self._finish(question, got, outputs, payer)
        return await self._on_thread(self._finish, question, got, outputs, payer)

    def _finish(self, question: Question, got: Got, outputs: Sequence[str], payer: Payer) -> Outputs:
        cache = question.cache
        if items := _without_slot(question, got=got):
            self._writer.alias(cache, run=payer.run, owner=payer.owner, items=items)
        if got.free:
            self._writer.note_hits(run=payer.run, owner=payer.owner, cache=cache, places=got.free, joined=got.joined)
        if not got.places:
            return {
                spec.name: np.empty((0, *spec.shape), spec.answer_dtype) for spec in cache.specs if spec.name in outputs
            }
        return dict(self._writer.read(got.places, outputs))


def _without_slot(question: Question, *, got: Got) -> list[AliasItem]:
    """Rows whose pixels were answered under another row; uploads are known by their key alone."""
    if not got.new or question.known_by_key:
        return []
    own = question.cached()
    known = [(question.number(index), place) for index, place in enumerate(got.places) if own[index] is None]
    return [(*number, place) for number, place in known if number is not None]


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
