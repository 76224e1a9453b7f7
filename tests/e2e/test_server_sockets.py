"""A real server and clients that speak HTTP badly, slowly or not at all: it answers the next one, and keeps nothing.

Deadlines are shortened in the launched program, so that nothing here waits for seconds.
"""

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

IMPATIENT = """
from teacher_server.settings import ServerSettings, TransportSettings
TransportSettings.__init__.__kwdefaults__.update(
    head_timeout_s=0.4, keep_alive_s=0.3, body_grace_s=0.3, stuck_reader_s=0.3, look_every_s=0.05, min_bytes_per_s=1000
)
ServerSettings.__init__.__kwdefaults__.update(body_timeout_s=1.5)
from teacher_server.cli import main
main()
"""
CONNECTIONS = 100
BODY = json.dumps({"dataset": "pictures/train", "rows": [0]}).encode()
HEAD = b"POST /v1/logits HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GOOD = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /v1/ledger HTTP/1.1\r\nHost: localhost\r\n"
EVENTS = GET.replace(b"ledger", b"status/events")
WAIT_S = 10


@dataclass(frozen=True)
class Reply:
    """What a socket said before it was closed."""

    data: bytes

    @property
    def statuses(self) -> list[int]:
        """Of every answer, in order."""
        return [int(part[:3]) for part in self.data.split(b"HTTP/1.1 ")[1:]]

    @property
    def error(self) -> dict[str, Any]:
        """The JSON of the last answer."""
        told: dict[str, Any] = json.loads(self.data.rpartition(b"\r\n\r\n")[2])
        return told


