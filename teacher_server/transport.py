"""One connection: uvicorn's HTTP/1.1, with bounds on its headers, its framing, what it pipelines, and its patience.

What uvicorn 0.54 leaves open (read in ``uvicorn/protocols/http/httptools_impl.py``): headers may take for ever and
grow without end, trailers become headers, any number of requests may wait behind one, and who never reads an answer
keeps it in memory. Where the client leaves, only the newest request is told, not the one that is being answered.
"""

import asyncio
import secrets
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from shared.errors import InputError, LongHeadersError, SlowBodyError, TeachonceError, TooLargeError, UnavailableError
from teacher_server.crowd import Crowd
from teacher_server.joined_writes import JoinedWrites
from teacher_server.replies import error_reply

MAX_URL_BYTES = 8 * 1024
MAX_HEADER_BYTES = 32 * 1024
MAX_HEADERS = 128
MAX_FRAMING_BYTES = 64 * 1024
"""Read and not part of any body: heads, sizes of chunks, their extensions, trailers."""
BODY_PER_FRAMING = 64
"""Bytes of a body that allow one more of framing: chunks of 512 bytes and more never meet the limit."""
MAX_PIPELINED = 8
"""Requests that wait on a connection for the one before."""


class Connection(HttpToolsProtocol):
    """See the module; one per open socket."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        crowd: Crowd,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.unread_bytes = 0
        self._crowd = crowd
        self._since_s = 0.0
        """When it began to wait for a request."""
        self._stuck: tuple[float, int] | None = None
        """Since when an answer waits to be read, and how many bytes of all answers had been read by then."""
        self._in_message = self._in_head = self._completed = False
        self._framing_bytes = self._block_bytes = self._body_bytes = self._header_bytes = 0
        self._refusal: TeachonceError | None = None
        self._answering: RequestResponseCycle | None = None
        """The request whose turn it is; uvicorn's ``cycle`` is the newest."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """A client is there."""
        self._writes = JoinedWrites(transport)
        super().connection_made(self._writes)
        self._since_s = self.loop.time()
        if not self._crowd.join(self):
            self._refuse(UnavailableError("too many connections; ask again in a moment"))

    def connection_lost(self, exc: Exception | None) -> None:
        """The client, or we, left."""
        self._crowd.leave(self)
        self.pipeline.clear()
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        self._unset_keepalive_if_required()
        self._block_bytes, self._completed = len(data), False
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Answered as any other request; what follows it would not be HTTP.
            self.cycle.keep_alive = False
        except httptools.HttpParserError:
            error, self._refusal = self._refusal, None
            self._refuse(error or InputError("this is no HTTP request, or an ambiguous one; send plain HTTP 1.1"))
        else:
            self._check_framing()

    def _check_framing(self) -> None:
        if not self._in_message:
            self._framing_bytes = 0
            return
        # What came before a message that ended in this block is over and done.
        self._framing_bytes = self._block_bytes + (0 if self._completed else self._framing_bytes)
        if self._framing_bytes > MAX_FRAMING_BYTES + self._body_bytes // BODY_PER_FRAMING:
            self._refuse(_long_headers() if self._in_head else TooLargeError("the body's chunks are too small"))

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        self._in_message = self._in_head = True
        self._body_bytes = self._header_bytes = 0

    def on_url(self, url: bytes) -> None:
        """A part of the request line."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            raise self._refused(LongHeadersError(f"the URL is over {MAX_URL_BYTES} bytes; shorten it"))

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer, which nothing here reads: it must not pass for a header."""
        if not self._in_head:
            return
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MAX_HEADER_BYTES or len(self.headers) >= MAX_HEADERS:
            raise self._refused(_long_headers())
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A request can be asked, or wait for its turn."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise self._refused(InputError(f"more than {MAX_PIPELINED} requests wait; read answers in between"))
        self._crowd.works(self)
        self.scope["state"]["crowded"] = crowded = self._crowd.full
        super().on_headers_complete()
        if not self.pipeline:
            self._answering = self.cycle
        self._in_head = False
        if crowded:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._block_bytes -= len(body)
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a request."""
        self._in_message, self._completed = False, True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer was written; the next request is due."""
        self._since_s = self.loop.time()
        # The oldest is on the right.
        self._answering = self.pipeline[-1][0] if self.pipeline else None
        if self._answering is None:
            self._crowd.waits(self)
        super().on_response_complete()

    def abort(self) -> None:
        """End the connection at once."""
        self.transport.abort()

    def look(self, now_s: float) -> None:
        """Hold the connection to its deadlines; called about once a second."""
        self.unread_bytes = self.transport.get_write_buffer_size()
        if self.unread_bytes:
            self._look_at_reader(now_s)
            return
        self._stuck = None
        waits = self.cycle is None or self.cycle.response_complete
        limit_s = self._crowd.settings.head_timeout_s
        if not waits or now_s - self._since_s < limit_s or self.transport.is_closing():
            return
        if self._in_head:
            self._refuse(SlowBodyError(f"the headers took more than {limit_s:g} s; send them faster"))
        else:
            self.transport.close()

    def _look_at_reader(self, now_s: float) -> None:
        settings = self._crowd.settings
        # Not by what is left to read: the next answer may follow at once.
        read_bytes = self._writes.written_bytes - self.unread_bytes
        since_s, before_bytes = self._stuck or (now_s, read_bytes)
        if now_s - since_s < settings.stuck_reader_s:
            self._stuck = since_s, before_bytes
        elif read_bytes - before_bytes < settings.min_bytes_per_s * (now_s - since_s):
            self.transport.abort()
        else:
            self._stuck = now_s, read_bytes

    def _refused(self, error: TeachonceError) -> TeachonceError:
        """To be raised out of the parser's callbacks, which wraps it."""
        self._refusal = error
        return error

    def _refuse(self, error: TeachonceError) -> None:
        """Answer with an error where an answer is due, and close."""
        self._crowd.refused(error)
        cycle = self.cycle
        busy = cycle is not None and not cycle.response_complete
        if busy and not cycle.more_body:
            # The answers that were asked for before come first; nothing more is read.
            cycle.keep_alive = False
            self.flow.pause_reading()
            return
        due = not (cycle.response_started or self.pipeline) if busy else not self._in_message or self._in_head
        if due:
            self.transport.write(_reply(error))
        self.transport.close()


def _long_headers() -> LongHeadersError:
    return LongHeadersError(f"headers over {MAX_HEADER_BYTES} bytes or {MAX_HEADERS} lines; send fewer or shorter ones")


def _reply(error: TeachonceError) -> bytes:
    """An error as HTTP/1.1, in the one JSON shape, where no application was asked."""
    request_id = secrets.token_hex(8)
    reply = error_reply(error, request_id=request_id)
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
    lines += [name + b": " + value for name, value in reply.raw_headers if name != b"connection"]
    lines += [b"x-request-id: " + request_id.encode(), b"connection: close", b"", b""]
    return b"\r\n".join(lines) + bytes(reply.body)
