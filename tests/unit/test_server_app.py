"""The application in one process: what only a broken or a raced server shows."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest

from cache.writer import CacheWriter
from shared.fake_teacher import FakeTeacher
from teacher_server.app import create_app
from teacher_server.settings import ServerSettings

JSON = {"content-type": "application/json"}


def with_client(
    path: Path,
    story: Callable[[httpx.AsyncClient, Any], Coroutine[Any, Any, Any]],
    settings: ServerSettings = ServerSettings(),  # noqa: B008 - a frozen value
) -> Any:
    """Run a story against an application on a cache in ``path``."""

    async def inside(writer: CacheWriter) -> Any:
        app = create_app(settings, teacher=FakeTeacher(classes=10), datasets=[], writer=writer)
        transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            return await story(client, app.state.service)

    with CacheWriter.open(path) as writer:
        return asyncio.run(inside(writer))


def test_a_new_run_is_bounded_from_its_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    ensure_run = CacheWriter.ensure_run

    def watched(writer: CacheWriter, name: str, budget: int | None = None) -> None:
        ensure_run(writer, name, budget)
        seen.append(writer.ledger_counts()["runs"][name]["budget"])

    monkeypatch.setattr(CacheWriter, "ensure_run", watched)

    async def story(client: httpx.AsyncClient, _: Any) -> httpx.Response:
        return await client.put("/v1/runs/paper", content=b'{"budget": 3}', headers=JSON)

    assert with_client(tmp_path / "store", story).json()["remaining"] == 3
    assert seen == [3]


def test_our_own_mistake_is_found_in_the_log_by_its_request_id(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(client: httpx.AsyncClient, service: Any) -> httpx.Response:
        async def ledger() -> None:
            raise ZeroDivisionError("a secret path")

        service.ledger = ledger
        return await client.get("/v1/ledger", headers={"x-request-id": "find-me"})

    with caplog.at_level(logging.ERROR):
        answer = with_client(tmp_path / "store", broken)
    assert (answer.status_code, answer.json()["code"], answer.json()["request_id"]) == (500, "internal", "find-me")
    assert answer.headers["x-request-id"] == "find-me"
    assert "secret" not in answer.text
    assert any("find-me" in record.getMessage() for record in caplog.records)


def test_a_server_without_keys_needs_no_login(tmp_path: Path) -> None:
    async def story(client: httpx.AsyncClient, _: Any) -> list[httpx.Response]:
        return [await client.get("/login"), await client.post("/login", data={"key": "x"})]

    for answer in with_client(tmp_path / "store", story):
        assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_a_login_over_tls_stays_there_and_its_server_says_that_it_wants_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("plainplainplainplain\n")
    headers = {"authorization": "Bearer plainplainplainplain"}

    async def story(client: httpx.AsyncClient, _: Any) -> tuple[httpx.Response, httpx.Response]:
        entered = await client.post("https://localhost/login", data={"key": "plainplainplainplain"})
        return entered, await client.get("/openapi.json", headers=headers)

    entered, told = with_client(tmp_path / "store", story, ServerSettings(api_key_file=keys))
    assert "secure" in entered.headers["set-cookie"].lower().split("; ")
    document = told.json()
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    asked = {path: operation["security"] for path, by in document["paths"].items() for operation in by.values()}
    assert {path for path, security in asked.items() if not security} == {
        "/assets/{name}",
        "/healthz",
        "/readyz",
        "/v2/health/live",
        "/v2/health/ready",
    }
