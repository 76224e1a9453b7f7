"""The HTTP client of the teacher server, sync and async.

Shape key: B rows or images asked about, H height, W width.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from shared.client_calls import (
    Answers,
    Call,
    answers_of,
    budget_call,
    check_url,
    checked,
    common_headers,
    is_loopback,
    join_answers,
    json_of,
    logits_calls,
    run_path,
)
from shared.client_fills import AsyncFillMethods, FillMethods
from shared.client_images import Images, images_calls
from shared.client_retries import Tries
from shared.client_streams import CONCURRENCY, StreamCounts, in_order, in_order_async
from shared.fill_schemas import FillStatus
from shared.progress import shown

__all__ = ["Answers", "AsyncTeacherClient", "FillStatus", "TeacherClient"]

TIMEOUT_S = 600.0
"""Ten answers of 504 from a server with its default deadline: what a slow teacher computes meanwhile is kept."""
# Shorter than the 5 s of the server: a connection that it is about to close is not used again.
LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=3.0)

Outcome = httpx.Response | httpx.TransportError


class TeacherClient(FillMethods):
    """Asks one teacher server; a context manager. Safe to use from several threads.

    Errors of the server come back as the classes of `shared.errors`; connection errors and "not now" are tried again,
    for ``timeout_s`` seconds per request at most. The environment says which proxy to use, if any; none for loopback.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._http = httpx.Client(
            base_url=check_url(base_url),
            headers=common_headers(api_key),
            limits=LIMITS,
            trust_env=not is_loopback(base_url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def logits(
        self,
        dataset: str,
        rows: Sequence[int] | NDArray[np.int64],
        *,
        view: int = 0,
        outputs: Sequence[str] = ("logits",),
        run: str | None = None,
    ) -> Answers:
        """Answers for rows of ``NAME/SPLIT``; many rows become several requests."""
        calls = logits_calls(dataset, rows=rows, view=view, outputs=outputs, run=run)
        return join_answers([answers_of(self._send(call)) for call in calls])

    def stream_logits(
        self,
        dataset: str,
        rows: Sequence[int] | NDArray[np.int64],
        *,
        view: int = 0,
        outputs: Sequence[str] = ("logits",),
        run: str | None = None,
        concurrency: int = CONCURRENCY,
        progress: bool | Callable[[StreamCounts], object] | None = None,
    ) -> Iterator[Answers]:
        """The same part by part, in the order of the rows, for more than fits in memory.

        ``concurrency`` requests are under way or in memory at once. ``progress``: True for a bar or lines on standard
        error, or a function of the counts.
        """
        calls = logits_calls(dataset, rows=rows, view=view, outputs=outputs, run=run)
        counts = StreamCounts(total=len(rows))
        with shown(progress, title=dataset) as show:
            for answers in in_order(self._send, calls, concurrency=concurrency):
                counts = counts.plus(answers)
                show(counts)
                yield answers

    def images(self, images: Images, *, outputs: Sequence[str] = ("logits",), run: str | None = None) -> Answers:
        """Answers for images uint8 [B, H, W, 3] or [H, W, 3], or a PNG, JPEG or WebP file (its bytes or its path).

        Also for several of these one after another, of any sizes. What has one size travels together.
        """
        return join_answers([answers_of(self._send(call)) for call in images_calls(images, outputs=outputs, run=run)])

    def ledger(self) -> dict[str, Any]:
        """Counts of attempts, calls, hits and joined requests."""
        return json_of(self._send(Call(method="GET", path="/v1/ledger")))

    def run(self, name: str) -> dict[str, Any]:
        """One run's budget and use."""
        return json_of(self._send(Call(method="GET", path=run_path(name))))

    def set_budget(self, name: str, budget: int | None) -> dict[str, Any]:
        """Make a run or change its budget; None removes the limit."""
        return json_of(self._send(budget_call(name, budget=budget)))

    def cache(self) -> dict[str, Any]:
        """What is cached, and what can be asked."""
        return json_of(self._send(Call(method="GET", path="/v1/cache")))

    def ready(self) -> bool:
        """Whether the server answers questions now."""
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _send(self, call: Call) -> httpx.Response:
        tries = Tries(self._timeout_s)
        while (pause_s := tries.pause_s(outcome := self._try(call, timeout=tries.timeout()))) is not None:
            time.sleep(pause_s)
        if isinstance(outcome, httpx.TransportError):
            raise tries.failure(outcome, url=str(self._http.base_url)) from outcome
        return checked(outcome)

    def _try(self, call: Call, *, timeout: httpx.Timeout) -> Outcome:
        try:
            return self._http.request(
                call.method,
                call.path,
                params=call.params,
                content=call.content,
                headers=call.headers(),
                timeout=timeout,
            )
        except httpx.TransportError as error:
            return error


class AsyncTeacherClient(AsyncFillMethods):
    """`TeacherClient` for asyncio."""

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._http = httpx.AsyncClient(
            base_url=check_url(base_url),
            headers=common_headers(api_key),
            limits=LIMITS,
            trust_env=not is_loopback(base_url),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def logits(
        self,
        dataset: str,
        rows: Sequence[int] | NDArray[np.int64],
        *,
        view: int = 0,
        outputs: Sequence[str] = ("logits",),
        run: str | None = None,
    ) -> Answers:
        """See `TeacherClient.logits`."""
        calls = logits_calls(dataset, rows=rows, view=view, outputs=outputs, run=run)
        return join_answers([answers_of(await self._send(call)) for call in calls])

    async def stream_logits(
        self,
        dataset: str,
        rows: Sequence[int] | NDArray[np.int64],
        *,
        view: int = 0,
        outputs: Sequence[str] = ("logits",),
        run: str | None = None,
        concurrency: int = CONCURRENCY,
        progress: bool | Callable[[StreamCounts], object] | None = None,
    ) -> AsyncIterator[Answers]:
        """See `TeacherClient.stream_logits`."""
        calls = logits_calls(dataset, rows=rows, view=view, outputs=outputs, run=run)
        counts = StreamCounts(total=len(rows))
        with shown(progress, title=dataset) as show:
            async with aclosing(in_order_async(self._send, calls, concurrency=concurrency)) as parts:
                async for answers in parts:
                    counts = counts.plus(answers)
                    show(counts)
                    yield answers

    async def images(self, images: Images, *, outputs: Sequence[str] = ("logits",), run: str | None = None) -> Answers:
        """See `TeacherClient.images`."""
        return join_answers(
            [answers_of(await self._send(call)) for call in images_calls(images, outputs=outputs, run=run)]
        )

    async def ledger(self) -> dict[str, Any]:
        """See `TeacherClient.ledger`."""
        return json_of(await self._send(Call(method="GET", path="/v1/ledger")))

    async def run(self, name: str) -> dict[str, Any]:
        """See `TeacherClient.run`."""
        return json_of(await self._send(Call(method="GET", path=run_path(name))))

    async def set_budget(self, name: str, budget: int | None) -> dict[str, Any]:
        """See `TeacherClient.set_budget`."""
        return json_of(await self._send(budget_call(name, budget=budget)))

    async def cache(self) -> dict[str, Any]:
        """See `TeacherClient.cache`."""
        return json_of(await self._send(Call(method="GET", path="/v1/cache")))

    async def ready(self) -> bool:
        """See `TeacherClient.ready`."""
        try:
            return (await self._http.get("/readyz")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    async def _send(self, call: Call) -> httpx.Response:
        tries = Tries(self._timeout_s)
        while (pause_s := tries.pause_s(outcome := await self._try(call, timeout=tries.timeout()))) is not None:
            await asyncio.sleep(pause_s)
        if isinstance(outcome, httpx.TransportError):
            raise tries.failure(outcome, url=str(self._http.base_url)) from outcome
        return checked(outcome)

    async def _try(self, call: Call, *, timeout: httpx.Timeout) -> Outcome:
        try:
            return await self._http.request(
                call.method,
                call.path,
                params=call.params,
                content=call.content,
                headers=call.headers(),
                timeout=timeout,
            )
        except httpx.TransportError as error:
            return error
