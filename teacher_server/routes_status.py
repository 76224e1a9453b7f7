"""Routes behind the dashboard: the status, once or every second, and which rows of a data set are cached."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from cache.coverage import count_blocks
from cache.handle import CacheHandle
from shared.errors import InputError, UnavailableError
from shared.status_schemas import CoverageAnswer, StatusAnswer
from shared.views import check_view
from teacher_server.event_stream import EventStream
from teacher_server.openapi import COUNT, documented
from teacher_server.reading import read_integer, read_query
from teacher_server.replies import JsonReply
from teacher_server.service import service_of
from teacher_server.status import Status

router = APIRouter(prefix="/v1", tags=["Status"])

MOST_WATCHERS = 64
INTERVAL_S = 1.0
HEARTBEAT_S = 10.0
"""How long a busy ledger may keep a watcher waiting in silence."""
MOST_VIEWS = 256
"""Of one picture."""
MOST_BLOCKS = 1024


@router.get("/status", **documented(StatusAnswer))
async def status(request: Request) -> Response:
    """What the dashboard shows: calls, budgets, what was saved, load, history of three minutes, errors."""
    return Response(await _status(request).current(), media_type="application/json")


@router.get(
    "/status/events",
    **documented(None, errors=(503,), events=True),
    response_class=StreamingResponse,
)
async def watch(request: Request) -> Response:
    """The same every second, as server-sent events, until the server stops or the client leaves."""
    state = request.app.state
    if len(state.watchers) >= MOST_WATCHERS:
        raise UnavailableError(f"{MOST_WATCHERS} clients are watching already; ask GET /v1/status now and then")
    watcher = object()
    state.watchers.add(watcher)
    events = _events(state.status, stopping=state.stopping)
    return EventStream(events, request=request, left=partial(state.watchers.discard, watcher))


async def _events(status: Status, *, stopping: asyncio.Event) -> AsyncIterator[bytes]:
    yield b"retry: 2000\n\n"
    while not stopping.is_set():
        try:
            async with asyncio.timeout(HEARTBEAT_S):
                page = await status.current()
            yield b"data: " + page + b"\n\n"
        except TimeoutError:
            yield b": the ledger is busy\n\n"
        with suppress(TimeoutError):
            async with asyncio.timeout(INTERVAL_S):
                await stopping.wait()
    yield b"event: stopping\ndata: {}\n\n"


VIEW = {"anyOf": [{"const": "all"}, COUNT]}
BLOCKS = {"type": "integer", "minimum": 1, "maximum": MOST_BLOCKS}


@router.get(
    "/cache/{dataset}/{split}/coverage",
    **documented(CoverageAnswer, errors=(404,), query={"view": VIEW, "blocks": BLOCKS}),
)
async def coverage(request: Request, dataset: str, split: str) -> Response:
    """Which part of every block of rows is cached, under one view or all of them; a picture, row by row."""
    query = read_query(request, known=("view", "blocks"))
    view = query.get("view", "all")
    one = None if view == "all" else read_integer(view, what="view")
    blocks = read_integer(query.get("blocks", "128"), what="blocks")
    if not 1 <= blocks <= MOST_BLOCKS:
        raise InputError(f"{blocks} blocks; use 1 to {MOST_BLOCKS}")
    service = service_of(request)
    cache = service.cache_of(f"{dataset}/{split}")
    check_view(one or 0, policy=cache.dataset.view_policy)
    return JsonReply(await asyncio.to_thread(_coverage, cache, view=one, blocks=blocks))


def _coverage(cache: CacheHandle, *, view: int | None, blocks: int) -> dict[str, object]:
    found = [view] if view is not None else sorted({0, *cache.views()})
    counted = count_blocks(cache.present, rows=cache.dataset.rows, views=found[:MOST_VIEWS], blocks=blocks)
    return {
        "dataset": cache.dataset.name,
        "rows": cache.dataset.rows,
        "blocks": len(counted.sizes),
        "views": counted.views,
        "more_views": len(found[MOST_VIEWS:]),
        "cached": counted.counts.sum(axis=1),
        "present": np.round(counted.counts / counted.sizes, 4),
    }


def _status(request: Request) -> Status:
    board: Status = request.app.state.status
    return board
