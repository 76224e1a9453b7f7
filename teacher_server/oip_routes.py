"""Routes of the Open Inference Protocol v2: the teacher as a model, asked about rows or images. They only translate.

Health is beside the server's own, in `routes_state`. Shape key: B images or rows.
"""

import asyncio
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from numpy.typing import NDArray

from shared.errors import InputError, UnavailableError, UnknownNameError, UnsupportedTypeError
from shared.outputs import ALWAYS
from teacher_server.beside import run_beside
from teacher_server.oip_coding import WINDOW_BITS, deflate, inflate, wanted_coding
from teacher_server.oip_schemas import (
    EXTENSIONS,
    VERSION,
    InferAnswer,
    InferRequest,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
)
from teacher_server.oip_tensors import pack_answer, read_request, read_tensor
from teacher_server.openapi import ANSWERING, BINARY, documented, json_body
from teacher_server.paying import paying_run
from teacher_server.questions import Question, image_list
from teacher_server.reading import expect_type, read_query
from teacher_server.replies import JsonReply
from teacher_server.service import Service, service_of

OCTETS = "application/octet-stream"
HEADER_LENGTH = "inference-header-content-length"


async def _check_model(request: Request, model: str) -> None:
    """Raise `UnknownNameError` for a model that is not the teacher."""
    known = service_of(request).teacher.description.id
    if model != known:
        raise UnknownNameError(f"unknown model {model[:80]!r}; this server has {known!r}")


async def _check_version(version: str) -> None:
    """Raise `UnknownNameError` for a version that does not exist."""
    if version != VERSION:
        raise UnknownNameError(f"unknown version {version[:40]!r}; a teacher has version {VERSION!r} only")


server_router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
router = APIRouter(prefix="/v2/models/{model}", tags=["Open Inference Protocol"], dependencies=[Depends(_check_model)])


@server_router.get("/", **documented(ServerMetadata), include_in_schema=False)
@server_router.get("", **documented(ServerMetadata))
async def server_metadata() -> Response:
    """What this server is, and which extensions of the protocol it has."""
    return JsonReply({"name": "teachonce", "version": version("teachonce"), "extensions": EXTENSIONS})


