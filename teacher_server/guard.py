"""What every request passes before any route: host, key, size and time of the body. Pure ASGI, default deny."""

import asyncio
import re
import secrets
from contextlib import suppress

from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.errors import (
    ForbiddenError,
    InputError,
    SlowBodyError,
    TeachonceError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
    UnsupportedTypeError,
)
from teacher_server.access import Access, wants_login
from teacher_server.permissions import LOOK, PROBES, check_permission, has_route, is_open
from teacher_server.replies import error_reply
from teacher_server.request_record import note_error
from teacher_server.settings import ServerSettings, is_loopback
from teacher_server.uploads import Hold, Uploads

COMPRESSED_PATHS = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?/infer")
"""Routes that inflate a body themselves, within the limit of a plain one."""
OPEN_BODY_BYTES = 4096
"""Of a request that needs no key, such as a login: who has none gets no room for uploads."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HOST_PATTERN = re.compile(r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?$")
REQUEST_ID_PATTERN = re.compile(r"^[A-Za-z0-9._-]{1,64}$")


class Guard:
    """ASGI middleware; answers what it refuses itself, and gives every request an id and every reply its header."""

    def __init__(self, app: ASGIApp, *, settings: ServerSettings, access: Access) -> None:
        self.app = app
        self.access = access
        self.settings = settings
        self.uploads = Uploads(most_bytes=settings.upload_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer why not."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        request_id = _request_id(_values(headers, b"x-request-id"))
        hold = Hold(self.uploads)
        scope.setdefault("state", {}).update(request_id=request_id, hold=hold)
        body = LimitedBody(receive, settings=self.settings, max_bytes=self._most_bytes(scope["path"]), hold=hold)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if scope["state"].get("crowded") and scope["path"] not in PROBES:
                raise UnavailableError("too many connections or unread answers; ask again in a moment")
            await self._check(scope, headers=headers)
            # With GET no route reads one, and each refuses it.
            body.admit(0 if scope["method"] in LOOK else _declared_bytes(headers))
        except TeachonceError as error:
            if isinstance(error, UnauthorizedError) and wants_login(scope):
                await RedirectResponse("/login", status_code=303)(scope, receive, send_with_id)
                return
            note_error(scope, code=error.code, message=str(error))
            # Who asked whether to send the body has not begun; reading would invite it.
            if isinstance(error, TooLargeError) and not _values(headers, b"expect"):
                await body.discard()
            await error_reply(error, request_id=request_id)(scope, receive, send_with_id)
        else:
            await self.app(scope, body.receive, send_with_id)
        finally:
            hold.release()

    async def _check(self, scope: Scope, *, headers: list[tuple[bytes, bytes]]) -> None:
        """Raise for a request that no route may see; else note whose it is. The path is the one that routing uses."""
        path = scope["path"]
        self._check_host(_values(headers, b"host"))
        if not is_open(path):
            key = await self.access.caller(scope)
            scope["state"].update(key=key, owner=key.name)
            try:
                check_permission(key, method=scope["method"], path=path)
            except ForbiddenError:
                # Where there is nothing, there is nothing to forbid: routing says so.
                if has_route(scope):
                    raise
        self._check_body_headers(path, headers=headers)

    def _check_host(self, hosts: list[bytes]) -> None:
        match = HOST_PATTERN.fullmatch(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if match is None:
            raise InputError(f"expected one Host header that names a host, got {len(hosts)} or an odd one")
        name = match.group(1).lower()
        if name in LOOPBACK_NAMES or name in self.settings.allowed_hosts:
            return
        # Off loopback every caller shows a key, which a rebound page in a browser cannot have.
        if is_loopback(self.settings.host) or self.access.ring is None:
            raise InputError(f"this server is not {name[:80]!r}; add --allowed-host {name[:80]} if it should be")

    def _check_body_headers(self, path: str, *, headers: list[tuple[bytes, bytes]]) -> None:
        encodings = {value.strip().lower() for value in _values(headers, b"content-encoding")} - {b"identity", b""}
        if encodings and not COMPRESSED_PATHS.fullmatch(path):
            raise _unsupported_encoding(encodings)
        if _declared_bytes(headers) > self._most_bytes(path):
            raise _too_large(self._most_bytes(path))

    def _most_bytes(self, path: str) -> int:
        return OPEN_BODY_BYTES if is_open(path) else self.settings.max_body_bytes


class LimitedBody:
    """A request body that is cut off where it grows too large or too slow, whatever its headers said."""

    def __init__(self, receive: Receive, *, settings: ServerSettings, max_bytes: int, hold: Hold) -> None:
        self._receive = receive
        self._settings = settings
        self._max_bytes = max_bytes
        self._hold = hold
        self._began_s = asyncio.get_running_loop().time()
        self._size_bytes = self._admitted_bytes = 0
        self._complete = False

    def admit(self, declared_bytes: int) -> None:
        """Make room for a body before it is read; raises `UnavailableError`.

        One without a length is added as it comes.
        """
        self._hold.add(declared_bytes)
        self._admitted_bytes = declared_bytes

    @property
    def _deadline_s(self) -> float:
        """When the next part is due: all in time, and each not slower than the slowest that is accepted."""
        pace = self._settings.transport
        due_s = min(self._settings.body_timeout_s, pace.body_grace_s + self._size_bytes / pace.min_bytes_per_s)
        return self._began_s + due_s

    async def receive(self) -> Message:
        """The next ASGI message; raises `TooLargeError` or `SlowBodyError`."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline_s):
                message = await self._receive()
        except TimeoutError as error:
            seconds = self._deadline_s - self._began_s
            raise SlowBodyError(f"{self._size_bytes} bytes of the body in {seconds:.3g} s; send it faster") from error
        self._count(message)
        if self._size_bytes > self._max_bytes:
            await self.discard()
            raise _too_large(self._max_bytes)
        if self._size_bytes > self._admitted_bytes:
            self._hold.add(self._size_bytes - self._admitted_bytes)
            self._admitted_bytes = self._size_bytes
        return message

    async def discard(self) -> None:
        """Read on and keep nothing, until the end, the deadline or twice the limit.

        Many clients read no answer before they have sent all, and lose it where the connection closes on them.
        """
        with suppress(TimeoutError):
            # Everything is kept off memory here, so the whole time that a body has may be used.
            async with asyncio.timeout_at(self._began_s + self._settings.body_timeout_s):
                while not self._complete and self._size_bytes <= 2 * self._max_bytes:
                    self._count(await self._receive())

    def _count(self, message: Message) -> None:
        if message["type"] == "http.request":
            self._size_bytes += len(message.get("body", b""))
        # Also when the client left: nothing more comes.
        self._complete = not message.get("more_body", False)


def _values(headers: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _declared_bytes(headers: list[tuple[bytes, bytes]]) -> int:
    """Content-Length; 0 where there is none that the parser let through."""
    return max((int(value) for value in _values(headers, b"content-length") if value.isdigit()), default=0)


def _request_id(given: list[bytes]) -> str:
    """The caller's id where it is harmless in headers and logs, else a fresh one."""
    text = given[0].decode("latin-1") if len(given) == 1 else ""
    return text if REQUEST_ID_PATTERN.fullmatch(text) else secrets.token_hex(8)


def _too_large(limit: int) -> TooLargeError:
    if limit == OPEN_BODY_BYTES:
        return TooLargeError(f"the body is over {limit} bytes, more than this path takes; send less")
    return TooLargeError(f"the body is over {limit} bytes; send several smaller requests, or raise --max-body-mb")


def _unsupported_encoding(found: set[bytes]) -> UnsupportedTypeError:
    names = ", ".join(sorted(value.decode("latin-1")[:40] for value in found))
    return UnsupportedTypeError(f"Content-Encoding {names!r} is not read; send the body as it is")
