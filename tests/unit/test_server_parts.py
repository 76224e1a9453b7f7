"""The server's small parts: settings, queue, wire, client retries."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from shared.client import AsyncTeacherClient, TeacherClient
from shared.errors import (
    BudgetExhaustedError,
    InputError,
    RowRangeError,
    TeachonceError,
    TooLargeError,
    UnavailableError,
    UnknownNameError,
)
from shared.schemas import LogitsRequest, parse_body
from shared.sizes import readable_size
from shared.wire import CONTENT_TYPE, pack_tensors, unpack_tensors
from teacher_server.guard import LimitedBody
from teacher_server.queueing import FairQueue, Item
from teacher_server.serving import bind
from teacher_server.settings import AnsweringSettings, ServerSettings
from teacher_server.uploads import Hold, Uploads


@pytest.mark.parametrize("host", ["0.0.0.1", "::", "192.168.0.1", "example.com", "127.0.0.1.example.com", ""])
def test_settings_refuse_an_open_address_without_keys(host: str) -> None:
    with pytest.raises(InputError, match="--api-key-file"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, api_key_file=Path("keys")).host == host


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "::1"])
def test_settings_need_no_keys_on_this_machine(host: str) -> None:
    assert ServerSettings(host=host).host == host


@pytest.mark.parametrize("host", ["a..b", "192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_cannot_be_listened_on_is_named(host: str) -> None:
    with pytest.raises(InputError, match=rf"cannot listen on {host}:0: .*; choose another --host or --port"):
        bind(host, port=0)


def test_settings_refuse_an_empty_batch() -> None:
    with pytest.raises(InputError):
        AnsweringSettings(batch_images=0)


def item(run: str, index: int, *, lane: str = "") -> Item:
    anything: Any = None
    return Item(question=anything, index=index, key=b"", run=run, reservation=anything, lane=lane)


def test_runs_take_turns_and_keep_their_order() -> None:
    queue = FairQueue()
    queue.push([item("large", index) for index in range(5)])
    queue.push([item("small", 0), item("other", 0)])
    taken = [(one.run, one.index) for one in queue.take(5)]
    assert taken == [("large", 0), ("small", 0), ("other", 0), ("large", 1), ("large", 2)]
    assert len(queue) == 2
    assert [(one.run, one.index) for one in queue.take(9)] == [("large", 3), ("large", 4)]
    assert queue.take(1) == []
    queue.push([item("one", index, lane="fill 7") for index in range(3)] + [item("one", 9)])
    assert [one.index for one in queue.take(3)] == [0, 9, 1]


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (28_400, "28.4 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (1_300_000, "1.3 MB"),
        (2_100_000_000, "2.1 GB"),
        (7_000_000_000_000, "7.0 TB"),
        (7_000_000_000_000_000, "7000.0 TB"),
    ],
)
def test_sizes_are_told_in_the_unit_that_shows_them(size_bytes: int, text: str) -> None:
    assert readable_size(size_bytes) == text


@pytest.mark.parametrize(("sent", "read"), [(1000, 21), (15, 15)])
def test_a_body_over_the_limit_is_read_to_twice_the_limit_and_its_deadline(sent: int, read: int) -> None:
    pulled = 0

    async def receive() -> dict[str, Any]:
        nonlocal pulled
        if pulled == sent:
            await asyncio.Event().wait()  # the rest never comes
        pulled += 1
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def take_all() -> None:
        settings = ServerSettings(body_timeout_s=0.2)
        body = LimitedBody(receive, settings=settings, max_bytes=10, hold=Hold(Uploads(most_bytes=100)))
        while True:
            await body.receive()

    with pytest.raises(TooLargeError):
        asyncio.run(take_all())
    assert pulled == read


def test_tensors_and_metadata_survive_the_wire() -> None:
    tensors = {"logits": np.arange(6, dtype=np.float16).reshape(2, 3)}
    found, metadata = unpack_tensors(pack_tensors(tensors, metadata={"teacher": "t", "cached": [True, False]}))
    np.testing.assert_array_equal(found["logits"], tensors["logits"])
    assert metadata == {"teacher": "t", "cached": "[true, false]"}


def test_a_wrong_body_names_the_first_wrong_field() -> None:
    with pytest.raises(InputError, match=r"rows\.1: .* a JSON object with dataset, rows, view, outputs, run"):
        parse_body(b'{"dataset": "a/b", "rows": [0, true]}', model=LogitsRequest)


class Script:
    """A transport that answers from a list, the last answer for ever, and remembers the requests."""

    def __init__(self, *answers: httpx.Response | httpx.TransportError) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, httpx.TransportError):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def refusal(status: int, code: str, **more: object) -> httpx.Response:
    return httpx.Response(status, json={"error": "why", "code": code, "request_id": "x", **more})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("shared.client.time.sleep", lambda _: None)
    yield


def client_of(script: Script) -> TeacherClient:
    client = TeacherClient("http://test")
    client._http = httpx.Client(base_url="http://test", transport=httpx.MockTransport(script))
    return client


@pytest.mark.usefixtures("quick")
def test_the_client_tries_again_where_that_is_safe() -> None:
    script = Script(
        httpx.ConnectError("refused"), refusal(503, "unavailable"), httpx.Response(200, json={"attempts": 1})
    )
    assert client_of(script).ledger() == {"attempts": 1}
    assert len(script.requests) == 3


@pytest.mark.usefixtures("quick")
def test_the_client_gives_up_in_the_end_and_says_how_to_start_a_server() -> None:
    with pytest.raises(UnavailableError, match="teacher-server serve"):
        client_of(Script(httpx.ConnectError("refused"))).ledger()


def test_errors_of_the_server_come_back_as_themselves() -> None:
    for status, code, kind in ((404, "unknown_name", UnknownNameError), (400, "row_out_of_range", RowRangeError)):
        with pytest.raises(kind, match="why"):
            client_of(Script(refusal(status, code))).ledger()
    with pytest.raises(BudgetExhaustedError) as short:
        client_of(Script(refusal(402, "budget_exhausted", needed=5, remaining=2))).logits("a/b", [1])
    assert (short.value.needed, short.value.remaining) == (5, 2)
    with pytest.raises(TeachonceError, match="not from a teacher server"):
        client_of(Script(httpx.Response(200, text="x"), httpx.Response(418, text="tea"))).run("a")


@pytest.mark.parametrize("url", ["localhost:8000", "http://host:port", "file:///tmp", "http://", ""])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    for client in (TeacherClient, AsyncTeacherClient):
        with pytest.raises(InputError, match="write http://HOST:PORT"):
            client(url)


def test_rows_that_are_no_whole_numbers_are_never_rounded() -> None:
    script = Script(refusal(500, "internal"))
    for rows in ([0, 1.7], np.array([2.0]), ["3"]):
        with pytest.raises(InputError, match="whole numbers"):
            client_of(script).logits("a/b", rows)
    assert script.requests == []


def test_a_page_of_another_server_is_no_answer() -> None:
    for page in (httpx.Response(200, html="<p>hello"), httpx.Response(200, json={"logits": [[1]]})):
        with pytest.raises(TeachonceError, match="not from a teacher server"):
            client_of(Script(page)).logits("a/b", [1])


def test_the_name_of_a_run_stays_one_part_of_the_path() -> None:
    script = Script(refusal(404, "unknown_name"))
    with pytest.raises(UnknownNameError):
        client_of(script).run("a/b?c")
    assert script.requests[0].url.raw_path == b"/v1/runs/a%2Fb%3Fc"


def test_many_rows_become_several_requests_and_one_answer() -> None:
    def answer(rows: int) -> httpx.Response:
        body = pack_tensors(
            {"logits": np.full((rows, 2), rows, dtype=np.float16)},
            metadata={"teacher": "t", "cached": [False] * rows, "teacher_calls": rows},
        )
        return httpx.Response(200, content=body, headers={"content-type": CONTENT_TYPE})

    script = Script(answer(1024), answer(476))
    answers = client_of(script).logits("a/b", range(1500))
    assert answers["logits"].shape == (1500, 2)
    assert (answers.teacher_calls, len(answers.cached), len(script.requests)) == (1500, 1500, 2)


def test_the_async_client_asks_the_same_way() -> None:
    async def story() -> dict[str, Any]:
        client = AsyncTeacherClient("http://test", api_key="secret")
        script = Script(httpx.Response(200, json={"runs": {}}))
        headers = client._http.headers
        client._http = httpx.AsyncClient(base_url="http://test", headers=headers, transport=httpx.MockTransport(script))
        async with client:
            told = await client.ledger()
        assert script.requests[0].headers["authorization"] == "Bearer secret"
        return told

    assert asyncio.run(story()) == {"runs": {}}
