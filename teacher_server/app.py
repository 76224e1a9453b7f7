"""The HTTP application: routes, the guard before them, and errors as the one JSON shape."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from cache.writer import CacheWriter
from shared.datasets.base import ImageDataset
from shared.errors import TeachonceError
from shared.teacher import Teacher
from teacher_server.access import Access
from teacher_server.direct_routes import direct_routes
from teacher_server.guard import Guard
from teacher_server.key_ring import KeyRing
from teacher_server.ledger_metrics import LedgerCollector
from teacher_server.metrics import Metrics
from teacher_server.oip_routes import router as model_router
from teacher_server.oip_routes import server_router
from teacher_server.oip_schemas import VERSION
from teacher_server.openapi import reference
from teacher_server.replies import JsonReply, error_reply, plain_error
from teacher_server.request_record import RequestRecorder, note_error
from teacher_server.routes_answers import router as answers_router
from teacher_server.routes_fills import router as fills_router
from teacher_server.routes_login import router as login_router
from teacher_server.routes_pages import router as pages_router
from teacher_server.routes_state import router as state_router
from teacher_server.routes_status import router as status_router
from teacher_server.service import Service, service_of
from teacher_server.settings import ServerSettings
from teacher_server.status import Status

log = logging.getLogger(__name__)

ROUTERS = (
    answers_router,
    fills_router,
    state_router,
    status_router,
    login_router,
    pages_router,
    server_router,
    model_router,
)
VERBS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


def create_app(
    settings: ServerSettings,
    *,
    teacher: Teacher,
    datasets: Sequence[ImageDataset],
    writer: CacheWriter,
    outputs: Mapping[str, str] | None = None,
) -> FastAPI:
    """The application around an open cache; its lifespan drains, closing teacher and writer is the caller's.

    ``outputs`` maps what new caches keep to dtypes; None = as created, logits and features in float16 where new.
    ``app.state.service.answering.died`` is set when the process should end.
    """
    metrics = Metrics()
    service = Service(settings, teacher=teacher, datasets=datasets, writer=writer, outputs=outputs, observer=metrics)
    metrics.watch(LedgerCollector(service))
    path = settings.api_key_file
    ring = KeyRing(path, admit=service.admit_key, dropped=service.fills.revoke) if path else None
    access = Access(ring)
    status = Status(service, metrics=metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        looking = asyncio.create_task(ring.watch(), name="keys") if ring else None
        try:
            async with service.answering, service.fills, status.pulse:
                yield
        finally:
            if looking is not None:
                looking.cancel()

    app = FastAPI(
        title="teachonce teacher server",
        version=version("teachonce"),
        lifespan=lifespan,
        # The stock pages load scripts from another host.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        openapi_url=None,
    )
    app.state.service = service
    app.state.metrics = metrics
    app.state.access = access
    app.state.status = status
    app.state.watchers = set()
    # Set when the server begins to stop: whoever streams ends.
    app.state.stopping = asyncio.Event()
    for router in ROUTERS:
        app.router.routes.extend(direct_routes(router))
    for router in ROUTERS:
        app.include_router(router)
    app.add_api_route("/openapi.json", _reference, include_in_schema=False)
    status.fills = any(getattr(route, "path", None) == "/v1/fills" for route in app.routes)
    app.add_middleware(Guard, settings=settings, access=access)
    # The last one added is the first one asked: what the guard refuses is recorded too.
    app.add_middleware(RequestRecorder, metrics=metrics)
    app.exception_handler(TeachonceError)(_expected)
    app.exception_handler(HTTPException)(_no_route)
    app.exception_handler(ClientDisconnect)(_left)
    app.exception_handler(Exception)(_our_mistake)
    return app


async def _reference(request: Request) -> Response:
    service = service_of(request)
    served = [name.split("/") for name in service.datasets]
    names = {
        "model": [service.teacher_id],
        "version": [VERSION],
        "dataset": sorted({name for name, _ in served}),
        "split": sorted({split for _, split in served}),
    }
    return JsonReply(reference(request.app, names=names, with_keys=request.app.state.access.ring is not None))


async def _expected(request: Request, error: TeachonceError) -> Response:
    note_error(request.scope, code=error.code, message=str(error))
    return error_reply(error, request_id=_id(request))


async def _no_route(request: Request, error: HTTPException) -> Response:
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    message = f"{request.method} {request.scope['path'][:200]!r}: {error.detail}; GET /openapi.json lists the routes"
    note_error(request.scope, code=code, message=message)
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["allow"] = ", ".join(sorted(_verbs(request)))
    return plain_error(message, code=code, status=error.status_code, request_id=_id(request), headers=headers)


def _verbs(request: Request) -> set[str]:
    """Of all routes with this path: Starlette names those of the first one only."""
    return {
        verb
        for verb in VERBS
        if any(route.matches({**request.scope, "method": verb})[0] is Match.FULL for route in request.app.routes)
    }


async def _left(request: Request, error: ClientDisconnect) -> Response:
    note_error(request.scope, code="client_left", message="the client left")
    return plain_error("the client left", code="bad_request", status=400, request_id=_id(request))


async def _our_mistake(request: Request, error: Exception) -> Response:
    log.error("request_id=%s path=%r failed; its traceback follows", _id(request), request.scope["path"][:200])
    # Never the exception's own text: it may hold paths or addresses.
    message = f"an internal error; the server's log has it under request id {_id(request)}"
    # The guard lies within what answers here, so its header is given by hand.
    headers = {"x-request-id": _id(request)}
    return plain_error(message, code="internal", status=500, request_id=_id(request), headers=headers)


def _id(request: Request) -> str:
    state: dict[str, str] = request.scope.get("state", {})
    return state.get("request_id", "")
