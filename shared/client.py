"""The HTTP client of the teacher server, sync and async.

Shape key: B rows or images asked about, H height, W width.
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
from numpy.typing import NDArray

from shared.errors import (
    BudgetExhaustedError,
    InputError,
    MissingRowsError,
    TeachonceError,
    UnavailableError,
)
from shared.wire import CONTENT_TYPE, pack_tensors, unpack_tensors

ROWS_PER_REQUEST = 1024
BYTES_PER_REQUEST = 16 * 2**20
RETRIES = 5
RETRY_STATUSES = frozenset({503, 504})
"""Nothing was refused for good, and asking again never pays twice: what is computed meanwhile is kept."""


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


class TeacherClient:
    """Asks one teacher server; a context manager. Safe to use from several threads.

    Errors of the server come back as the classes of `shared.errors`; connection errors and "not now" are tried again.
    """

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        self._http = httpx.Client(base_url=base_url, headers=_common_headers(api_key), timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def logits(
        self,
        dataset: str,
        rows: Sequence[int] | NDArray[np.int64],
        *,
        view: int = 0,
        outputs: Sequence[str] = ("logits",),
        run: str | None = None,
    ) -> Answers:
        """Answers for rows of ``NAME/SPLIT``; many rows become several requests."""
        calls = _logits_calls(dataset, rows=rows, view=view, outputs=outputs, run=run)
        return _join([_answers(self._send(call)) for call in calls])

    def images(
        self, images: NDArray[np.uint8] | bytes, *, outputs: Sequence[str] = ("logits",), run: str | None = None
    ) -> Answers:
        """Answers for images uint8 [B, H, W, 3], or for the bytes of one PNG, JPEG or WebP file."""
        return _join([_answers(self._send(call)) for call in _images_calls(images, outputs=outputs, run=run)])

    def ledger(self) -> dict[str, Any]:
        """Counts of attempts, calls, hits and joined requests."""
        return _json(self._send(Call(method="GET", path="/v1/ledger")))

    def run(self, name: str) -> dict[str, Any]:
        """One run's budget and use."""
        return _json(self._send(Call(method="GET", path=_run_path(name))))

    def set_budget(self, name: str, budget: int | None) -> dict[str, Any]:
        """Make a run or change its budget; None removes the limit."""
        return _json(self._send(_budget_call(name, budget=budget)))

    def cache(self) -> dict[str, Any]:
        """What is cached, and what can be asked."""
        return _json(self._send(Call(method="GET", path="/v1/cache")))

    def ready(self) -> bool:
        """Whether the server answers questions now."""
        try:
            return self._http.get("/readyz").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _send(self, call: Call) -> httpx.Response:
        for pause_s in _pauses():
            try:
                response = self._http.request(
                    call.method, call.path, params=call.params, content=call.content, headers=call.headers()
                )
            except httpx.TransportError as error:
                if pause_s is None:
                    raise _unreachable(str(self._http.base_url), error=error) from error
                time.sleep(pause_s)
                continue
            if response.status_code not in RETRY_STATUSES or pause_s is None:
                return _checked(response)
            time.sleep(max(pause_s, _retry_after_s(response)))
        raise AssertionError("the last pause is None")


class AsyncTeacherClient:
    """`TeacherClient` for asyncio."""

    def __init__(self, base_url: str, *, api_key: str | None = None, timeout_s: float = 120.0) -> None:
        self._http = httpx.AsyncClient(base_url=base_url, headers=_common_headers(api_key), timeout=timeout_s)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def logits(
        self,
        dataset: str,
        rows: Sequence[int] | NDArray[np.int64],
        *,
        view: int = 0,
        outputs: Sequence[str] = ("logits",),
        run: str | None = None,
    ) -> Answers:
        """See `TeacherClient.logits`."""
        calls = _logits_calls(dataset, rows=rows, view=view, outputs=outputs, run=run)
        return _join([_answers(await self._send(call)) for call in calls])

    async def images(
        self, images: NDArray[np.uint8] | bytes, *, outputs: Sequence[str] = ("logits",), run: str | None = None
    ) -> Answers:
        """See `TeacherClient.images`."""
        return _join([_answers(await self._send(call)) for call in _images_calls(images, outputs=outputs, run=run)])

    async def ledger(self) -> dict[str, Any]:
        """See `TeacherClient.ledger`."""
        return _json(await self._send(Call(method="GET", path="/v1/ledger")))

    async def run(self, name: str) -> dict[str, Any]:
        """See `TeacherClient.run`."""
        return _json(await self._send(Call(method="GET", path=_run_path(name))))

    async def set_budget(self, name: str, budget: int | None) -> dict[str, Any]:
        """See `TeacherClient.set_budget`."""
        return _json(await self._send(_budget_call(name, budget=budget)))

    async def cache(self) -> dict[str, Any]:
        """See `TeacherClient.cache`."""
        return _json(await self._send(Call(method="GET", path="/v1/cache")))

    async def ready(self) -> bool:
        """See `TeacherClient.ready`."""
        try:
            return (await self._http.get("/readyz")).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    async def _send(self, call: Call) -> httpx.Response:
        for pause_s in _pauses():
            try:
                response = await self._http.request(
                    call.method, call.path, params=call.params, content=call.content, headers=call.headers()
                )
            except httpx.TransportError as error:
                if pause_s is None:
                    raise _unreachable(str(self._http.base_url), error=error) from error
                await asyncio.sleep(pause_s)
                continue
            if response.status_code not in RETRY_STATUSES or pause_s is None:
                return _checked(response)
            await asyncio.sleep(max(pause_s, _retry_after_s(response)))
        raise AssertionError("the last pause is None")


