"""What the HTTP client sends and how it reads what comes back, the same for sync and async.

Shape key: B rows or images asked about.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from operator import index
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

from shared.errors import (
    BudgetExhaustedError,
    InputError,
    MissingRowsError,
    TeachonceError,
)
from shared.wire import CONTENT_TYPE, unpack_tensors

ROWS_PER_REQUEST = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What the teacher said, in the order asked."""

    teacher: str
    """Id of the teacher."""
    outputs: dict[str, NDArray[Any]]
    """Arrays [B, ...] in the dtype they are kept in, by output name."""
    cached: NDArray[np.bool_]
    """Whether the answer was there before, bool [B]."""
    teacher_calls: int
    """Calls that asking caused."""
    keys: tuple[str, ...] = ()
    """Keys of uploaded images, hex; empty for rows."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.outputs[name]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One HTTP request, as both clients send it."""

    method: str
    path: str
    params: Mapping[str, str] | None = None
    content: bytes | None = None
    kind: str = ""
    """Content type of the body."""

    def headers(self) -> dict[str, str]:
        """Headers besides those of every request."""
        return {"content-type": self.kind} if self.kind else {}


def common_headers(api_key: str | None) -> dict[str, str]:
    """Headers of every request; raises `InputError` for a key that no header can carry."""
    headers = {"accept": f"{CONTENT_TYPE}, application/json"}
    if api_key is None:
        return headers
    # Files and variables end in a line break now and then.
    key = api_key.strip()
    if not (key and key.isascii() and key.isprintable()):
        raise InputError("the API key must be printable ASCII; copy it again as teacher-server key make printed it")
    return {**headers, "authorization": f"Bearer {key}"}


def run_path(name: str) -> str:
    """Path of a run."""
    return f"/v1/runs/{quote(name, safe='')}"


def budget_call(name: str, *, budget: int | None) -> Call:
    """Make a run or change its budget."""
    body = json.dumps({"budget": budget}).encode()
    return Call(method="PUT", path=run_path(name), content=body, kind="application/json")


def logits_calls(
    dataset: str,
    *,
    rows: Sequence[int] | NDArray[np.int64],
    view: int,
    outputs: Sequence[str],
    run: str | None,
) -> Iterator[Call]:
    """One or more requests for rows."""
    wanted = row_numbers(rows)
    for start in range(0, len(wanted), ROWS_PER_REQUEST) or (0,):
        part = wanted[start : start + ROWS_PER_REQUEST]
        body = {"dataset": dataset, "rows": part, "view": view, "outputs": list(outputs)}
        text = json.dumps(body if run is None else {**body, "run": run})
        yield Call(method="POST", path="/v1/logits", content=text.encode(), kind="application/json")


def row_numbers(rows: Sequence[int] | NDArray[np.int64]) -> list[int]:
    """Rows as whole numbers; raises `InputError` rather than round."""
    try:
        # Not int(): it would turn row 1.7 into row 1.
        return [index(row) for row in rows]
    except TypeError as error:
        raise InputError(f"rows must be whole numbers: {error}") from error


def answers_of(response: httpx.Response) -> Answers:
    """The answers in a response."""
    if response.headers.get("content-type", "") != CONTENT_TYPE:
        raise stranger(response)
    outputs, metadata = unpack_tensors(response.content)
    return Answers(
        teacher=metadata["teacher"],
        outputs=outputs,
        cached=np.array(json.loads(metadata["cached"]), dtype=np.bool_),
        teacher_calls=int(metadata["teacher_calls"]),
        keys=tuple(json.loads(metadata.get("keys", "[]"))),
    )


def join_answers(parts: list[Answers]) -> Answers:
    """Answers of several requests as one."""
    if len(parts) == 1:
        return parts[0]
    return Answers(
        teacher=parts[0].teacher,
        outputs={name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs},
        cached=np.concatenate([part.cached for part in parts]),
        teacher_calls=sum(part.teacher_calls for part in parts),
        keys=tuple(key for part in parts for key in part.keys),
    )


def json_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in a response."""
    try:
        value: dict[str, Any] = response.json()
    except ValueError:
        raise stranger(response) from None
    return value


def check_url(base_url: str) -> str:
    """The address of a server; raises `InputError` for what is none."""
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InputError(f"{base_url[:200]!r} is no address ({error}); write http://HOST:PORT") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{base_url[:200]!r} is no address of a server; write http://HOST:PORT")
    return base_url


def is_loopback(base_url: str) -> bool:
    """Whether the address is on this machine, where no proxy stands between."""
    host = httpx.URL(base_url).host
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def checked(response: httpx.Response) -> httpx.Response:
    """The response if it is a success; else raise the error that the server had."""
    if response.is_success:
        return response
    try:
        body = response.json()
        message, code = str(body["error"]), str(body["code"])
    except (ValueError, KeyError, TypeError):
        raise stranger(response) from None
    raise error_of(message, code=code, body=body)


def stranger(response: httpx.Response) -> TeachonceError:
    """The error for a reply that no teacher server gives."""
    return TeachonceError(
        f"HTTP {response.status_code} from {response.url}, not from a teacher server; check the address"
    )


def error_of(message: str, *, code: str, body: Mapping[str, Any]) -> TeachonceError:
    """The error that a server described."""
    if code == BudgetExhaustedError.code:
        return BudgetExhaustedError(message, needed=body["needed"], remaining=body["remaining"])
    if code == MissingRowsError.code:
        return MissingRowsError(message, rows=[])
    kinds = {kind.code: kind for kind in _kinds(TeachonceError)}
    return kinds.get(code, TeachonceError)(message)


def _kinds(kind: type[TeachonceError]) -> Iterator[type[TeachonceError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)
