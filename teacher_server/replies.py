"""What goes back: answers as JSON or safetensors, errors as the one JSON shape every route uses.

Shape key: B images, C classes, D feature width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from orjson import dumps
from starlette.responses import Response

from shared.errors import BudgetExhaustedError, TeachonceError, UnauthorizedError
from shared.wire import CONTENT_TYPE, pack_tensors
from teacher_server.json_pieces import OPTIONS, write_object


class JsonReply(Response):
    """JSON by orjson: NaN never passes, NumPy arrays need no conversion."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode ``content``; float32 arrays become the shortest decimals that read back as the same float32."""
        return dumps(content, option=OPTIONS)


def answer_reply(
    outputs: Mapping[str, NDArray[Any]], *, fields: Mapping[str, object], teacher_calls: int, accept: str
) -> Response:
    """Outputs [B, ...] with what belongs to them, in the form that the Accept header asks for."""
    headers = {"x-teacher-calls": str(teacher_calls)}
    fields = {**fields, "teacher_calls": teacher_calls}
    if CONTENT_TYPE in accept:
        body = pack_tensors(outputs, metadata=fields)
        return Response(body, media_type=CONTENT_TYPE, headers=headers)
    numbers = {name: np.ascontiguousarray(array, dtype=np.float32) for name, array in outputs.items()}
    text = bytearray()
    write_object(text, fields, numbers)
    return Response(memoryview(text), media_type="application/json", headers=headers)


def error_reply(error: TeachonceError, *, request_id: str) -> Response:
    """The JSON of an error, with its status and the headers that belong to it."""
    return plain_error(
        str(error),
        code=error.code,
        status=error.status,
        request_id=request_id,
        extra={"needed": error.needed, "remaining": error.remaining} if isinstance(error, BudgetExhaustedError) else {},
        headers=_headers(error),
    )


def plain_error(
    message: str,
    *,
    code: str,
    status: int,
    request_id: str,
    extra: Mapping[str, int] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An error that has no class in the tree: no such route, wrong verb, our own mistake."""
    body = {"error": message, "code": code, "request_id": request_id, **(extra or {})}
    return JsonReply(body, status_code=status, headers=dict(headers or {}))


def _headers(error: TeachonceError) -> dict[str, str]:
    headers = {}
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status in (408, 413):
        # The rest of the body is still on its way and will not be read.
        headers["connection"] = "close"
    return headers