@dataclass(frozen=True)
class Target:
    """A running server, as an attacker sees it."""

    server: Any
    calls: int
    """Attempts before the attacks."""

    def connect(self) -> socket.socket:
        host, port = self.server.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=WAIT_S)

    def send(self, *parts: bytes) -> Reply:
        """Send parts, each in a packet of its own, and read until the server closes."""
        with self.connect() as raw:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                for part in parts:
                    raw.sendall(part)
            except OSError:
                pass  # refused before the end; its answer may be there all the same
            return read_to_end(raw)

    @property
    def rss_bytes(self) -> int:
        pages = Path(f"/proc/{self.server.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    @property
    def files(self) -> int:
        return len(self._open_files())

    @property
    def sockets(self) -> int:
        return sum(name.startswith("socket:") for name in self._open_files())

    def _open_files(self) -> list[str]:
        found = []
        for entry in Path(f"/proc/{self.server.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                found.append(str(entry.readlink()))
        return found

    def assert_well(self) -> None:
        """Ready, answers, and was not made to call its teacher."""
        with httpx.Client(base_url=self.server.url, timeout=WAIT_S) as client:
            assert client.get("/readyz").status_code == 200
            answer = client.post("/v1/logits", content=BODY, headers={"content-type": "application/json"})
            assert (answer.status_code, answer.json()["cached"]) == (200, [True])
            assert client.get("/v1/ledger").json()["attempts"] == self.calls


def read_to_end(raw: socket.socket) -> Reply:
    received = []
    with suppress(ConnectionResetError):
        while part := raw.recv(2**16):
            received.append(part)
    return Reply(b"".join(received))


def until(reached: Callable[[], bool]) -> None:
    """Wait for what must come, and fail where it does not."""
    deadline = time.monotonic() + WAIT_S
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def target(
    launch_server: Callable, make_images: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """One server for all attacks; at the end it is what it was at the start."""
    folder = tmp_path_factory.mktemp("sockets")
    pictures = make_images(folder / "pictures", count=10)
    server = launch_server(
        folder / "store",
        *("--dataset", f"folder:{pictures}", "--max-body-mb", "1", "--max-upload-mb", "2"),
        *("--max-connections", str(CONNECTIONS)),
        program=[sys.executable, "-c", IMPATIENT],
    )
    sockets = Target(server, calls=0).sockets
    target = Target(server, calls=server.ask([0]).json()["teacher_calls"])
    target.assert_well()
    files, rss_bytes = target.files, target.rss_bytes
    yield target
    until(lambda: target.sockets == sockets)
    assert target.files < files + 4  # SQLite keeps a few for later
    # Two for uploads, one body more, and what allocators keep.
    assert target.rss_bytes - rss_bytes < 32 * 2**20
    assert "Traceback" not in server.log.read_text()


@pytest.fixture(autouse=True)
def well(target: Target) -> Iterator[None]:
    yield
    target.assert_well()


def chunk(data: bytes, *, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


BROKEN: dict[str, tuple[bytes, int]] = {
    "garbage": (bytes(range(128, 256)) * 4, 400),
    "a TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), 400),
    "an HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), 400),
    "HTTP/0.9": (b"GET /v1/ledger\r\n\r\n", 400),
    "HTTP/9.9": (b"GET /v1/ledger HTTP/9.9\r\nHost: localhost\r\n\r\n", 400),
    "a tunnel": (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "an unknown verb": (b"SPEND /v1/ledger HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "lines that end with LF": (GET.replace(b"\r\n", b"\n") + b"\n", 400),
    "a space before the colon": (b"GET /v1/ledger HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
    "a folded header": (GET + b"X: a\r\n b\r\n\r\n", 400),
    "NUL in a header": (GET + b"X: a\x00b\r\n\r\n", 400),
    "two lengths": (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY, 400),
    "two equal lengths": (HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n" + BODY, 400),
    "a length of -1": (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    "a length of +5": (HEAD + b"Content-Length: +5\r\n\r\n" + BODY, 400),
    "a length of 2^64": (HEAD + b"Content-Length: 18446744073709551616\r\n\r\n", 400),
    "a length of 2^63": (HEAD + b"Content-Length: 9223372036854775808\r\n\r\n", 413),
    "a length and chunks": (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks and a length": (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "a coding that is nearly chunked": (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    "chunked, then something": (HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "chunked twice": (HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "a chunk of no size": (CHUNKED + b"\r\nabc\r\n0\r\n\r\n", 400),
    "a chunk of -1": (CHUNKED + b"-1\r\nabc\r\n0\r\n\r\n", 400),
    "a chunk of 0x10": (CHUNKED + b"0x10\r\nabc\r\n0\r\n\r\n", 400),
    "a chunk of 2^64": (CHUNKED + b"10000000000000000\r\nabc\r\n", 400),
    "a chunk longer than said": (CHUNKED + b"3\r\nabcd\r\n0\r\n\r\n", 400),
    "a chunk that ends with LF": (CHUNKED + b"3\nabc\n0\n\n", 400),
    "chunks of more than a body": (CHUNKED + chunk(bytes(2**20 + 1)) + b"0\r\n\r\n", 413),
    "chunks of one byte": (CHUNKED + chunk(b"x") * 100_000, 413),
    "chunks with long extensions": (CHUNKED + chunk(b"x", extension=b";" + b"e" * 2**17) * 4, 413),
    "an endless trailer": (CHUNKED + b"0\r\nX: " + b"t" * 2**18, 413),
    "a URL of 9,000 bytes": (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
    "a URL of 1 MB": (b"GET /" + b"a" * 2**20 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
    "a header of 64 KB": (GET + b"X: " + b"a" * 2**16 + b"\r\n\r\n", 431),
    "a header of 1 MB": (GET + b"X: " + b"a" * 2**20 + b"\r\n\r\n", 431),
    "a header that never ends": (GET + b"X: " + b"a" * 2**17, 431),
    "10,000 headers": (GET + b"X: a\r\n" * 10_000 + b"\r\n", 431),
    "129 headers": (GET + b"X: a\r\n" * 128 + b"\r\n", 431),
    "a body shorter than said": (HEAD + b"Content-Length: 500\r\n\r\n" + BODY, 408),
    "chunks that do not end": (CHUNKED + chunk(b"abc"), 408),
    "headers that do not end": (GET, 408),
    "half a request line": (b"GET /v1", 408),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_request_gets_one_error_and_a_closed_connection(target: Target, name: str) -> None:
    sent, status = BROKEN[name]
    reply = target.send(sent)
    assert reply.statuses == [status]
    assert set(reply.error) == {"error", "code", "request_id"}
    assert b"connection: close" in reply.data


CLOSE = b"Connection: close\r\n\r\n"
FINE: dict[str, tuple[tuple[bytes, ...], list[int]]] = {
    "a whole URL": ((GET.replace(b"/v1", b"http://localhost/v1") + CLOSE,), [200]),
    "a whole URL of another host": ((GET.replace(b"Host: localhost", b"Host: evil.example") + CLOSE,), [400]),
    "an asterisk": ((b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n" + CLOSE,), [404]),
    "empty lines before a request": ((b"\r\n\r\n" + GET + CLOSE,), [200]),
    "HTTP/1.0": ((GET.replace(b"1.1", b"1.0") + b"\r\n",), [200]),
    "128 headers": ((GET + b"X: a\r\n" * 126 + CLOSE,), [200]),
    "an upgrade to what is not spoken": ((GET + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n",), [200]),
    "a body split in two": ((GOOD[:-5], GOOD[-5:], GET + CLOSE), [200, 200]),
    "chunks with extensions": ((CHUNKED + chunk(BODY, extension=b";a=b"), b"0\r\n\r\n" + GET + CLOSE), [200, 200]),
    "two requests at once": ((GOOD + GET + CLOSE,), [200, 200]),
    "a body longer than said": ((GOOD + b"more" + GET + CLOSE,), [200]),
    "a body where none is read": ((GET + b"Content-Length: 4\r\n\r\nmore" + GET + CLOSE,), [400, 200]),
    "no body where none is read": ((GET + b"Content-Length: 0\r\n\r\n" + GET + CLOSE,), [200, 200]),
    "a stream with a body that never comes": ((EVENTS + b"Content-Length: 1000\r\n" + CLOSE,), [400]),
    "a stream with chunks that never come": ((EVENTS + b"Transfer-Encoding: chunked\r\n" + CLOSE,), [400]),
    "a smuggled request": (
        (HEAD + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GOOD + CLOSE,),
        [400],
    ),
    "fifty requests at once": ((GET + b"\r\n",) * 1 + ((GET + b"\r\n") * 49,), [200] * 10),
}


@pytest.mark.parametrize("name", FINE)
def test_a_request_that_is_odd_and_clear_is_answered(target: Target, name: str) -> None:
    parts, statuses = FINE[name]
    found = target.send(*parts).statuses
    if name == "fifty requests at once":
        # As many as may wait; which are read with the first one is up to the network.
        assert 1 <= len(found) <= 10
        assert set(found) == {200}
    else:
        assert found == statuses


def test_a_trailer_is_never_taken_for_a_header(target: Target) -> None:
    trailers = b"0\r\nContent-Encoding: gzip\r\nInference-Header-Content-Length: 1\r\nHost: evil.example\r\n\r\n"
    assert target.send(CHUNKED + chunk(BODY) + trailers + GET + CLOSE).statuses == [200, 200]
    teacher = httpx.get(f"{target.server.url}/v1/cache").json()["teachers"][0]["id"]
    infer = CHUNKED.replace(b"/v1/logits", f"/v2/models/{teacher}/infer".encode())
    inputs = [{"name": "row", "datatype": "INT64", "shape": [1], "data": [0]}]
    body = json.dumps({"inputs": inputs, "parameters": {"dataset": "pictures/train"}}).encode()
    assert target.send(infer, chunk(body[:10]), chunk(body[10:]), trailers + GET + CLOSE).statuses == [200, 200]


def test_a_request_may_arrive_in_any_two_parts(target: Target) -> None:
    with target.connect() as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for position in range(1, len(GOOD)):
            raw.sendall(GOOD[:position])
            raw.sendall(GOOD[position:])
            with HTTPResponse(raw) as answer:
                answer.begin()
                assert (answer.status, json.loads(answer.read())["teacher_calls"]) == (200, 0)
    # And in as many as it has bytes.
    assert target.send(*(bytes([byte]) for byte in GOOD), GET + CLOSE).statuses == [200, 200]


def test_who_asks_before_sending_a_body_is_told_to(target: Target) -> None:
    with target.connect() as raw:
        raw.sendall(HEAD + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        assert raw.recv(2**16) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(BODY)
        assert read_to_end(raw).statuses == [200]


def drip(raw: socket.socket, data: bytes) -> Reply:
    """One byte every 20 ms until the server has had enough."""
    raw.settimeout(0.02)
    received = b""
    for byte in data * 1000:
        try:
            raw.send(bytes([byte]))
            received += (part := raw.recv(2**16))
            if not part:
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return Reply(received)


@pytest.mark.parametrize(
    ("start", "rest", "statuses"),
    [
        (b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 100, [408]),
        (b"", b"\r\n", []),
        (HEAD + b"Content-Length: 1000\r\n\r\n", b"x", [408]),
        (CHUNKED, b"1\r\nx\r\n", [408]),
        (CHUNKED + b"1", b";e", [408]),
        # A body that nobody waits for any more, and what follows an upgrade.
        (HEAD.replace(b"logits", b"nothing") + b"Content-Length: 1000\r\n\r\n", b"x", [404]),
    ],
    ids=["headers", "empty lines", "a body", "chunks", "an extension", "a refused body"],
)
def test_a_client_that_drips_is_cut_off(target: Target, start: bytes, rest: bytes, statuses: list[int]) -> None:
    began_s = time.monotonic()
    with target.connect() as raw:
        raw.sendall(start)
        assert drip(raw, rest).statuses == statuses
    assert time.monotonic() - began_s < 3


def test_idle_connections_make_room_for_those_who_ask(target: Target) -> None:
    idle = [target.connect() for _ in range(3 * CONNECTIONS)]
    try:
        # Three times as many as fit, and nobody has waited for a deadline.
        target.assert_well()
        # In the end nothing was asked on any of them, and all are closed.
        assert {read_to_end(raw).data for raw in idle} == {b""}
    finally:
        for raw in idle:
            raw.close()


def test_health_is_told_while_every_connection_is_busy(target: Target) -> None:
    busy = []
    try:
        for _ in range(CONNECTIONS):
            busy.append(target.connect())
            busy[-1].sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 2000\r\n\r\n")
            # It waits for its body now, so that it cannot be closed for another.
            assert busy[-1].recv(2**16).startswith(b"HTTP/1.1 100 ")
            busy[-1].sendall(bytes(1500))
        refused = target.send(GET + CLOSE)
        assert target.send(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n" + CLOSE).statuses == [200]
        assert (refused.statuses, refused.error["code"]) == ([503], "unavailable")
        assert b"retry-after: 1" in refused.data
    finally:
        for raw in busy:
            raw.close()
    until(lambda: target.sockets < CONNECTIONS)


def test_who_never_reads_is_cut_off(target: Target) -> None:
    before = target.sockets
    asked = b"POST /v1/logits HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    body = json.dumps({"dataset": "pictures/train", "rows": [0] * 4096, "outputs": ["logits", "features"]}).encode()
    asked += b"Content-Length: %d\r\n\r\n" % len(body) + body
    with target.connect() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.settimeout(0.1)
        try:
            for _ in range(100):
                raw.sendall(asked)
        except OSError:
            pass  # the server reads no more than it can answer
        until(lambda: target.sockets <= before)


def test_uploads_beyond_the_room_are_refused_before_they_are_read_and_the_room_comes_back(target: Target) -> None:
    head = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000000\r\n"
    holding = [target.connect() for _ in range(2)]
    try:
        for raw in holding:
            raw.sendall(head + b"Expect: 100-continue\r\n\r\n")
            assert raw.recv(2**16).startswith(b"HTTP/1.1 100 ")  # two of about one of the two MiB
        full = target.send(head + b"Connection: close\r\n\r\n")
        assert (full.statuses, full.error["code"]) == ([503], "unavailable")
        assert b"retry-after: 1" in full.data
        target.assert_well()  # small bodies find room at any time
    finally:
        for raw in holding:
            raw.close()
    until(lambda: target.send(head + CLOSE + bytes(1_000_000)).statuses == [400])


@pytest.mark.parametrize("path", [b"/login", b"/logout", b"/healthz", b"/assets/style.css"])
def test_who_needs_no_key_gets_no_room_for_uploads(target: Target, path: bytes) -> None:
    asked = b"POST %b HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: %d\r\n" + CLOSE
    refused = target.send(asked % (path, 4097))
    assert (refused.statuses, refused.error["code"]) == ([413], "too_large")
    assert "4096 bytes" in refused.error["error"]
    assert target.send(asked % (path, 4096) + bytes(4096)).statuses != [413]


def test_who_leaves_a_stream_makes_room_whatever_was_asked_behind_it(target: Target) -> None:
    url = f"{target.server.url}/v1/status/events"
    for _ in range(64):  # as many as may watch
        with target.connect() as raw:
            raw.sendall(EVENTS + b"\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 200 ")

    def welcome() -> bool:
        with httpx.stream("GET", url) as reply:
            return reply.status_code == 200

    until(welcome)


@pytest.mark.parametrize("sent", [b"", GET, GOOD[:-1], GOOD, CHUNKED + b"5\r\nab", GOOD * 20])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_may_leave_at_any_moment(target: Target, sent: bytes, reset: bool) -> None:
    for _ in range(5):
        with target.connect() as raw:
            raw.sendall(sent)
            if reset:  # no goodbye
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                raw.shutdown(socket.SHUT_WR)
