"""Routes of long fills: submit, list, watch, cancel. They only translate."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

from fastapi import APIRouter, Request, Response
from starlette.requests import ClientDisconnect

from cache.payer import Payer
from shared.fill_schemas import MAX_FILL_BYTES, FillList, FillRequest, FillStatus
from teacher_server.event_stream import EventStream
from teacher_server.fill_job import read_job
from teacher_server.keys import ApiKey, Scope
from teacher_server.openapi import documented, json_body
from teacher_server.paying import paying_run
from teacher_server.reading import read_json
from teacher_server.replies import JsonReply
from teacher_server.running_fill import RunningFill
from teacher_server.service import service_of

router = APIRouter(prefix="/v1/fills", tags=["Fills"])


@router.post(
    "",
    **documented(FillStatus, status=202, errors=(402, 404, 408, 409, 413, 415, 503), body=json_body(FillRequest)),
)
async def start_fill(request: Request) -> Response:
    """Begin to answer about all rows, a sample or some rows under some views; watch it at its Location.

    402 before anything is computed where the budget does not cover all that is missing. Submitted again, it costs
    nothing for what is there. It ends with its server process; what was done is kept.
    """
    service = service_of(request)
    asked = await read_json(request, model=FillRequest, max_bytes=MAX_FILL_BYTES)
    payer = Payer(request.state.owner, paying_run(request, asked=asked.run))
    named = service.rows(asked.dataset, rows=(), view=0)
    job = await asyncio.to_thread(read_job, asked, dataset=named.dataset, cache=named.cache, payer=payer)
    fill = await service.fills.start(job, fill_id=asked.id, check_wanted=partial(_check_wanted, request))
    request.state.images = job.total
    return JsonReply(fill.status().model_dump(), status_code=202, headers={"location": f"/v1/fills/{fill.id}"})


@router.get("", **documented(FillList))
async def list_fills(request: Request) -> Response:
    """The last fills of this server process, the newest first."""
    fills = service_of(request).fills.recent(owner=_owner(request))
    return JsonReply({"fills": [fill.status().model_dump() for fill in fills]})


@router.get("/{fill_id}", **documented(FillStatus, errors=(404,)))
async def fill_status(request: Request, fill_id: str) -> Response:
    """How far a fill has come."""
    return JsonReply(_fill(request, fill_id).status().model_dump())


@router.get("/{fill_id}/events", **documented(None, errors=(404, 408, 413, 503), events=True))
async def fill_events(request: Request, fill_id: str) -> Response:
    """The same as a stream of server-sent events: `progress` at most twice a second, then one `end`.

    Each carries the whole status. 64 streams of one key and 256 in all may watch; one that leaves changes nothing.
    """
    fill = _fill(request, fill_id)
    # Read to its end: once the stream has begun, a body that fails has no answer any more.
    await request.body()
    watchers, owner = service_of(request).fills.watchers, request.state.owner
    watchers.enter(owner)
    return EventStream(_events(fill), request=request, left=partial(watchers.leave, owner))


@router.delete("/{fill_id}", **documented(FillStatus, errors=(404, 504)))
async def cancel_fill(request: Request, fill_id: str) -> Response:
    """Ask nothing more; answers when what is in flight is kept. A fill that has ended stays as it is."""
    fill = _fill(request, fill_id)
    fill.stop("cancelled")
    await fill.wait(timeout_s=service_of(request).settings.deadline_s)
    return JsonReply(fill.status().model_dump())


async def _events(fill: RunningFill) -> AsyncIterator[bytes]:
    async for status in fill.watch():
        if status is None:
            yield b": still here\n\n"
        else:
            yield f"event: {'end' if status.ended else 'progress'}\ndata: {status.model_dump_json()}\n\n".encode()


async def _check_wanted(request: Request) -> None:
    """Raise where the client has left, which would not know what it pays for, or its key has ended meanwhile."""
    if await request.is_disconnected():
        raise ClientDisconnect
    await request.app.state.access.caller(request.scope)


def _fill(request: Request, fill_id: str) -> RunningFill:
    return service_of(request).fills.get(fill_id, owner=_owner(request))


def _owner(request: Request) -> str | None:
    """Whose fills the request may see; None: everybody's."""
    key: ApiKey = request.state.key
    return None if Scope.ADMIN in key.scopes else key.name
