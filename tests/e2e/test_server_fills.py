"""Long fills over HTTP on a real server: submit, watch, cancel; the same as the command, once and within budget."""

import asyncio
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from cache.info import describe_cache
from shared.client import AsyncTeacherClient, FillStatus, Outcome, TeacherClient
from shared.client_calls import Call
from shared.command import run_command
from shared.errors import BudgetExhaustedError, InputError, TooLargeError
from teacher_server.cli import app

ROWS = 400
NAME = "pictures/train"
BATCH = 8
IN_FLIGHT = 3 * BATCH


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_images: Callable[..., Path]) -> Path:
    return make_images(tmp_path_factory.mktemp("fills") / "pictures", count=ROWS)


@pytest.fixture(scope="module")
def server(launch_server: Callable, tmp_path_factory: pytest.TempPathFactory, images: Path) -> Any:
    # So small a queue holds one fill at a time, and half of it is for requests.
    options = ["--dataset", f"folder:{images}", "--batch", str(BATCH), "--queue", "64"]
    return launch_server(tmp_path_factory.mktemp("fills") / "store", *options, forward_s=0.02)


@pytest.fixture
def client(server: Any) -> Iterator[TeacherClient]:
    with TeacherClient(server.url) as made:
        yield made


def when(client: TeacherClient, fill_id: str, *, done: int) -> None:
    """Return once a fill has so many answers."""
    for status in client.watch_fill(fill_id):
        if status.done >= done:
            return


def test_a_fill_is_submitted_watched_to_its_end_and_costs_nothing_again(server: Any, client: TeacherClient) -> None:
    client.set_budget("first", 80)
    seen: list[FillStatus] = []
    done = client.fill(NAME, sample=80, run="first", progress=seen.append)
    again = httpx.post(f"{server.url}/v1/fills", json={"dataset": NAME, "sample": 80, "run": "first", "views": "0,41"})
    events = httpx.get(f"{server.url}{again.headers['location']}/events")

    assert (done.state, done.total, done.done, done.cached, done.teacher_calls) == ("done", 80, 80, 0, 80)
    assert all(a.done <= b.done for a, b in pairwise(seen))
    assert seen[-1] == done
    assert events.headers["content-type"].startswith("text/event-stream")
    last = events.text.strip().split("\n\n")[-1]
    assert last.startswith("event: end\ndata: {")
    # View 41 is the image itself.
    assert FillStatus.model_validate_json(last.partition("data: ")[2]).cached == 160
    assert again.status_code == 202
    assert client.run("first") == {"budget": 80, "remaining": 0, "attempts": 80, "teacher_calls": 80, "charged": 80}


def test_a_fill_that_its_budget_cannot_cover_computes_nothing(client: TeacherClient) -> None:
    client.set_budget("poor", 10)
    before = [status.id for status in client.fills()]
    with pytest.raises(BudgetExhaustedError) as short:
        client.fill(NAME, rows=range(20), views="3", run="poor")
    assert (short.value.needed, short.value.remaining) == (20, 10)
    assert client.run("poor")["attempts"] == 0
    assert [status.id for status in client.fills()] == before
    for wrong in ({"rows": [1], "sample": 1}, {"rows": [ROWS]}, {"sample": ROWS + 1}, {"views": "x"}):
        with pytest.raises(InputError):
            client.start_fill(NAME, **wrong)


def test_a_list_of_many_rows_is_one_fill_and_too_many_are_refused_with_a_way_out(client: TeacherClient) -> None:
    assert client.fill(NAME, rows=[300 + row % 40 for row in range(60_000)]).total == 40
    with pytest.raises(TooLargeError, match="in several parts"):
        client.start_fill(NAME, rows=[10**18] * 900_000)


