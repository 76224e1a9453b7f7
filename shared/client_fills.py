"""Long fills through the HTTP client, sync and async: submit, watch, cancel."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from functools import partial

import httpx

from shared.client_calls import Call, checked, stranger
from shared.client_fill_calls import (
    EVENTS,
    FILLS,
    Rows,
    event_status,
    events_path,
    fill_call,
    fill_path,
    finished,
    is_stream,
    status_of,
    statuses_of,
)
from shared.client_retries import CONNECT_S, Followed, jitter_s, new_fill_id
from shared.errors import UnavailableError, UnknownNameError, UnreachableError
from shared.fill_schemas import FillStatus
from shared.progress import shown

SILENCE = httpx.Timeout(45.0, connect=CONNECT_S)
"""A stream says something every 15 s; one that is silent for so long is dead."""
AGAIN = 4
"""Failures before a fill is submitted again: a server needs seconds to start."""

Progress = bool | Callable[[FillStatus], object] | None


class FillMethods(ABC):
    """What `TeacherClient` can do about fills."""

    _http: httpx.Client
    _timeout_s: float

    @abstractmethod
    def _send(self, call: Call) -> httpx.Response: ...

    def fill(
        self,
        dataset: str,
        *,
        sample: int | None = None,
        seed: int = 0,
        rows: Rows | None = None,
        views: str = "0",
        run: str | None = None,
        progress: Progress = None,
        cancel_on_interrupt: bool = False,
    ) -> FillStatus:
        """Have the server answer about all rows of ``NAME/SPLIT``, a sample or some, and wait for the end.

        ``progress``: True for a bar or lines on standard error, or a function of the status. A server that ends
        meanwhile is waited for, ``timeout_s`` at most, and asked again: what it had done costs nothing. Ctrl-C leaves
        the fill to the server unless ``cancel_on_interrupt``. Returns the last status; its counts are those of the
        last submission. Raises what stopped the fill: `BudgetExhaustedError` before anything is computed,
        `FillCancelledError`, or the error of the server.
        """
        call = partial(fill_call, dataset, sample=sample, seed=seed, rows=rows, views=views, run=run)
        followed = Followed(self._timeout_s)
        with shown(progress, title=dataset) as show:
            while True:
                try:
                    self._follow(call(fill_id=followed.id), followed=followed, show=show)
                    if (status := finished(followed)) is not None:
                        return status
                except (UnreachableError, UnknownNameError) as error:
                    if not followed.goes_on(error):
                        raise
                except KeyboardInterrupt:
                    if cancel_on_interrupt:
                        # Also where no reply has come: the server may have begun all the same.
                        with suppress(UnknownNameError):
                            followed.tell(self.cancel_fill(followed.id), show)
                    raise
                time.sleep(jitter_s(AGAIN))

    def _follow(self, call: Call, *, followed: Followed, show: Callable[[FillStatus], object]) -> None:
        submitted = status_of(self._send(call))
        followed.tell(submitted, show)
        for status in self.watch_fill(submitted.id):
            followed.tell(status, show)

    def start_fill(
        self,
        dataset: str,
        *,
        sample: int | None = None,
        seed: int = 0,
        rows: Rows | None = None,
        views: str = "0",
        run: str | None = None,
    ) -> FillStatus:
        """Submit a fill and do not wait for it."""
        call = fill_call(dataset, fill_id=new_fill_id(), sample=sample, seed=seed, rows=rows, views=views, run=run)
        return status_of(self._send(call))

    def fills(self) -> list[FillStatus]:
        """The last fills of the server, the newest first."""
        return statuses_of(self._send(Call(method="GET", path=FILLS)))

    def fill_status(self, fill_id: str) -> FillStatus:
        """How far a fill has come."""
        return status_of(self._send(Call(method="GET", path=fill_path(fill_id))))

    def cancel_fill(self, fill_id: str) -> FillStatus:
        """Ask nothing more; returns when what is in flight is kept. A fill that has ended stays as it is."""
        return status_of(self._send(Call(method="DELETE", path=fill_path(fill_id))))

    def watch_fill(self, fill_id: str) -> Iterator[FillStatus]:
        """The status now and whenever it moves on, the last at the end; a stream that breaks is opened again.

        Raises `UnknownNameError` where the server has been started anew, `UnreachableError` where there is none.
        """
        failed = 0
        while True:
            # UnavailableError: of a proxy in between.
            with suppress(httpx.TransportError, UnavailableError):
                for status in self._events(fill_id):
                    failed = 0
                    yield status
                    if status.ended:
                        return
            status = self.fill_status(fill_id)
            yield status
            if status.ended:
                return
            time.sleep(jitter_s(failed))
            failed += 1

    def _events(self, fill_id: str) -> Iterator[FillStatus]:
        with self._http.stream("GET", events_path(fill_id), headers=EVENTS, timeout=SILENCE) as response:
            if not is_stream(response):
                response.read()
                raise stranger(checked(response))
            for line in response.iter_lines():
                if (status := event_status(line, response=response)) is not None:
                    yield status


class AsyncFillMethods(ABC):
    """`FillMethods` for asyncio."""

    _http: httpx.AsyncClient
    _timeout_s: float

    @abstractmethod
    async def _send(self, call: Call) -> httpx.Response: ...

    async def fill(
        self,
        dataset: str,
        *,
        sample: int | None = None,
        seed: int = 0,
        rows: Rows | None = None,
        views: str = "0",
        run: str | None = None,
        progress: Progress = None,
        cancel_on_interrupt: bool = False,
    ) -> FillStatus:
        """See `FillMethods.fill`; a cancelled task is what Ctrl-C is there."""
        call = partial(fill_call, dataset, sample=sample, seed=seed, rows=rows, views=views, run=run)
        followed = Followed(self._timeout_s)
        with shown(progress, title=dataset) as show:
            while True:
                try:
                    await self._follow(call(fill_id=followed.id), followed=followed, show=show)
                    if (status := finished(followed)) is not None:
                        return status
                except (UnreachableError, UnknownNameError) as error:
                    if not followed.goes_on(error):
                        raise
                except asyncio.CancelledError:
                    if cancel_on_interrupt:
                        # Also where no reply has come: the server may have begun all the same.
                        with suppress(UnknownNameError):
                            followed.tell(await self.cancel_fill(followed.id), show)
                    raise
                await asyncio.sleep(jitter_s(AGAIN))

    async def _follow(self, call: Call, *, followed: Followed, show: Callable[[FillStatus], object]) -> None:
        submitted = status_of(await self._send(call))
        followed.tell(submitted, show)
        async for status in self.watch_fill(submitted.id):
            followed.tell(status, show)

    async def start_fill(
        self,
        dataset: str,
        *,
        sample: int | None = None,
        seed: int = 0,
        rows: Rows | None = None,
        views: str = "0",
        run: str | None = None,
    ) -> FillStatus:
        """See `FillMethods.start_fill`."""
        call = fill_call(dataset, fill_id=new_fill_id(), sample=sample, seed=seed, rows=rows, views=views, run=run)
        return status_of(await self._send(call))

    async def fills(self) -> list[FillStatus]:
        """See `FillMethods.fills`."""
        return statuses_of(await self._send(Call(method="GET", path=FILLS)))

    async def fill_status(self, fill_id: str) -> FillStatus:
        """See `FillMethods.fill_status`."""
        return status_of(await self._send(Call(method="GET", path=fill_path(fill_id))))

    async def cancel_fill(self, fill_id: str) -> FillStatus:
        """See `FillMethods.cancel_fill`."""
        return status_of(await self._send(Call(method="DELETE", path=fill_path(fill_id))))

    async def watch_fill(self, fill_id: str) -> AsyncIterator[FillStatus]:
        """See `FillMethods.watch_fill`."""
        failed = 0
        while True:
            # UnavailableError: of a proxy in between.
            with suppress(httpx.TransportError, UnavailableError):
                async with aclosing(self._events(fill_id)) as events:
                    async for status in events:
                        failed = 0
                        yield status
                        if status.ended:
                            return
            status = await self.fill_status(fill_id)
            yield status
            if status.ended:
                return
            await asyncio.sleep(jitter_s(failed))
            failed += 1

    async def _events(self, fill_id: str) -> AsyncGenerator[FillStatus]:
        async with self._http.stream("GET", events_path(fill_id), headers=EVENTS, timeout=SILENCE) as response:
            if not is_stream(response):
                await response.aread()
                raise stranger(checked(response))
            async for line in response.aiter_lines():
                if (status := event_status(line, response=response)) is not None:
                    yield status
