"""What the reference page says about a route: its body, its answer, and every status that can occur."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from shared.identity import NAME_PATTERN
from shared.schemas import INT64_MAX, ErrorBody
from teacher_server.permissions import is_open

BINARY = {"schema": {"type": "string", "format": "binary"}}
EVENT = {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
"""One of a stream."""
REFERENCE = "#/components/schemas/{model}"
ALWAYS = (400, 401, 403, 408, 413, 415, 431, 500, 503)
"""Any request may carry a wrong host, no key or one for something else, headers that are too long or slow, or a body
that is not read; it may meet our own mistake, or come when too many others are connected."""
ANSWERING = (402, 404, 504, 507)
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
    query: Mapping[str, Mapping[str, Any]] | None = None,
    headers: Mapping[str, Mapping[str, Any]] | None = None,
    answer_types: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Keyword arguments of a route decorator.

    ``body`` maps content types to schemas, ``binary`` is the content type of an answer that is not JSON, ``query`` maps
    parameters to schemas, ``headers`` does so for headers. ``status`` is that of a success, ``events`` says that it is
    a stream, ``answer_types`` maps content types of an answer without a model to schemas.
    """
    success: dict[str, Any] = {"description": HTTPStatus(status).phrase} if answer is None else {"model": answer}
    if text:
        kinds = ("text/plain", "application/openmetrics-text")
        success["content"] = {kind: {"schema": {"type": "string"}} for kind in kinds}
    if events:
        success["content"] = {"text/event-stream": {"schema": EVENT}}
    if binary is not None:
        success["content"] = {binary: BINARY}
    if answer_types is not None:
        success["content"] = dict(answer_types)
    extra: dict[str, Any] = {}
    if body is not None:
        extra["requestBody"] = {"required": True, "content": dict(body)}
    if query or headers:
        extra["parameters"] = [
            # A list is one value with commas.
            {"name": name, "in": "query", "schema": dict(schema)} | ({"explode": False} if "items" in schema else {})
            for name, schema in (query or {}).items()
        ] + [{"name": name, "in": "header", "schema": dict(schema)} for name, schema in (headers or {}).items()]
    return {
        "response_model": None,
        "status_code": status,
        "responses": {status: success} | {status: {"model": ErrorBody} for status in sorted({*ALWAYS, *errors})},
        "openapi_extra": extra,
    }


COUNT = {"type": "integer", "minimum": 0, "maximum": INT64_MAX // 10}
"""A row or a view in a path or query."""
RUN = {"type": "string", "maxLength": 160}
OUTPUTS = {"type": "array", "minItems": 1, "items": {"type": "string", "maxLength": 160}}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """A body of JSON that follows ``model``."""
    return {"application/json": {"schema": model.model_json_schema(ref_template=REFERENCE)}}


PATH_SCHEMAS: Mapping[str, Mapping[str, Any]] = {
    "row": COUNT,
    "name": {"maxLength": 64, "pattern": NAME_PATTERN.pattern},
}
"""By parameter; routes read all of them as text, to answer with their own errors."""


def reference(app: FastAPI, *, names: Mapping[str, Sequence[str]], with_keys: bool) -> dict[str, Any]:
    """The OpenAPI document of an application, without the 422 that FastAPI adds and no route ever sends.

    ``names``: values of path parameters on this server; ``with_keys``: all but the open paths want an API key.
    """
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    parameter["schema"] |= PATH_SCHEMAS.get(parameter["name"], {})
                    if known := names.get(parameter["name"]):
                        parameter["schema"]["enum"] = list(known)
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
