"""What a real server tells Prometheus and its log, with keys, from a configuration file, and after a restart."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families


def test_metrics_count_as_the_ledger_does_also_after_a_restart(
    launch_server: Callable, make_key: Callable, tmp_path: Path, pictures: Path
) -> None:
    keys, file = tmp_path / "keys", tmp_path / "server.toml"
    file.write_text(f'dataset = "folder:{pictures}"\nlog-format = "json"\nrun = ["paper=8"]\n')
    options = ("--config", str(file), "--api-key-file", str(keys))
    key = make_key("make", "ada", "--budget", "7", "--file", str(keys))
    server = launch_server(tmp_path / "store", *options)
    headers = {"authorization": f"Bearer {key}"}

    def ask(rows: list[int]) -> int:
        body = {"dataset": "pictures/train", "rows": rows, "run": "paper"}
        return httpx.post(f"{server.url}/v1/logits", json=body, headers=headers).status_code

    def scrape() -> dict[tuple[str, ...], float]:
        page = httpx.get(f"{server.url}/metrics", headers=headers)
        assert page.status_code == 200
        families = text_string_to_metric_families(page.text)
        return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}

    def ledger_and_metrics() -> tuple[list[float], list[float]]:
        ledger = httpx.get(f"{server.url}/v1/ledger", headers=headers).json()
        told = [ledger[name] for name in ("attempts", "teacher_calls", "hits", "joined", "teacher_calls")]
        seen = scrape()
        names = [("teacher_attempts_total",), ("teacher_calls_total",)]
        names += [("teacher_images_total", source) for source in ("hit", "joined", "computed")]
        return told, [seen[name] for name in names]

    refused = httpx.get(f"{server.url}/metrics")
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert [ask(rows) for rows in ([0, 1, 2], [2, 3, 3, 4], [0, 1], [5, 6, 7, 8])] == [200, 200, 200, 402]
    told, seen = ledger_and_metrics()
    assert told == seen
    assert told[:2] == [5, 5]
    now = scrape()
    assert (now["teacher_budget_limit", "paper"], now["teacher_budget_used", "paper"]) == (8, 5)
    assert (now["teacher_owner_budget_limit", "ada"], now["teacher_owner_budget_used", "ada"]) == (7, 5)
    assert now["teacher_owner_calls_total", "ada"] == 5
    # Four answers, the ledger and two scrapes before this one; who showed no key has no name.
    assert now["teacher_owner_requests_total", "ada"] == 6
    assert ("teacher_owner_requests_total", "local") not in now
    assert now["teacher_requests_total", "200", "POST", "/v1/logits"] == 3
    assert now["teacher_rejected_total", "budget_exhausted"] == now["teacher_rejected_total", "unauthorized"] == 1
    assert server.stop() == 0

    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    asked = [line for line in lines if line.get("route") == "/v1/logits"]
    assert [(line["status"], line["images"], line.get("teacher_calls")) for line in asked] == [
        (200, 3, 3),
        (200, 4, 2),
        (200, 2, 0),
        (402, 4, None),
    ]
    assert asked[-1]["code"] == "budget_exhausted"
    assert {line["owner"] for line in asked} == {"ada"}
    assert len({line["request_id"] for line in asked}) == 4
    assert key not in server.log.read_text()

    server = launch_server(tmp_path / "store", *options)
    assert ask([0]) == 200
    again, seen = ledger_and_metrics()
    assert again == seen
    assert again[:3] == [5, 5, told[2] + 1]
    assert scrape()["teacher_requests_total", "200", "POST", "/v1/logits"] == 1
