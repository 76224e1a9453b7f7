"""Runs the application on a socket until a signal or a dead batcher ends it."""

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from shared.errors import InputError
from teacher_server.crowd import Crowd
from teacher_server.transport import Connection

DRAIN_S = 30
"""Seconds that open requests get after SIGTERM; what they asked for is kept in any case."""


def bind(host: str, *, port: int) -> socket.socket:
    """A socket that holds the address, not yet listening; port 0 takes a free one. Raises `InputError`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    # UnicodeError: a name that cannot be written in DNS.
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a host name"
        raise InputError(f"cannot listen on {host}:{port}: {why}; choose another --host or --port") from error
    return bound


def url_of(bound: socket.socket) -> str:
    """The address to type into a client."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn, save that it says when it is ready, stops when it must, and lets the caller choose the exit code."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        died: asyncio.Event,
        ready: Callable[[], None],
        stopping: Callable[[], None],
        crowd: Crowd,
    ) -> None:
        super().__init__(config)
        self._crowd = crowd
        self.signals: list[int] = []
        """Signals received, in order."""
        self._died = died
        self._ready = ready
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then tell."""
        await super().startup(sockets)
        self._ready()

    async def _serve(self, sockets: list[socket.socket] | None = None) -> None:
        # Also while it drains: who never reads an answer must not hold that up.
        watch = asyncio.create_task(self._crowd.watch())
        try:
            await super()._serve(sockets)
        finally:
            watch.cancel()

    async def main_loop(self) -> None:
        """Until a signal, or until answers can no longer be kept."""
        watch = asyncio.create_task(self._stop_when_dead())
        try:
            await super().main_loop()
        finally:
            watch.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell what would go on for hours, and those who watch it, to end; then as uvicorn's."""
        self._stopping()
        await super().shutdown(sockets)

    async def _stop_when_dead(self) -> None:
        await self._died.wait()
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that was handled gracefully does not kill the process afterwards."""

        def handle(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)
            self.handle_exit(number, frame)

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_app(app: FastAPI, *, bound: socket.socket, ready: Callable[[], None]) -> list[int]:
    """Serve until told to stop; returns the signals received. The lifespan has drained when it returns."""
    service = app.state.service
    crowd = Crowd(
        service.settings.transport,
        most_unread_bytes=service.settings.upload_bytes,
        refused=app.state.metrics.turned_away,
    )
    config = uvicorn.Config(
        app,
        # httptools refuses ambiguous requests (two lengths, length and chunks) where h11 reads them.
        http=partial(Connection, crowd=crowd),  # type: ignore[arg-type]  # called as the class would be
        loop="asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=crowd.settings.keep_alive_s,
        timeout_graceful_shutdown=DRAIN_S,
    )

    def stopping() -> None:
        service.fills.stop()
        app.state.stopping.set()

    server = Server(config, died=service.answering.died, ready=ready, stopping=stopping, crowd=crowd)
    asyncio.run(server.serve(sockets=[bound]))
    return server.signals
