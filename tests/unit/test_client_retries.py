"""When the client asks again, against a server that misbehaves on purpose."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from shared.client import TeacherClient
from shared.client_calls import common_headers
from shared.client_images import images_calls
from shared.client_retries import Tries
from shared.errors import BudgetExhaustedError, InputError, SlowBodyError, UnavailableError

DROP = (0, {}, {})
"""Read the request, close the connection."""
FINE = (200, {}, {"attempts": 1})


class Misbehaving(ThreadingHTTPServer):
    """Answers from a script of (status, headers, JSON), the last one for ever; keeps connections open."""

    def __init__(self, script: list[tuple[int, dict[str, str], dict[str, Any]]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.asked = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Misbehaving

    def do_GET(self) -> None:
        self.server.asked += 1
        status, headers, answer = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        if not status:
            self.close_connection = True
            return
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def misbehaving() -> Iterator[Misbehaving]:
    server = Misbehaving([FINE])
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr("shared.client.time.sleep", taken.append)
    return taken


def refusal(code: str, **more: object) -> dict[str, object]:
    return {"error": "why", "code": code, "request_id": "x", **more}


def test_dropped_connections_and_not_now_are_asked_again_after_the_time_asked_for(
    misbehaving: Misbehaving, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A proxy where nobody is: this machine's own address needs none.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    misbehaving.script = [
        FINE,
        DROP,
        (503, {"retry-after": "7"}, refusal("unavailable")),
        (408, {"connection": "close"}, refusal("slow_body")),
        (504, {}, refusal("deadline")),
        FINE,
    ]
    with TeacherClient(f"http://127.0.0.1:{misbehaving.server_port}") as client:
        assert [client.ledger(), client.ledger()] == [FINE[2]] * 2
    assert misbehaving.asked == 6
    assert (len(pauses), pauses[1]) == (4, 7.0)
    assert max(pauses[0], pauses[2], pauses[3]) < 1


def test_what_was_refused_for_good_is_asked_once(misbehaving: Misbehaving, pauses: list[float]) -> None:
    misbehaving.script = [(402, {}, refusal("budget_exhausted", needed=2, remaining=1))]
    with (
        TeacherClient(f"http://127.0.0.1:{misbehaving.server_port}") as client,
        pytest.raises(BudgetExhaustedError),
    ):
        client.ledger()
    assert (misbehaving.asked, pauses) == (1, [])


def test_no_longer_is_waited_than_the_time_of_the_request(misbehaving: Misbehaving, pauses: list[float]) -> None:
    misbehaving.script = [(503, {"retry-after": "60"}, refusal("unavailable"))]
    with (
        TeacherClient(f"http://127.0.0.1:{misbehaving.server_port}", timeout_s=30) as client,
        pytest.raises(UnavailableError, match="why"),
    ):
        client.ledger()
    assert (misbehaving.asked, pauses) == (1, [])
    assert Tries(30).timeout().connect == 10


@pytest.mark.parametrize("key", ["schl\u00fcssel", "", " \n", "two\r\nlines", "a\x00b"])
def test_a_key_that_no_header_can_carry_is_refused_before_anything_is_sent(key: str) -> None:
    with pytest.raises(InputError, match="printable ASCII") as refused:
        TeacherClient("http://127.0.0.1:9", api_key=key)
    assert not key.strip() or key not in str(refused.value)
    assert common_headers(" secret\r\n")["authorization"] == "Bearer secret"


def test_a_body_that_came_too_slowly_is_sent_once_more_and_no_part_is_large(
    misbehaving: Misbehaving, pauses: list[float]
) -> None:
    misbehaving.script = [(408, {}, refusal("slow_body"))]
    with (
        TeacherClient(f"http://127.0.0.1:{misbehaving.server_port}", timeout_s=2) as client,
        pytest.raises(SlowBodyError, match="why"),
    ):
        client.ledger()
    assert (misbehaving.asked, len(pauses)) == (2, 1)
    images = np.zeros((40, 256, 256, 3), dtype=np.uint8)
    assert max(len(call.content or b"") for call in images_calls(images, outputs=["logits"], run=None)) < 2**22 + 2**10
