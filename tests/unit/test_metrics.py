"""What an operator sees of a server in one process: its metrics and the lines of its log."""

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, ExitStack
from io import BytesIO
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from cache.writer import CacheWriter
from shared.fake_teacher import FakeTeacher
from teacher_server import label_names
from teacher_server.app import create_app
from teacher_server.label_names import LATER
from teacher_server.log_lines import JsonLines, TextLines
from teacher_server.settings import ServerSettings

Story = Callable[..., Coroutine[Any, Any, Any]]


def with_clients(folder: Path, story: Story, *, apps: int = 1) -> Any:
    """Run a story against as many applications in this process, each on a cache of its own."""

    async def run(writers: list[CacheWriter]) -> Any:
        async with AsyncExitStack() as stack:
            clients = []
            for writer in writers:
                app = create_app(ServerSettings(), teacher=FakeTeacher(classes=10), datasets=[], writer=writer)
                await stack.enter_async_context(app.router.lifespan_context(app))
                transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
                clients.append(
                    await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://localhost"))
                )
            return await story(*clients)

    with ExitStack() as stack:
        return asyncio.run(run([stack.enter_context(CacheWriter.open(folder / str(one))) for one in range(apps)]))


def png(seed: int) -> bytes:
    file = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


async def scrape(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Values by name and labels, such as ``("teacher_images_total", "hit")``, labels by their names."""
    page = await client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=")
    found = {}
    for family in text_string_to_metric_families(page.text):
        assert family.documentation
        for sample in family.samples:
            name = (sample.name, *sample.labels.values())
            assert name not in found, f"{name} is there twice"
            found[name] = sample.value
    return found


def test_each_application_counts_for_itself_and_as_its_ledger_does(tmp_path: Path) -> None:
    async def story(busy: httpx.AsyncClient, idle: httpx.AsyncClient) -> None:
        for seed in (1, 2, 1):
            assert (await busy.post("/v1/images", content=png(seed))).status_code == 200
        await busy.post("/v1/images", content=b"no image")
        ledger = (await busy.get("/v1/ledger")).json()
        seen, other = await scrape(busy), await scrape(idle)

        assert (ledger["teacher_calls"], ledger["attempts"], ledger["hits"]) == (2, 2, 1)
        assert (seen["teacher_calls_total",], seen["teacher_attempts_total",]) == (2, 2)
        sources = [seen["teacher_images_total", source] for source in ("hit", "joined", "computed")]
        assert sources == [1, 0, 2]
        assert seen["teacher_run_calls_total", "default"] == seen["teacher_budget_used", "default"] == 2
        assert seen["teacher_forward_calls_total",] == seen["teacher_batch_size_count",] == 2
        for step in ("queue", "decode", "forward", "ledger_commit"):
            assert seen[f"teacher_{step}_seconds_count",] == 2, step
        assert seen["teacher_requests_total", "200", "POST", "/v1/images"] == 3
        assert seen["teacher_requests_total", "400", "POST", "/v1/images"] == 1
        assert seen["teacher_request_seconds_count", "/v1/images"] == 4
        assert seen["teacher_rejected_total", "bad_image"] == 1
        assert (seen["teacher_ready",], seen["teacher_queue_images",], seen["teacher_inflight_keys",]) == (1, 0, 0)
        assert seen["process_resident_memory_bytes",] > 2**20
        assert (other["teacher_calls_total",], other["teacher_forward_calls_total",]) == (0, 0)
        assert ("teacher_requests_total", "200", "POST", "/v1/images") not in other

    with_clients(tmp_path, story, apps=2)


def test_nothing_that_callers_write_makes_new_series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_names, "MOST_NAMES", 10)

    async def story(client: httpx.AsyncClient) -> None:
        for number in range(15):
            made = await client.put(f"/v1/runs/run-{number}", json={"budget": number})
            assert made.status_code == 200
        before = await scrape(client)
        for number in range(3):
            await client.get(f"/nothing/{number}")
            await client.get(f"/v1/runs/unknown-{number}")
            await client.request(f"VERB{number}", "/v1/ledger")
            await client.put(f"/v1/runs/a-{number}", json={"budget": None})
        after = await scrape(client)

        assert ("teacher_run_calls_total", "run-1") in before
        runs = {name[1] for name in after if name[0] == "teacher_run_calls_total"}
        assert len(runs) == 11
        assert LATER in runs
        # Runs that come first in the alphabet push none out: a counter never falls.
        assert runs == {name[1] for name in before if name[0] == "teacher_run_calls_total"}
        new = {name[2:] for name in after.keys() - before.keys() if name[0] == "teacher_requests_total"}
        assert new == {("GET", "other"), ("GET", "/v1/runs/{name}"), ("other", "/v1/ledger"), ("GET", "/metrics")}

    with_clients(tmp_path, story)


def test_nobody_waits_for_a_scrape_that_waits_for_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed, counts = Event(), CacheWriter.ledger_counts
    waited = []

    def in_mid_commit(writer: CacheWriter) -> dict[str, Any]:
        waited.append(committed.wait(timeout=5))
        return counts(writer)

    async def story(client: httpx.AsyncClient) -> None:
        monkeypatch.setattr(CacheWriter, "ledger_counts", in_mid_commit)
        scraped = asyncio.create_task(scrape(client))
        await asyncio.sleep(0)
        assert (await client.post("/v1/images", content=png(1))).status_code == 200
        committed.set()
        assert (await scraped)["teacher_calls_total",] == 1

    with_clients(tmp_path, story)
    # The pulse of the dashboard may have asked too.
    assert set(waited) == {True}


def test_a_request_is_one_line_with_what_is_needed_to_find_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def story(client: httpx.AsyncClient) -> None:
        await client.post("/v1/images?outputs=logits", content=png(1), headers={"x-request-id": "find-me"})
        await client.post("/v1/images?run=no%1b%5b2J", content=png(2), headers={"authorization": "Bearer secret"})
        await client.get("/readyz")
        await client.get(f"/v1/led%0Ager{'x' * 200}?key=secret", headers={"host": "evil.example"})

    with caplog.at_level(logging.INFO, logger="teacher_server"):
        with_clients(tmp_path, story)
    requests = [record for record in caplog.records if record.name == "teacher_server.request_record"]
    told, unknown, refused = (json.loads(JsonLines().format(record)) for record in requests)
    assert {name: told[name] for name in ("request_id", "method", "route", "status")} == {
        "request_id": "find-me",
        "method": "POST",
        "route": "/v1/images",
        "status": 200,
    }
    assert (told["images"], told["teacher_calls"], told["run"], told["owner"]) == (1, 1, "default", "local")
    assert told["level"] == "info"
    assert 0 < told["ms"] < 60_000
    assert (unknown["status"], unknown["code"]) == (404, "unknown_name")
    assert "unknown run" in unknown["error"]
    assert (refused["status"], refused["code"]) == (400, "bad_request")
    assert len(refused["request_id"]) == 16
    assert refused["path"] == f"/v1/led\nger{'x' * 89}"
    assert "path" not in told

    lines = [TextLines().format(record) for record in requests]
    assert "request_id=find-me method=POST route=/v1/images status=200" in lines[0]
    assert all(line.isprintable() for line in lines)
    assert "secret" not in " ".join(lines)
    assert "code=unknown_name" in lines[1]


def test_a_line_of_the_log_stays_one_line_and_a_traceback_stays_with_its_event() -> None:
    try:
        raise ValueError("broken")
    except ValueError as error:
        caught = (type(error), error, error.__traceback__)
    record = logging.LogRecord("a.b", logging.ERROR, __file__, 1, "began\n\x1b[2Jforged %s", ("\ud800",), caught)
    line = JsonLines().format(record)
    assert "\n" not in line
    assert "ValueError: broken" in json.loads(line)["exception"]
    assert "began\\x0a\\x1b[2Jforged" in TextLines().format(record).splitlines()[0]
