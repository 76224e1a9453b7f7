"""Routes that answer: rows of data sets, and images that the caller brings. They only translate.

Shape key: B images, H height, W width.
"""

from collections.abc import Mapping
from typing import TypedDict

from fastapi import APIRouter, Request, Response

from shared.errors import InputError, MissingRowsError
from shared.schemas import ImagesAnswer, LogitsAnswer, LogitsRequest
from shared.wire import CONTENT_TYPE, unpack_tensors
from teacher_server.beside import run_beside
from teacher_server.openapi import ANSWERING, BINARY, COUNT, OUTPUTS, RUN, documented, json_body
from teacher_server.paying import paying_run
from teacher_server.questions import Pixels, Question, image_list
from teacher_server.reading import expect_type, read_integer, read_json, read_query
from teacher_server.replies import answer_reply
from teacher_server.service import service_of

router = APIRouter(prefix="/v1", tags=["Answers"])

IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp", "application/octet-stream")


class OutputsAndRun(TypedDict):
    """What to return, and who pays."""

    outputs: list[str]
    run: str | None


@router.post(
    "/logits", **documented(LogitsAnswer, errors=ANSWERING, body=json_body(LogitsRequest), binary=CONTENT_TYPE)
)
async def ask_rows(request: Request) -> Response:
    """Answers for rows of a data set; rows that nobody has paid for are computed, kept, and charged to the run."""
    service = service_of(request)
    asked = await read_json(request, model=LogitsRequest)
    service.check_count(len(asked.rows))
    question = service.rows(asked.dataset, rows=asked.rows, view=asked.view)
    fields = {"dataset": asked.dataset, "rows": asked.rows, "view": asked.view}
    return await _answer(request, question=question, outputs=asked.outputs, run=asked.run, fields=fields)


@router.get(
    "/logits/{dataset}/{split}/{row}",
    **documented(
        LogitsAnswer, errors=(404, 503), binary=CONTENT_TYPE, query={"view": COUNT, "outputs": OUTPUTS, "run": RUN}
    ),
)
async def read_row(request: Request, dataset: str, split: str, row: str) -> Response:
    """One cached row; never calls the teacher, so a link costs nothing."""
    query = read_query(request, known=("view", "outputs", "run"))
    view = read_integer(query.get("view", "0"), what="view")
    name = f"{dataset}/{split}"
    question = service_of(request).rows(name, rows=[read_integer(row, what="row")], view=view)
    if None in question.cached():
        remedy = f'POST /v1/logits {{"dataset": "{name}", "rows": [{question.rows[0]}]}} asks the teacher'
        raise MissingRowsError(
            f"{question.name(0)} is not cached; {remedy}", rows=[question.rows[0]], view=question.view
        )
    fields = {"dataset": name, "rows": list(question.rows), "view": view}
    return await _answer(request, question=question, **_outputs_and_run(query), fields=fields)


@router.post(
    "/images",
    **documented(
        ImagesAnswer,
        errors=ANSWERING,
        body=dict.fromkeys((*IMAGE_TYPES, CONTENT_TYPE), BINARY),
        binary=CONTENT_TYPE,
        query={"outputs": OUTPUTS, "run": RUN},
    ),
)
async def ask_images(request: Request) -> Response:
    """Answers for one PNG, JPEG or WebP file, or for ``images`` uint8 [B, H, W, 3] in a safetensors body.

    A body without a Content-Type is read as an image file.
    """
    service = service_of(request)
    kind = expect_type(request, allowed=(*IMAGE_TYPES, CONTENT_TYPE), unnamed=IMAGE_TYPES[-1])
    query = read_query(request, known=("outputs", "run"))
    body = await request.body()
    if kind == CONTENT_TYPE:
        # The library copies every tensor.
        request.state.hold.add(len(body))
        images = await run_beside(len(body), _unpack_images, body)
    else:
        images = [await service.decoders.decode(body, hold=request.state.hold)]
    service.check_count(len(images))
    question = await service.images(images)
    keys = [key.hex() for key in question.keys(range(len(images)))]
    fields = {"dataset": question.cache.dataset.name, "rows": list(range(len(images))), "view": 0, "keys": keys}
    return await _answer(request, question=question, **_outputs_and_run(query), fields=fields)


async def _answer(
    request: Request, *, question: Question, outputs: list[str], run: str | None, fields: Mapping[str, object]
) -> Response:
    service = service_of(request)
    request.state.images = len(question)
    answers = await service.answering.answer(
        question,
        outputs=outputs,
        run=paying_run(request, asked=run),
        owner=request.state.owner,
        timeout_s=service.settings.deadline_s,
        hold=request.state.hold,
    )
    return await run_beside(
        sum(array.nbytes for array in answers.outputs.values()),
        answer_reply,
        answers.outputs,
        fields={"teacher": service.teacher.description.id, **fields, "cached": answers.cached.tolist()},
        teacher_calls=answers.teacher_calls,
        accept=request.headers.get("accept", ""),
    )


def _outputs_and_run(query: Mapping[str, str]) -> OutputsAndRun:
    """What a request whose body is not JSON says about them."""
    return {"outputs": query.get("outputs", "logits").split(","), "run": query.get("run")}


def _unpack_images(body: bytes) -> list[Pixels]:
    """The images of a safetensors body; raises `InputError` for anything but one tensor of pixels."""
    tensors, _ = unpack_tensors(body)
    if set(tensors) != {"images"}:
        raise InputError(f"expected one tensor named 'images', got {', '.join(sorted(tensors))[:160] or 'none'}")
    return image_list(tensors["images"], name="images")