@router.get("/versions/{version}", **documented(ModelMetadata, errors=(404,)), dependencies=[Depends(_check_version)])
@router.get("", **documented(ModelMetadata, errors=(404,)))
async def model_metadata(request: Request) -> Response:
    """The teacher's inputs, of which a request has exactly one, and its outputs."""
    service = service_of(request)
    inputs = [
        {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
        {"name": "row", "datatype": "INT64", "shape": [-1]},
    ]
    outputs = [
        {"name": name, "datatype": "FP32", "shape": [-1, *shape]} for name, shape in service.output_shapes().items()
    ]
    about = {"name": service.teacher.description.id, "versions": [VERSION], "platform": "teachonce"}
    return JsonReply({**about, "inputs": inputs, "outputs": outputs})


@router.get(
    "/versions/{version}/ready", **documented(ModelReady, errors=(404, 503)), dependencies=[Depends(_check_version)]
)
@router.get("/ready", **documented(ModelReady, errors=(404, 503)))
async def model_ready(request: Request) -> Response:
    """Whether the teacher can be asked now; 503 says why not."""
    service = service_of(request)
    trouble = service.answering.trouble
    if trouble is not None:
        raise UnavailableError(f"not ready: {trouble}")
    return JsonReply({"name": service.teacher.description.id, "ready": True})


INFER = documented(
    InferAnswer,
    errors=ANSWERING,
    body=json_body(InferRequest) | {OCTETS: BINARY},
    binary=OCTETS,
    headers={
        "Inference-Header-Content-Length": {"type": "integer", "minimum": 0},
        "Content-Encoding": {"enum": ["identity", *WINDOW_BITS]},
    },
)


@router.post("/versions/{version}/infer", **INFER, dependencies=[Depends(_check_version)])
@router.post("/infer", **INFER)
async def infer(request: Request) -> Response:
    """Answers about rows of a data set or about images; what nobody has paid for is computed, kept, and charged.

    Tensors are JSON, or follow it as little-endian bytes; bodies may be gzip or deflate, both ways.
    """
    service = service_of(request)
    asked, tail = await _read(request)
    # Decimals take milliseconds, in which others are answered.
    name, tensor = await asyncio.to_thread(read_tensor, asked, tail) if not tail else read_tensor(asked, tail)
    question = await _question(service, asked=asked, name=name, tensor=tensor)
    outputs = _outputs(asked, question=question)
    request.state.images = len(question)
    answers = await service.answering.answer(
        question,
        outputs=outputs,
        run=paying_run(request, asked=asked.parameters.run),
        owner=request.state.owner,
        timeout_s=_timeout_s(asked, service=service),
        hold=request.state.hold,
    )
    fields: dict[str, object] = {"model_name": service.teacher.description.id, "model_version": VERSION}
    fields |= {} if asked.id is None else {"id": asked.id}
    fields["parameters"] = {"teacher_calls": answers.teacher_calls}
    arrays = {output: answers.outputs[output] for output in outputs}
    size_bytes = sum(array.nbytes for array in arrays.values())
    body, head_bytes = await run_beside(
        size_bytes, pack_answer, arrays, fields=fields, binary=_binary(asked, outputs=outputs)
    )
    headers = {"x-teacher-calls": str(answers.teacher_calls)}
    if head_bytes is not None:
        headers[HEADER_LENGTH] = str(head_bytes)
    if coding := wanted_coding(request.headers.get("accept-encoding", "")):
        body = await asyncio.to_thread(deflate, body, coding=coding)
        headers["content-encoding"] = coding
    return Response(body, headers=headers, media_type="application/json" if head_bytes is None else OCTETS)


async def _read(request: Request) -> tuple[InferRequest, memoryview]:
    """The request's JSON, and the bytes behind it, inflated where they came compressed."""
    expect_type(request, allowed=(OCTETS, "application/json"), unnamed=OCTETS)
    read_query(request, known=(), instead="put dataset, view and run into the JSON's parameters")
    coding = ", ".join(request.headers.getlist("content-encoding")).strip().lower()
    if coding not in ("", "identity", *WINDOW_BITS):
        raise UnsupportedTypeError(f"Content-Encoding {coding[:40]!r} is not read; send gzip, deflate or plain bytes")
    body = await request.body()
    if coding in WINDOW_BITS:
        limit = service_of(request).settings.max_body_bytes
        body = await asyncio.to_thread(inflate, body, coding=coding, max_bytes=limit, hold=request.state.hold)
    return read_request(body, header_lengths=request.headers.getlist(HEADER_LENGTH))


async def _question(service: Service, *, asked: InferRequest, name: str, tensor: NDArray[Any]) -> Question:
    dataset, view = asked.parameters.dataset, asked.parameters.view
    if tensor.ndim:
        service.check_count(len(tensor))
    if name == "image":
        if dataset is not None or view != 0:
            raise InputError(
                "parameters.dataset and view belong to 'row'; an image is answered as it is: leave them out"
            )
        return await service.images(image_list(tensor, name="image"))
    if tensor.ndim != 1:
        raise InputError(f"input 'row' has shape {list(tensor.shape)}; expected [B]")
    if dataset is None:
        served = ", ".join(service.datasets) or "none, it takes images only"
        raise InputError(f"'row' needs the request parameter 'dataset'; this server has {served}")
    return service.rows(dataset, rows=tensor.tolist(), view=view)


def _outputs(asked: InferRequest, *, question: Question) -> list[str]:
    """Names of what to return; without any, logits and features as far as they are kept."""
    names = [output.name for output in asked.outputs]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"output {name[:80]!r} is asked for {names.count(name)} times; ask once")
    kept = question.cache.outputs
    return names or [name for name in ALWAYS if name in kept] or list(kept)


def _binary(asked: InferRequest, *, outputs: list[str]) -> set[str]:
    """Outputs to send as bytes: as each says itself, else as the request says."""
    own = {output.name: output.parameters.binary_data for output in asked.outputs}
    default = asked.parameters.binary_data_output
    return {name for name in outputs if (default if own.get(name) is None else own[name])}


def _timeout_s(asked: InferRequest, *, service: Service) -> float:
    limit_s = service.settings.deadline_s
    return min(asked.parameters.timeout / 1e6, limit_s) if asked.parameters.timeout else limit_s