def test_a_submission_that_nobody_waits_for_begins_nothing_and_one_sent_twice_is_one_fill(
    server: Any, client: TeacherClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set_budget("left", 10**6)
    address = httpx.URL(server.url)
    asked = {"dataset": NAME, "views": "50-59", "run": "left", "id": "0" * 15 + "1"}
    body = json.dumps(asked).encode()
    head = (
        f"POST /v1/fills HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    )
    with socket.create_connection((address.host, address.port)) as gone:
        gone.sendall(head.encode() + b"\r\n\r\n" + body)
    # Costed after the one that was left.
    twice = [httpx.post(f"{server.url}/v1/fills", json=asked | {"id": "0" * 15 + "2", "sample": 1}) for _ in range(2)]
    other = httpx.post(f"{server.url}/v1/fills", json=asked | {"id": "0" * 15 + "2"})
    ids = [status.id for status in client.fills()]
    assert ("0" * 15 + "1" in ids, ids.count("0" * 15 + "2")) == (False, 1)
    assert [answer.status_code for answer in (*twice, other)] == [202, 202, 409]

    send, lost = client._try, [httpx.ReadError("lost"), KeyboardInterrupt()]

    def lose(call: Call, *, timeout: httpx.Timeout) -> Outcome:
        answer = send(call, timeout=timeout)
        if call.method != "POST" or not lost:
            return answer
        if isinstance(error := lost.pop(0), KeyboardInterrupt):
            raise error
        assert isinstance(error, httpx.ReadError)
        return error

    monkeypatch.setattr(client, "_try", lose)
    with pytest.raises(KeyboardInterrupt):
        client.fill(NAME, views="60", cancel_on_interrupt=True)
    found = [(status.state, status.total) for status in client.fills() if status.views == "60"]
    assert found == [("cancelled", ROWS)]


def test_a_cancelled_fill_keeps_what_it_paid_for_and_holds_up_no_request(server: Any, client: TeacherClient) -> None:
    client.set_budget("cancelled", None)
    running = client.start_fill(NAME, views="5", run="cancelled")
    queued = client.start_fill(NAME, views="5", run="cancelled")
    leaves = client.watch_fill(running.id)
    next(leaves)
    leaves.close()
    when(client, running.id, done=BATCH)
    # As many as the queue has room for beside the fill, asked under its own run, without a retry.
    single = server.ask(list(range(ROWS - 40, ROWS)), view=5, run="cancelled")
    meanwhile = client.fill_status(running.id)
    waiting = client.cancel_fill(queued.id)
    kept = client.cancel_fill(running.id)
    counts = client.run("cancelled")
    rest = client.fill(NAME, views="5", run="cancelled")

    assert (single.status_code, single.json()["teacher_calls"]) == (200, 40)
    assert (meanwhile.state, meanwhile.done <= ROWS - 40) == ("running", True)
    assert (waiting.state, waiting.done, waiting.seconds) == ("cancelled", 0, 0.0)
    assert (kept.state, BATCH <= kept.done < ROWS - 40) == ("cancelled", True)
    assert kept.done == kept.teacher_calls
    assert counts["attempts"] == counts["teacher_calls"] == kept.teacher_calls + 40
    assert client.cancel_fill(running.id) == kept
    assert (rest.state, rest.teacher_calls) == ("done", ROWS - 40 - kept.done)


def test_a_killed_server_is_asked_again_and_a_stopping_one_is_not_held_up(
    launch_server: Callable, tmp_path: Path, images: Path
) -> None:
    options = ["--dataset", f"folder:{images}", "--batch", str(BATCH)]
    server = launch_server(tmp_path / "store", *options, forward_s=0.02)
    port = server.url.rpartition(":")[2]
    ended: list[FillStatus] = []
    far = threading.Event()
    with TeacherClient(server.url) as client:
        asking = threading.Thread(
            target=lambda: ended.append(
                client.fill(NAME, progress=lambda status: far.set() if status.done >= 50 else None)
            )
        )
        asking.start()
        assert far.wait(30)
        server.stop(signal.SIGKILL)
        server = launch_server(tmp_path / "store", *options, "--port", port, forward_s=0.02)
        asking.join()
        counts = client.ledger()
        stopped = client.start_fill(NAME, views="7")
        stream = client.watch_fill(stopped.id)
        next(stream)
        when(client, stopped.id, done=BATCH)
        server.process.send_signal(signal.SIGTERM)
        last = list(stream)[-1]
        assert server.process.wait(timeout=10) == 0

    assert (ended[0].state, ended[0].done, counts["teacher_calls"]) == ("done", ROWS, ROWS)
    assert ROWS <= counts["attempts"] <= ROWS + IN_FLIGHT
    assert last.state == "stopped"
    assert last.error is not None
    assert "submitted again" in last.error.error
    kept = describe_cache(tmp_path / "store")["caches"][0]["present"]
    assert kept == {"0": ROWS, "7": last.done}


def test_parts_arrive_in_order_and_the_async_client_fills_the_same_way(server: Any, client: TeacherClient) -> None:
    rows = [row % ROWS for row in range(2500)]

    async def story() -> tuple[FillStatus, list[FillStatus], list[Any]]:
        async with AsyncTeacherClient(server.url) as http:
            filled = await http.fill(NAME, rows=range(60))
            watched = [status async for status in http.watch_fill(filled.id)]
            return filled, watched, [part async for part in http.stream_logits(NAME, rows, concurrency=2)]

    filled, watched, async_parts = asyncio.run(story())
    counts: list[Any] = []
    parts = list(client.stream_logits(NAME, rows, progress=counts.append))
    whole = client.logits(NAME, rows)

    assert (filled.state, filled.done, watched) == ("done", 60, [filled])
    for stream in (async_parts, parts):
        assert [len(part.cached) for part in stream] == [1024, 1024, 452]
        np.testing.assert_array_equal(np.concatenate([part["logits"] for part in stream]), whole["logits"])
    assert [count.done for count in counts] == [1024, 2048, 2500]


def test_images_of_any_kind_and_size_come_back_in_order(client: TeacherClient, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.integers(0, 256, (size, 6, 3), dtype=np.uint8) for size in (6, 6, 9, 6)]
    file = tmp_path / "image.png"
    Image.fromarray(arrays[2]).save(file)
    mixed = client.images(iter([*arrays[:2], file, file.read_bytes(), *arrays[2:]]))
    singly = [client.images(array) for array in (arrays[0], arrays[1], arrays[2], arrays[2], arrays[2], arrays[3])]

    assert mixed.keys == tuple(answers.keys[0] for answers in singly)
    np.testing.assert_array_equal(mixed["logits"], np.concatenate([answers["logits"] for answers in singly]))
    with pytest.raises(InputError, match="cannot read the image"):
        client.images(tmp_path / "none.png")


def test_the_command_fills_through_a_server_and_ctrl_c_cancels(
    server: Any, client: TeacherClient, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*options: str) -> int:
        with pytest.raises(SystemExit) as ended:
            run_command(app, ["fill", "--server", server.url, "--dataset", "pictures", *options])
        return int(str(ended.value.code))

    assert command("--sample", "30", "--views", "9") == 0
    assert capsys.readouterr().out.startswith("30 rows, 30 teacher calls, 0 hits, ")
    assert command("--views", "10", "--run", "capped", "--budget", "20") == 3
    assert f"{ROWS} teacher calls needed, 20 remain for run capped" in capsys.readouterr().err
    assert command("--cache", "store", "--outputs", "logits") == 2
    assert "--cache, --outputs" in capsys.readouterr().err

    def interrupt() -> None:
        with suppress(StopIteration):
            while client.fills()[0].views != "11":
                pass
            when(client, client.fills()[0].id, done=BATCH)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert command("--views", "11") == 130
    thread.join()
    status = client.fills()[0]
    assert (status.state, BATCH <= status.done < ROWS) == ("cancelled", True)
    assert f"cancelled: {status.done} of {ROWS} answers are kept" in capsys.readouterr().err
