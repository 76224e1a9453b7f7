"""A real server under many clients, kill -9 and SIGTERM: once, within budget, nothing lost."""

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
from plain_client import PlainClient, Reply, in_threads
from safetensors.numpy import save

CLIENTS = 64
EACH = 50
"""Requests of one client."""
HEADERS = {"content-type": "application/vnd.safetensors"}


def upload(*seeds: int) -> bytes:
    images = [np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8) for seed in seeds]
    return save({"images": np.stack(images)})


def ask_at_once(url: str, bodies: list[list[bytes]]) -> list[Reply]:
    """One client per list, all starting together; each sends its bodies one after another over one connection."""

    def ask(own: list[bytes]) -> list[Reply]:
        with PlainClient(url) as client:
            return [client.ask("POST", "/v1/images", body=body, headers=HEADERS) for body in own]

    return [reply for replies in in_threads(ask, bodies) for reply in replies]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sixty_four_clients_asking_for_one_image_cause_one_call(launch_server: Callable, tmp_path: Path) -> None:
    # Everyone asks before there is an answer.
    server = launch_server(tmp_path / "store", forward_s=0.3)
    replies = ask_at_once(server.url, [[upload(1)] * EACH] * CLIENTS)

    assert {reply.status for reply in replies} == {200}
    assert len({json.dumps(reply.json()["logits"]) for reply in replies}) == 1
    assert sum(reply.json()["teacher_calls"] for reply in replies) == 1
    counts = server.ledger()
    assert (counts["teacher_calls"], counts["attempts"]) == (1, 1)
    assert counts["hits"] + counts["joined"] == EACH * CLIENTS - 1


def test_a_budget_is_used_up_exactly_and_stays_used_after_a_restart(launch_server: Callable, tmp_path: Path) -> None:
    server = launch_server(tmp_path / "store", "--budget", "100")
    bodies = [[upload(1000 * client + number) for number in range(EACH)] for client in range(CLIENTS)]
    replies = ask_at_once(server.url, bodies)
    server.stop()
    server = launch_server(tmp_path / "store")
    late = httpx.post(f"{server.url}/v1/images", content=upload(99_999), headers=HEADERS)

    statuses = [reply.status for reply in replies]
    assert (statuses.count(200), statuses.count(402)) == (100, EACH * CLIENTS - 100)
    refused = next(reply for reply in replies if reply.status == 402)
    assert refused.json() | {"error": "", "request_id": ""} == {
        "error": "",
        "code": "budget_exhausted",
        "request_id": "",
        "needed": 1,
        "remaining": 0,
    }
    assert late.status_code == 402
    assert (server.ledger()["teacher_calls"], server.ledger()["attempts"]) == (100, 100)


def test_a_request_over_budget_computes_nothing(launch_server: Callable, tmp_path: Path) -> None:
    server = launch_server(tmp_path / "store", "--budget", "3")
    refused = httpx.post(f"{server.url}/v1/images", content=upload(1, 2, 3, 4), headers=HEADERS)
    accepted = httpx.post(f"{server.url}/v1/images", content=upload(1, 2, 3), headers=HEADERS)

    assert (refused.status_code, refused.json()["needed"], refused.json()["remaining"]) == (402, 4, 3)
    assert accepted.json()["teacher_calls"] == 3


def test_after_kill_9_no_answered_image_is_computed_again(launch_server: Callable, tmp_path: Path) -> None:
    server = launch_server(tmp_path / "store", "--batch", "8")
    answered: dict[int, list[float]] = {}

    def ask(client: int) -> None:
        with httpx.Client(base_url=server.url, timeout=30) as http:
            for seed in range(client, 100_000, 8):
                try:
                    response = http.post("/v1/images", content=upload(seed), headers=HEADERS)
                except httpx.TransportError:
                    return
                answered[seed] = response.json()["logits"][0]

    clients = [threading.Thread(target=ask, args=(client,)) for client in range(8)]
    for thread in clients:
        thread.start()
    wait_for(lambda: len(answered) >= 100)
    server.stop(signal.SIGKILL)
    for thread in clients:
        thread.join()
    server = launch_server(tmp_path / "store")
    seeds = sorted(answered)
    again = httpx.post(f"{server.url}/v1/images", content=upload(*seeds), headers=HEADERS, timeout=60).json()
    counts = server.ledger()

    assert again["teacher_calls"] == 0
    assert again["logits"] == [answered[seed] for seed in seeds]
    assert counts["attempts"] >= counts["teacher_calls"] >= len(answered)


def test_sigterm_answers_and_keeps_what_was_asked(launch_server: Callable, tmp_path: Path) -> None:
    server = launch_server(tmp_path / "store", forward_s=1.0)
    responses: list[httpx.Response] = []
    body = upload(1, 2, 3)
    asking = threading.Thread(
        target=lambda: responses.append(
            httpx.post(f"{server.url}/v1/images", content=body, headers=HEADERS, timeout=30)
        )
    )
    asking.start()
    wait_for(lambda: server.ledger()["attempts"] == 3)
    assert server.stop(signal.SIGTERM) == 0
    asking.join()
    server = launch_server(tmp_path / "store")
    again = httpx.post(f"{server.url}/v1/images", content=body, headers=HEADERS, timeout=30).json()

    assert responses[0].status_code == 200
    assert again["teacher_calls"] == 0
    assert again["logits"] == responses[0].json()["logits"]


def test_a_client_that_leaves_changes_nothing(launch_server: Callable, tmp_path: Path) -> None:
    server = launch_server(tmp_path / "store", "--max-delay-ms", "300")
    impatient = httpx.Timeout(10, read=0.05)
    try:
        httpx.post(f"{server.url}/v1/images", content=upload(1), headers=HEADERS, timeout=impatient)
    except httpx.TimeoutException:
        pass
    else:
        raise AssertionError("the client was meant to leave before the answer")
    wait_for(lambda: server.ledger()["teacher_calls"] == 1)
    again = httpx.post(f"{server.url}/v1/images", content=upload(1), headers=HEADERS, timeout=30).json()

    assert (again["cached"], again["teacher_calls"]) == ([True], 0)
    assert server.ledger()["teacher_calls"] == 1
