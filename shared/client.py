"""The HTTP client of the teacher server, sync and async.

Shape key: B rows or images asked about, H height, W width.
"""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from shared.client_calls import (
    RETRY_STATUSES,
    Answers,
    Call,
    answers_of,
    budget_call,
    check_url,
    checked,
    common_headers,
    images_calls,
    join_answers,
    json_of,
    logits_calls,
    pauses,
    retry_after_s,
    run_path,
    unreachable,
)

__all__ = ["Answers", "AsyncTeacherClient", "TeacherClient"]


class TeacherClient:
    """Asks one teacher server; a context manager. Safe to use from several threads.

    Errors of the server come back as the classes of `shared.errors`; connection errors and "not now" are tried again.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        self._http = httpx.Client(base_url=check_url(base_url), headers=common_headers(api_key), timeout=timeout_s)

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

    def images(
        self, images: NDArray[np.uint8] | bytes, *, outputs: Sequence[str] = ("logits",), run: str | None = None
    ) -> Answers:
        """Answers for images uint8 [B, H, W, 3], or for the bytes of one PNG, JPEG or WebP file."""
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
        for pause_s in pauses():
            try:
                response = self._http.request(
                    call.method, call.path, params=call.params, content=call.content, headers=call.headers()
                )
            except httpx.TransportError as error:
                if pause_s is None:
                    raise unreachable(str(self._http.base_url), error=error) from error
                time.sleep(pause_s)
                continue
            if response.status_code not in RETRY_STATUSES or pause_s is None:
                return checked(response)
            time.sleep(max(pause_s, retry_after_s(response)))
        raise AssertionError("the last pause is None")


class AsyncTeacherClient:
    """`TeacherClient` for asyncio."""

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        self._http = httpx.AsyncClient(base_url=check_url(base_url), headers=common_headers(api_key), timeout=timeout_s)

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

    async def images(
        self, images: NDArray[np.uint8] | bytes, *, outputs: Sequence[str] = ("logits",), run: str | None = None
    ) -> Answers:
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
        for pause_s in pauses():
            try:
                response = await self._http.request(
                    call.method, call.path, params=call.params, content=call.content, headers=call.headers()
                )
            except httpx.TransportError as error:
                if pause_s is None:
                    raise unreachable(str(self._http.base_url), error=error) from error
                await asyncio.sleep(pause_s)
                continue
            if response.status_code not in RETRY_STATUSES or pause_s is None:
                return checked(response)
            await asyncio.sleep(max(pause_s, retry_after_s(response)))
        raise AssertionError("the last pause is None")
