"""What is written down about every request: one line of the log, and its place in the metrics. Pure ASGI, outermost."""

import logging
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from teacher_server.metrics import Metrics

log = logging.getLogger(__name__)

COVERAGE = "/v1/cache/{dataset}/{split}/coverage"
QUIET_ROUTES = frozenset(
    {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/metrics"}
    | {"/v1/status", "/v1/status/events", COVERAGE, "/v1/fills", "/", "/assets/{name}", "/docs"}
)
"""Asked every few seconds by machines and pages: told at level debug while all is well."""
MOST_CHARACTERS = 300
"""Of an error's message in the log."""
MOST_PATH_CHARACTERS = 100
"""Of a path that no route was found for; whoever writes the line escapes it."""


class RequestRecorder:
    """ASGI middleware; routes say in ``scope["state"]`` what only they know: ``run``, ``images``."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; write it down when its answer has been sent, or could not be."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        reply: Message = {}

        async def send_seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                reply.update(message)
            await send(message)

        began_s = perf_counter()
        try:
            await self.app(scope, receive, send_seen)
        finally:
            self._record(scope, reply=reply, seconds=perf_counter() - began_s)

    def _record(self, scope: Scope, *, reply: Message, seconds: float) -> None:
        state = scope.get("state", {})
        # Without a reply so far, an exception is on its way to whoever answers it with 500.
        status = reply.get("status", 500)
        code, message = state.get("error", (None, None) if reply else ("internal", None))
        route = getattr(scope.get("route"), "path", None)
        self.metrics.answered(route=route, method=scope["method"], status=status, seconds=seconds, error=code)
        if owner := state.get("owner"):
            self.metrics.asked_by(owner)
        level = _level(status, route=route)
        if not log.isEnabledFor(level):
            return
        facts = {
            "request_id": state.get("request_id"),
            "method": scope["method"],
            "route": route,
            "path": scope["path"][:MOST_PATH_CHARACTERS] if route is None else None,
            "status": status,
            "ms": round(seconds * 1000, 3),
            "images": state.get("images"),
            "teacher_calls": _teacher_calls(reply),
            "run": state.get("run"),
            "owner": state.get("owner"),
            "code": code,
            "error": message,
        }
        fields = {name: fact for name, fact in facts.items() if fact is not None}
        log.log(level, "request", extra={"fields": fields})


def note_error(scope: Scope, *, code: str, message: str) -> None:
    """Tell the record of a request which error answers it."""
    scope.setdefault("state", {})["error"] = (code, message[:MOST_CHARACTERS])


def _level(status: int, *, route: str | None) -> int:
    if status >= 500:
        return logging.WARNING
    return logging.DEBUG if status == 200 and route in QUIET_ROUTES else logging.INFO


def _teacher_calls(reply: Message) -> int | None:
    """What every reply with answers carries."""
    for name, value in reply.get("headers", ()):
        if name == b"x-teacher-calls":
            return int(value)
    return None
