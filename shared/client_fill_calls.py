"""What the HTTP client sends about long fills and how it reads what comes back, the same for sync and async."""

import json
from collections.abc import Sequence
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from shared.client_calls import Call, error_of, row_numbers, stranger
from shared.client_retries import Followed
from shared.errors import FillCancelledError, TooLargeError
from shared.fill_schemas import MAX_FILL_BYTES, FillList, FillStatus

FILLS = "/v1/fills"
EVENTS = {"accept": "text/event-stream"}

Rows = Sequence[int] | NDArray[np.int64]


def fill_call(
    dataset: str,
    *,
    fill_id: str,
    sample: int | None,
    seed: int,
    rows: Rows | None,
    views: str,
    run: str | None,
) -> Call:
    """Submit a fill; sent twice by a retry, it is one all the same.

    Raises `TooLargeError` for more rows than one request takes.
    """
    asked = {
        "id": fill_id,
        "dataset": dataset,
        "sample": sample,
        "seed": seed,
        "rows": None if rows is None else row_numbers(rows),
        "views": views,
        "run": run,
    }
    body = json.dumps({name: value for name, value in asked.items() if value is not None}).encode()
    if len(body) > MAX_FILL_BYTES:
        raise TooLargeError(
            f"{0 if rows is None else len(rows)} rows take {len(body)} bytes, and a server reads {MAX_FILL_BYTES} at a "
            "time: fill them in several parts, or take a sample, or all rows by naming none"
        )
    return Call(method="POST", path=FILLS, content=body, kind="application/json")


def fill_path(fill_id: str) -> str:
    """Path of a fill."""
    return f"{FILLS}/{quote(fill_id, safe='')}"


def events_path(fill_id: str) -> str:
    """Path of its events."""
    return f"{fill_path(fill_id)}/events"


def status_of(response: httpx.Response) -> FillStatus:
    """The status in a response."""
    try:
        return FillStatus.model_validate_json(response.content)
    except ValidationError:
        raise stranger(response) from None


def statuses_of(response: httpx.Response) -> list[FillStatus]:
    """The list in a response."""
    try:
        return FillList.model_validate_json(response.content).fills
    except ValidationError:
        raise stranger(response) from None


def is_stream(response: httpx.Response) -> bool:
    """Whether events follow."""
    return response.is_success and response.headers.get("content-type", "").startswith(EVENTS["accept"])


def event_status(line: str, *, response: httpx.Response) -> FillStatus | None:
    """The status in one line of a stream: every event is one line of data, and its name says nothing more."""
    if not line.startswith("data:"):
        return None
    try:
        return FillStatus.model_validate_json(line.removeprefix("data:"))
    except ValidationError:
        raise stranger(response) from None


def finished(followed: Followed) -> FillStatus | None:
    """The last status of a fill that is done, None for one to be submitted again; raises what ended any other."""
    status = followed.status
    if status is None or status.state == "stopped":
        followed.goes_on()
        return None
    # One that the server itself cancelled says why.
    if status.state == "cancelled" and status.error is None:
        raise FillCancelledError(f"fill {status.id} was cancelled; {status.done} of {status.total} answers are kept")
    if status.error is not None:
        raise error_of(status.error.error, code=status.error.code, body=status.error.model_dump())
    return status
