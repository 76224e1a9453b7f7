"""Routes that tell and set: health, the ledger, runs and their budgets, what is cached."""

import asyncio

from fastapi import APIRouter, Request, Response

from shared.errors import UnavailableError
from shared.schemas import BudgetRequest, LedgerCounts, RunCounts
from teacher_server.metrics import Metrics
from teacher_server.openapi import documented, json_body
from teacher_server.reading import read_json
from teacher_server.replies import JsonReply
from teacher_server.service import service_of

router = APIRouter(tags=["Health, ledger and cache"])


# The paths of the Open Inference Protocol beside those that probes are usually given.
@router.get("/v2/health/live", **documented(None))
@router.get("/healthz", **documented(None))
async def live() -> Response:
    """Whether the process answers at all."""
    return JsonReply({"live": True})


@router.get("/v2/health/ready", **documented(None, errors=(503,)))
@router.get("/readyz", **documented(None, errors=(503,)))
async def ready(request: Request) -> Response:
    """Whether questions can be answered now; 503 says why not."""
    answering = service_of(request).answering
    await answering.room.look()
    trouble = answering.trouble
    if trouble is not None:
        raise UnavailableError(f"not ready: {trouble}")
    return JsonReply({"ready": True})


@router.get("/v1/ledger", **documented(LedgerCounts))
async def ledger(request: Request) -> Response:
    """Attempts, calls, hits and joined requests, in all and per run."""
    return JsonReply(await service_of(request).ledger())


@router.get("/v1/runs/{name}", **documented(RunCounts, errors=(404,)))
async def run_counts(request: Request, name: str) -> Response:
    """One run: its budget and what it used."""
    return JsonReply(await service_of(request).run_counts(name))


@router.put(
    "/v1/runs/{name}", **documented(RunCounts, errors=(404, 408, 409, 413, 415, 507), body=json_body(BudgetRequest))
)
async def set_budget(request: Request, name: str) -> Response:
    """Make a run or change its budget; null removes the limit."""
    asked = await read_json(request, model=BudgetRequest)
    service = service_of(request)
    await service.set_budget(name, budget=asked.budget)
    return JsonReply(await service.run_counts(name))


@router.get("/v1/cache", **documented(None))
async def inventory(request: Request) -> Response:
    """What is cached: teachers, data sets, views, coverage; and what can be asked."""
    return JsonReply(await service_of(request).inventory())


@router.get("/metrics", **documented(None, text=True))
async def metrics(request: Request) -> Response:
    """Counters, gauges and histograms for Prometheus; what the ledger counts is right after a restart too."""
    accept = request.headers.get("accept", "")
    # Off the loop: the ledger may be in the middle of a commit.
    page, content_type = await asyncio.to_thread(_metrics(request).render, accept)
    return Response(page, headers={"content-type": content_type})


def _metrics(request: Request) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics
