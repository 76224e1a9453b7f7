"""Figures of the dashboard that only time or many watchers show: rates, quantiles, one computation for all."""

import asyncio
from pathlib import Path

import httpx
import pytest

from cache.writer import CacheWriter
from shared.fake_teacher import FakeTeacher
from teacher_server.app import create_app
from teacher_server.readings import Reading, Step, quantile
from teacher_server.settings import ServerSettings
from teacher_server.status import Status

ENDLESS = float("inf")


def reading(at_s: float, *, answers: int, free: int, **rejected: int) -> Reading:
    return Reading(
        at_s=at_s,
        answers=answers,
        free=free,
        images=0,
        forward_s=0.0,
        requests=0,
        batches={},
        latencies={},
        rejected=rejected,
    )


def test_rates_are_what_happened_between_two_readings() -> None:
    before = reading(10.0, answers=100, free=40, bad_image=1)
    step = reading(12.0, answers=160, free=90, bad_image=1, too_large=2).since(before)
    assert (step.speed.teacher_per_second, step.speed.cache_per_second) == (5.0, 25.0)
    assert step.rejected == {"bad_image": 0, "too_large": 2}
    assert Step(before, before).cache_per_second == 0


def test_a_quantile_lies_within_the_bucket_that_holds_it() -> None:
    # 10 up to 1 s, 10 more up to 2 s, 80 more up to 4 s, all cumulative as Prometheus counts.
    buckets = {1.0: 10, 2.0: 20, 4.0: 100, ENDLESS: 100}
    assert quantile(buckets, 0.05) == pytest.approx(0.5)
    assert quantile(buckets, 0.15) == pytest.approx(1.5)
    assert quantile(buckets, 0.6) == pytest.approx(3.0)
    assert quantile({1.0: 0, ENDLESS: 5}, 0.5) == 1.0
    assert quantile({1.0: 0, ENDLESS: 0}, 0.5) is None
    assert quantile({}, 0.5) is None


def test_many_who_ask_for_the_status_cost_one_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    describe = Status._describe

    def counted(status: Status, now: Reading, **ledger: object) -> object:
        made.append(now)
        return describe(status, now, **ledger)

    monkeypatch.setattr(Status, "_describe", counted)

    async def ask(writer: CacheWriter) -> list[bytes]:
        app = create_app(ServerSettings(), teacher=FakeTeacher(classes=10), datasets=[], writer=writer)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            answers = await asyncio.gather(*(client.get("/v1/status") for _ in range(20)))
            return [answer.content for answer in answers]

    with CacheWriter.open(tmp_path / "store") as writer:
        assert len(set(asyncio.run(ask(writer)))) == 1
    assert len(made) == 1
