"""What routes read from a request: its type, its JSON, its query; anything that would be ignored is refused."""

from collections.abc import Sequence

from fastapi import Request

from shared.errors import InputError, RowRangeError, TooLargeError, UnsupportedTypeError
from shared.schemas import INT64_MAX, Model, parse_body
from teacher_server.beside import run_beside

MAX_JSON_BYTES = 256 * 2**10
"""Three times what the most rows of one request take. Reading JSON stops everyone else, so it must be over soon."""


def expect_type(request: Request, *, allowed: Sequence[str], unnamed: str | None = None) -> str:
    """The Content-Type of a request, ``unnamed`` where it has none; raises `UnsupportedTypeError`."""
    # A page of another site can send a body without a type unasked, but never without an Origin.
    if unnamed is not None and not {"content-type", "origin"} & set(request.headers.keys()):
        return unnamed
    # Browsers send other types across sites unasked; these make them ask first, and are refused.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in allowed:
        raise UnsupportedTypeError(f"Content-Type {kind[:80]!r} is not read here; send {', '.join(allowed)}")
    return kind


async def read_json(request: Request, *, model: type[Model], max_bytes: int = MAX_JSON_BYTES) -> Model:
    """The model in a JSON body; raises `UnsupportedTypeError`, `TooLargeError` and `InputError`."""
    expect_type(request, allowed=("application/json",))
    fields = ", ".join(model.model_fields)
    read_query(request, known=(), instead=f"put {fields} into the JSON body")
    body = await request.body()
    if len(body) > max_bytes:
        raise TooLargeError(f"a JSON body of {len(body)} bytes; at most {max_bytes}: send several requests")
    return await run_beside(len(body), parse_body, body, model=model)


def read_query(request: Request, *, known: Sequence[str], instead: str = "") -> dict[str, str]:
    """Query parameters by name; raises `InputError` for one that would be ignored: unknown, or given twice."""
    found = request.query_params.multi_items()
    names = [name for name, _ in found]
    for name in names:
        if name not in known:
            advice = instead or f"known: {', '.join(known)}"
            raise InputError(f"query parameter {name[:80]!r} is not read here; {advice}")
        if names.count(name) > 1:
            raise InputError(f"query parameter {name!r} is given {names.count(name)} times; give it once")
    return dict(found)


def read_integer(text: str, *, what: str) -> int:
    """A row or view in a path or query; raises `RowRangeError`."""
    if not (text.isascii() and text.isdigit() and len(text) < len(str(INT64_MAX))):
        raise RowRangeError(f"{what} {text[:40]!r} is not a number; use 0, 1, 2, ...")
    return int(text)
