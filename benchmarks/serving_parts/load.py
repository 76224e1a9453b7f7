"""A closed loop of clients on raw sockets: each sends its next request when the last answer has come.

Bytes are made before the clock starts and answers are not parsed beyond their length, so that one core can drive a
server on another.
"""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What one run of a closed loop came to."""

    requests: int
    seconds: float
    latencies_s: tuple[float, ...]
    """Of every request, sorted."""

    def percentile_ms(self, percent: float) -> float:
        """Latency in milliseconds that ``percent`` of all requests did not exceed."""
        return 1000 * self.latencies_s[min(len(self.latencies_s) - 1, int(len(self.latencies_s) * percent / 100))]


class _Client(asyncio.Protocol):
    """One connection that takes requests off a common list until it is empty."""

    def __init__(self, requests: "list[bytes]", *, latencies_s: list[float], done: "asyncio.Future[None]") -> None:
        self._requests = requests
        self._latencies_s = latencies_s
        self._done = done
        self._answer = bytearray()
        self._expected = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def _next(self) -> None:
        if not self._requests:
            self._transport.close()
            self._done.set_result(None)
            return
        self._began_s = time.perf_counter()
        self._transport.write(self._requests.pop())

    def data_received(self, data: bytes) -> None:
        self._answer += data
        if not self._expected:
            end = self._answer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._answer[:end])
            if not head.startswith(b"HTTP/1.1 200"):
                self._done.set_exception(RuntimeError(bytes(self._answer[:500]).decode("latin-1")))
                return
            match = LENGTH.search(head)
            assert match is not None, head
            self._expected = end + 4 + int(match[1])
        if len(self._answer) >= self._expected:
            self._latencies_s.append(time.perf_counter() - self._began_s)
            self._answer.clear()
            self._expected = 0
            self._next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(error or ConnectionError("the server closed the connection"))


def drive(port: int, requests: Sequence[bytes], *, clients: int) -> Load:
    """Send all requests from so many connections to 127.0.0.1; raises `RuntimeError` for an answer other than 200."""
    return asyncio.run(_drive(port, list(reversed(requests)), clients=clients))


async def _drive(port: int, requests: list[bytes], *, clients: int) -> Load:
    loop = asyncio.get_running_loop()
    count = len(requests)
    latencies_s: list[float] = []
    began_s = time.perf_counter()
    dones = [loop.create_future() for _ in range(clients)]
    for done in dones:
        await loop.create_connection(
            lambda done=done: _Client(requests, latencies_s=latencies_s, done=done), "127.0.0.1", port
        )
    await asyncio.gather(*dones)
    seconds = time.perf_counter() - began_s
    return Load(requests=count, seconds=seconds, latencies_s=tuple(sorted(latencies_s)))


def post(path: str, body: bytes, *, kind: str, accept: str = "*/*", more: str = "") -> bytes:
    """The bytes of one POST; ``more`` header lines end in CRLF."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nAccept: {accept}\r\n"
        f"Content-Length: {len(body)}\r\n{more}\r\n"
    )
    return head.encode() + body