def _common_headers(api_key: str | None) -> dict[str, str]:
    headers = {"accept": f"{CONTENT_TYPE}, application/json"}
    return headers if api_key is None else {**headers, "authorization": f"Bearer {api_key}"}


def _run_path(name: str) -> str:
    return f"/v1/runs/{name}"


def _budget_call(name: str, *, budget: int | None) -> Call:
    body = json.dumps({"budget": budget}).encode()
    return Call(method="PUT", path=_run_path(name), content=body, kind="application/json")


def _logits_calls(
    dataset: str,
    *,
    rows: Sequence[int] | NDArray[np.int64],
    view: int,
    outputs: Sequence[str],
    run: str | None,
) -> Iterator[Call]:
    wanted = [int(row) for row in rows]
    for start in range(0, len(wanted), ROWS_PER_REQUEST) or (0,):
        part = wanted[start : start + ROWS_PER_REQUEST]
        body = {"dataset": dataset, "rows": part, "view": view, "outputs": list(outputs)}
        text = json.dumps(body if run is None else {**body, "run": run})
        yield Call(method="POST", path="/v1/logits", content=text.encode(), kind="application/json")


def _images_calls(images: NDArray[np.uint8] | bytes, *, outputs: Sequence[str], run: str | None) -> Iterator[Call]:
    params = {"outputs": ",".join(outputs)} | ({} if run is None else {"run": run})
    if isinstance(images, bytes):
        yield Call(method="POST", path="/v1/images", params=params, content=images, kind="application/octet-stream")
        return
    if images.ndim != 4:
        raise InputError(f"images must be uint8 [B, H, W, 3]; got {images.dtype} {list(images.shape)}")
    step = min(ROWS_PER_REQUEST, max(1, BYTES_PER_REQUEST // max(1, images[:1].nbytes)))
    for start in range(0, len(images), step) or (0,):
        body = pack_tensors({"images": np.ascontiguousarray(images[start : start + step])}, metadata={})
        yield Call(method="POST", path="/v1/images", params=params, content=body, kind=CONTENT_TYPE)


def _answers(response: httpx.Response) -> Answers:
    outputs, metadata = unpack_tensors(response.content)
    return Answers(
        teacher=metadata["teacher"],
        outputs=outputs,
        cached=np.array(json.loads(metadata["cached"]), dtype=np.bool_),
        teacher_calls=int(metadata["teacher_calls"]),
        keys=tuple(json.loads(metadata.get("keys", "[]"))),
    )


def _join(parts: list[Answers]) -> Answers:
    if len(parts) == 1:
        return parts[0]
    return Answers(
        teacher=parts[0].teacher,
        outputs={name: np.concatenate([part.outputs[name] for part in parts]) for name in parts[0].outputs},
        cached=np.concatenate([part.cached for part in parts]),
        teacher_calls=sum(part.teacher_calls for part in parts),
        keys=tuple(key for part in parts for key in part.keys),
    )


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        value: dict[str, Any] = response.json()
    except ValueError:
        raise _stranger(response) from None
    return value


def _pauses() -> Iterator[float | None]:
    """Seconds to wait after each failed try, growing, with jitter; None = that was the last one."""
    for attempt in range(RETRIES):
        yield 0.1 * 2**attempt * random.uniform(0.5, 1.5)
    yield None


def _retry_after_s(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "0")
    return float(text) if text.isdigit() else 0.0


def _unreachable(base_url: str, *, error: httpx.TransportError) -> UnavailableError:
    return UnavailableError(
        f"no teacher server at {base_url} ({type(error).__name__}); start one with teacher-server serve"
    )


def _checked(response: httpx.Response) -> httpx.Response:
    """The response if it is a success; else raise the error that the server had."""
    if response.status_code == httpx.codes.OK:
        return response
    try:
        body = response.json()
        message, code = str(body["error"]), str(body["code"])
    except (ValueError, KeyError, TypeError):
        raise _stranger(response) from None
    raise _error(message, code=code, body=body)


def _stranger(response: httpx.Response) -> TeachonceError:
    return TeachonceError(
        f"HTTP {response.status_code} from {response.url}, not from a teacher server; check the address"
    )


def _error(message: str, *, code: str, body: Mapping[str, Any]) -> TeachonceError:
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
