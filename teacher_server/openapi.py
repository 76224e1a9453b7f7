"""What the reference page says about a route: its body, its answer, and every status that can occur."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from shared.schemas import ErrorBody
from teacher_server.permissions import is_open

BINARY = {"schema": {"type": "string", "format": "binary"}}
REFERENCE = "#/components/schemas/{model}"
ALWAYS = (400, 401, 403, 500)
"""Any request may carry a wrong host, no key or one for something else, or meet our own mistake."""
ANSWERING = (402, 404, 408, 413, 415, 503, 504, 507)
"""What a question about uncached images may meet besides."""


def documented(
    answer: type[BaseModel] | None,
    *,
    errors: Sequence[int] = (),
    body: Mapping[str, Any] | None = None,
    binary: str | None = None,
    text: bool = False,
    events: bool = False,
    status: int = 200,
    query: Sequence[str] = (),
    headers: Sequence[str] = (),
) -> dict[str, Any]:
    """Keyword arguments of a route decorator.

    ``body`` maps content types to schemas, ``binary`` is the content type of an answer that is not JSON, ``query`` and
    ``headers`` name parameters. ``status`` is that of a success, ``events`` says that it is a stream of them.
    """
    success: dict[str, Any] = {"description": HTTPStatus(status).phrase} if answer is None else {"model": answer}
    if text:
        success["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if events:
        success["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    if binary is not None:
        success["content"] = {binary: BINARY}
    extra: dict[str, Any] = {}
    if body is not None:
        extra["requestBody"] = {"required": True, "content": dict(body)}
    if query or headers:
        named = [(name, "query") for name in query] + [(name, "header") for name in headers]
        extra["parameters"] = [{"name": name, "in": place, "schema": {"type": "string"}} for name, place in named]
    return {
        "response_model": None,
        "status_code": status,
        "responses": {status: success} | {status: {"model": ErrorBody} for status in sorted({*ALWAYS, *errors})},
        "openapi_extra": extra,
    }


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """A body of JSON that follows ``model``."""
    return {"application/json": {"schema": model.model_json_schema(ref_template=REFERENCE)}}


def reference(app: FastAPI, *, with_keys: bool = False) -> dict[str, Any]:
    """The OpenAPI document of an application, without the 422 that FastAPI adds and no route ever sends.

    ``with_keys``: all but the open paths want an API key.
    """
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for content in operation.get("requestBody", {}).get("content", {}).values():
                # What a body's model is made of is looked up there.
                document["components"]["schemas"] |= content["schema"].get("$defs", {})
    if with_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                operation["security"] = [] if is_open(path) else [{"key": []}]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    return document
