"""What the dashboard reads: the status, its stream of events, coverage, and how the pages are sent."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic
from typing import Any

import httpx
import pytest

from shared.status_schemas import CoverageAnswer, StatusAnswer


@pytest.fixture(scope="module")
def server(
    launch_server: Callable[..., Any], make_images: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """Forty images in two runs, one with a budget; a fake teacher that takes 20 ms a batch."""
    folder = tmp_path_factory.mktemp("status")
    pictures = make_images(folder / "pictures", count=40)
    yield launch_server(
        folder / "store", "--dataset", f"folder:{pictures}", "--run", "paper=30", "--budget", "100", forward_s=0.02
    )


def status(server: Any) -> dict[str, Any]:
    answer = httpx.get(f"{server.url}/v1/status")
    assert answer.status_code == 200
    told: dict[str, Any] = StatusAnswer.model_validate(answer.json(), strict=True).model_dump()
    return told


def events(reply: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in reply.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_the_status_tells_what_was_paid_what_is_left_and_what_was_saved(server: Any) -> None:
    assert [server.ask(list(rows), run="paper").status_code for rows in (range(20), range(20), range(40))] == [
        200,
        200,
        402,
    ]
    with httpx.stream("GET", f"{server.url}/v1/status/events", timeout=10) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        told = next(one for one in events(reply) if one["ledger"]["hits"] == 20)
    now = status(server)
    assert told["ledger"] == now["ledger"] == server.ledger()
    assert (now["ledger"]["remaining"], now["ledger"]["runs"]["paper"]["remaining"]) == (80, 10)
    saved = now["saved"]
    assert (saved["calls"], saved["share"]) == (20, 0.5)
    # One batch of 20 images, which took 20 ms and a little.
    assert 0.001 <= saved["seconds_per_call"] < 0.01
    assert saved["seconds"] == pytest.approx(20 * saved["seconds_per_call"])
    assert [(bar["first"], bar["last"], bar["batches"]) for bar in now["load"]["batch_sizes"]] == [(17, 32, 1)]
    assert 20 <= now["load"]["p99_ms"] < 5000
    assert now["datasets"] == [
        {"name": "pictures/train", "rows": 40, "slots": 20, "outputs": ["logits", "features"]},
    ]
    refused = {one["reason"]: one["count"] for one in now["rejected"]}
    assert refused == {"budget_exhausted": 1}


def test_coverage_counts_rows_by_view_and_block(server: Any) -> None:
    for rows, view in ((list(range(20)), 0), ([0, 1, 39], 3)):
        assert server.ask(rows, view=view).status_code == 200
    url = f"{server.url}/v1/cache/pictures/train/coverage"
    told = CoverageAnswer.model_validate(httpx.get(f"{url}?blocks=8").json(), strict=True)
    assert (told.dataset, told.rows, told.blocks, told.views, told.more_views) == ("pictures/train", 40, 8, [0, 3], 0)
    assert told.cached == [20, 3]
    assert told.present == [[1, 1, 1, 1, 0, 0, 0, 0], [0.4, 0, 0, 0, 0, 0, 0, 0.2]]
    one = httpx.get(f"{url}?view=3&blocks=1024").json()
    assert (one["blocks"], one["views"], one["cached"]) == (40, [3], [3])
    wrong = {
        "?view=163": 400,
        "?blocks=0": 400,
        "?blocks=1025": 400,
        "?view=-1": 400,
        "?veiw=1": 400,
        "?view=" + "9" * 18: 400,
    }
    assert {query: httpx.get(url + query).status_code for query in wrong} == wrong
    unknown = httpx.get(f"{server.url}/v1/cache/uploads/images/coverage")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "unknown_name")


def test_as_many_may_watch_as_there_are_places_and_who_leaves_makes_room(server: Any) -> None:
    url = f"{server.url}/v1/status/events"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    with httpx.Client(timeout=10, limits=limits) as client, ExitStack() as watchers:
        for _ in range(64):
            assert watchers.enter_context(client.stream("GET", url)).status_code == 200
        refused = client.get(url)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert refused.headers["retry-after"] == "1"
        watchers.close()
        for _ in range(100):
            with client.stream("GET", url) as reply:
                if reply.status_code == 200:
                    break
        assert reply.status_code == 200


def test_pages_come_with_a_strict_policy_and_nothing_else_is_served(server: Any) -> None:
    for path in ("/", "/docs", "/assets/style.css", "/assets/dashboard.js", "/assets/favicon.svg"):
        page = httpx.get(server.url + path)
        policy = page.headers["content-security-policy"]
        assert page.status_code == 200
        assert "default-src 'self'; frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        again = httpx.get(server.url + path, headers={"if-none-match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for name in ("routes_pages.py", "index.html", "..%2F__init__.py", "%2e%2e/app.py", "style.css/"):
        missing = httpx.get(f"{server.url}/assets/{name}")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/json"), name


def test_watchers_do_not_hold_up_the_drain(server: Any) -> None:
    with httpx.stream("GET", f"{server.url}/v1/status/events", timeout=10) as reply:
        lines = reply.iter_lines()
        assert next(line for line in lines if line.startswith("data: "))
        began_s = monotonic()
        assert server.stop() == 0
        assert monotonic() - began_s < 5
        assert "event: stopping" in lines
