"""Answers of many requests one after another, with the next requests under way; sync and async."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from shared.client_calls import Answers, Call, answers_of
from shared.errors import InputError

CONCURRENCY = 3
"""One request with the teacher, one being prepared, one being answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamCounts:
    """How far a stream of answers has come."""

    total: int
    done: int = 0
    teacher_calls: int = 0

    def plus(self, answers: Answers) -> "StreamCounts":
        """With these answers too."""
        return StreamCounts(
            total=self.total,
            done=self.done + len(answers.cached),
            teacher_calls=self.teacher_calls + answers.teacher_calls,
        )


def in_order(send: Callable[[Call], httpx.Response], calls: Iterable[Call], *, concurrency: int) -> Iterator[Answers]:
    """The answers in the order of the calls; at most ``concurrency`` are under way or in memory."""
    check_concurrency(concurrency)
    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="ask")
    waiting: deque[Future[httpx.Response]] = deque()
    try:
        for call in calls:
            waiting.append(pool.submit(send, call))
            if len(waiting) == concurrency:
                yield answers_of(waiting.popleft().result())
        while waiting:
            yield answers_of(waiting.popleft().result())
    finally:
        # What was not sent yet is not; what was sent is paid for, kept by the server, and not waited for.
        pool.shutdown(wait=False, cancel_futures=True)


async def in_order_async(
    send: Callable[[Call], Awaitable[httpx.Response]], calls: Iterable[Call], *, concurrency: int
) -> AsyncGenerator[Answers]:
    """`in_order` for asyncio."""
    check_concurrency(concurrency)
    waiting: deque[asyncio.Future[httpx.Response]] = deque()
    try:
        for call in calls:
            waiting.append(asyncio.ensure_future(send(call)))
            if len(waiting) == concurrency:
                yield answers_of(await waiting.popleft())
        while waiting:
            yield answers_of(await waiting.popleft())
    finally:
        for left in waiting:
            left.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def check_concurrency(concurrency: int) -> None:
    """Raise `InputError` for less than one request at a time."""
    if concurrency < 1:
        raise InputError(f"concurrency must be 1 or more, got {concurrency}")
