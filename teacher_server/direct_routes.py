"""Routes called directly: what FastAPI does for parameters, models and dependencies of a request, ours do themselves.

That machinery takes a third of a cached answer's time. The routes stay FastAPI's in its reference page.
"""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Receive, Scope, Send

from shared.errors import InputError
from teacher_server.permissions import LOOK

Step = tuple[Callable[..., Any], tuple[str, ...]]
"""A coroutine function, and the names it takes: ``request``, and parameters of the path."""


def direct_routes(router: APIRouter) -> Iterator[Route]:
    """A plain route for every route of ``router``, to be asked before it."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            yield DirectRoute(route)


class DirectRoute(Route):
    """Calls dependencies and endpoint of a FastAPI route with the request and the path's parameters, as strings."""

    def __init__(self, route: APIRoute) -> None:
        self._checks = [_step(depends.dependency) for depends in route.dependencies if depends.dependency is not None]
        self._call, self._names = _step(route.endpoint)
        super().__init__(route.path, self._answer, name=route.name)
        # Starlette would answer HEAD wherever GET is answered; the reference says otherwise.
        self.methods = route.methods
        # Set here, Starlette wraps nothing around it: errors reach the application's own handlers.
        self.app = self._answer

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See `Route`; the record of the request is told the route also where only the verb is wrong."""
        match, found = super().matches(scope)
        return match, {**found, "route": self} if found else found

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        _refuse_body(scope)
        request = Request(scope, receive, send)
        given = {"request": request, **scope["path_params"]}
        for call, names in self._checks:
            await call(**{name: given[name] for name in names})
        answer: Response = await self._call(**{name: given[name] for name in self._names})
        await answer(scope, receive, send)


def _refuse_body(scope: Scope) -> None:
    """Raise `InputError` for a body with GET or HEAD: a stream of events would hold it, or wait for it."""
    if scope["method"] in LOOK and any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
        for name, value in scope["headers"]
    ):
        raise InputError(f"{scope['method']} takes no body; send it without one, and what to ask in path and query")


def _step(call: Callable[..., Any]) -> Step:
    return call, tuple(inspect.signature(call).parameters)
