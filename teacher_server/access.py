"""Whose a request is: by the key in its header, or by a browser's session."""

from collections.abc import Sequence

from starlette.requests import cookie_parser
from starlette.types import Scope as AsgiScope

from shared.errors import ForbiddenError, TeachonceError, UnauthorizedError
from teacher_server.key_ring import KeyRing
from teacher_server.keys import ANYONE, ApiKey, find_key
from teacher_server.permissions import LOOK
from teacher_server.sessions import COOKIE, Sessions

PAGES = frozenset({"/", "/docs"})
"""What people open in a browser: without a key, they are sent to the login."""
Headers = Sequence[tuple[bytes, bytes]]


class Access:
    """The one place that knows keys and sessions; without a ring, everybody may do everything."""

    def __init__(self, ring: KeyRing | None) -> None:
        self.ring = ring
        self.sessions = Sessions()

    async def caller(self, scope: AsgiScope) -> ApiKey:
        """The key that a request is made with; raises `UnauthorizedError`, and `ForbiddenError` for a mere session."""
        if self.ring is None:
            return ANYONE
        return await self._by_header(scope) or await self._by_session(scope)

    async def still_counts(self, scope: AsgiScope) -> bool:
        """Whether who was let in may still read on: asked again and again where an answer takes long."""
        before: ApiKey = scope["state"]["key"]
        try:
            now = await self.caller(scope)
        except TeachonceError:
            return False
        return (now.name, now.scopes) == (before.name, before.scopes)

    async def find(self, secret: bytes) -> ApiKey | None:
        """The key that ``secret`` is."""
        return find_key(secret, keys=await self.ring.keys()) if self.ring is not None else None

    async def _by_header(self, scope: AsgiScope) -> ApiKey | None:
        """None where there is no such header."""
        values = _values(scope["headers"], b"authorization")
        if not values:
            return None
        scheme, _, token = values[0].partition(b" ") if len(values) == 1 else (b"", b"", b"")
        key = await self.find(token.strip()) if scheme.lower() == b"bearer" else None
        if key is None:
            raise _unauthorized()
        return key

    async def _by_session(self, scope: AsgiScope) -> ApiKey:
        token = session_token(scope["headers"])
        keys = await self.ring.keys() if self.ring is not None else ()
        key = self.sessions.key(token, keys=keys) if token else None
        if key is None:
            raise _unauthorized()
        # No page of another site can make a browser change anything.
        if scope["method"] not in LOOK:
            raise ForbiddenError("a browser's login may only look; send the key: Authorization: Bearer KEY")
        return key


def session_token(headers: Headers) -> str:
    """What the cookie holds; empty without one."""
    for value in _values(headers, b"cookie"):
        if token := cookie_parser(value.decode("latin-1")).get(COOKIE):
            return token
    return ""


def wants_login(scope: AsgiScope) -> bool:
    """Whether a request without a key is a person's who opened a page."""
    headers = scope["headers"]
    return (
        scope["method"] in LOOK
        and scope["path"] in PAGES
        and not _values(headers, b"authorization")
        and any(b"text/html" in value.lower() for value in _values(headers, b"accept"))
    )


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


def _unauthorized() -> UnauthorizedError:
    return UnauthorizedError("no known API key; send one header: Authorization: Bearer KEY")
