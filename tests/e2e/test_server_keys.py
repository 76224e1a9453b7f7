"""A real server and its API keys: who may ask what, under which run and how often, and the login of a browser."""

import io
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from shared.client import TeacherClient
from shared.command import run_command
from shared.errors import UnauthorizedError
from teacher_server.cli import app

OPEN = {"/healthz": "live", "/v2/health/live": "live", "/readyz": "ready", "/v2/health/ready": "ready"}
BEHIND_KEYS = ("/", "/docs", "/v1/ledger", "/v1/cache", "/metrics", "/openapi.json", "/v1/nothing", "/v2")
BEHIND_KEYS += ("/healthz/../v1/ledger", "/v2/models/x/infer", "/login/", "/assets", "/nothing")


@dataclass(frozen=True)
class Keys:
    """A server, and the command that makes its keys."""

    server: Any
    file: Path
    run: Callable[..., str]
    client: httpx.Client

    def make(self, name: str, *options: str) -> str:
        """A new key."""
        return self.run("make", name, *options, "--file", str(self.file))

    def rotate(self, name: str) -> str:
        """Another key of that name."""
        return self.run("rotate", name, "--file", str(self.file))

    def revoke(self, name: str) -> None:
        """End a key."""
        self.run("revoke", name, "--file", str(self.file))

    def ask(self, key: str, method: str, path: str, **rest: Any) -> httpx.Response:
        """Any request with a key."""
        headers = {"authorization": f"Bearer {key}", **rest.pop("headers", {})}
        return self.client.request(method, self.server.url + path, headers=headers, **rest)

    def rows(self, key: str, rows: list[int], **fields: object) -> httpx.Response:
        """``POST /v1/logits``."""
        return self.ask(key, "POST", "/v1/logits", json={"dataset": "pictures/train", "rows": rows, **fields})


@pytest.fixture(scope="module")
def keys(
    launch_server: Callable, make_images: Callable, make_key: Callable, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Keys]:
    """A server that was started without any key; none is ever in its log."""
    folder = tmp_path_factory.mktemp("keys")
    pictures = make_images(folder / "pictures", count=40)
    file, made = folder / "own" / "keys", []
    # So slow that a fill of many views is still at work when a key ends.
    options = ("--dataset", f"folder:{pictures}", "--api-key-file", str(file), "--batch", "8")
    server = launch_server(folder / "store", *options, forward_s=0.02)
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("", 0o600)
    assert "teacher-server key make" in server.log.read_text()

    def run(*arguments: str) -> str:
        made.append(make_key(*arguments))
        return made[-1]

    with httpx.Client(timeout=30) as client:
        yield Keys(server=server, file=file, run=run, client=client)
    log = server.log.read_text()
    # Who was refused is told by name.
    assert "code=forbidden" in next(line for line in log.splitlines() if "owner=infer" in line and "status=403" in line)
    assert [key for key in made if key and key in log] == []
    assert "Traceback" not in log


def refused(response: httpx.Response) -> bool:
    return (response.status_code, response.json()["code"], response.headers["www-authenticate"]) == (
        401,
        "unauthorized",
        "Bearer",
    )


def test_only_a_key_of_the_file_may_ask_and_changes_count_at_once(keys: Keys) -> None:
    url = keys.server.url
    for path, told in OPEN.items():
        assert httpx.get(url + path).json() == {told: True}
    assert refused(httpx.get(f"{url}/v1/ledger"))
    key = keys.make("first", "--scope", "admin")
    assert keys.ask(key, "GET", "/v1/ledger").status_code == 200
    wrong: list[Any] = [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Bearer {key}x"},
        {"authorization": key},
        {"authorization": "Bearer " + "x" * 10_000},
        {"authorization": "Bearer \xe4".encode("latin-1")},
        {"cookie": f"teachonce_session={key}"},
        [("authorization", f"Bearer {key}"), ("authorization", f"Bearer {key}")],
    ]
    with httpx.Client(base_url=url) as client:
        for path in BEHIND_KEYS:
            for headers in wrong:
                assert refused(client.get(path, headers=headers)), (path, headers)
        for host in ("localhost/v2/health/live?", "evil.com"):
            assert client.get("/v1/ledger", headers={"host": host}).status_code == 400
        for method in ("OPTIONS", "PUT", "DELETE", "TRACE"):
            assert refused(client.request(method, "/v1/logits", headers={"origin": "http://evil.com"}))
    fresh = keys.rotate("first")
    assert refused(keys.ask(key, "GET", "/v1/ledger"))
    assert keys.ask(fresh, "GET", "/v1/ledger").status_code == 200
    with TeacherClient(url, api_key=fresh) as asker, TeacherClient(url) as nobody:
        assert asker.ledger()["attempts"] == 0
        with pytest.raises(UnauthorizedError, match="Authorization: Bearer"):
            nobody.ledger()
    keys.revoke("first")
    assert refused(keys.ask(fresh, "GET", "/v1/ledger"))


def test_a_key_does_what_its_scopes_are_for(keys: Keys) -> None:
    made = {scope: keys.make(scope, "--scope", scope) for scope in ("infer", "metrics", "admin")}
    expected = {
        ("GET", "/metrics"): (403, 200, 200),
        ("GET", "/v1/ledger"): (403, 200, 200),
        ("GET", "/openapi.json"): (403, 200, 200),
        ("GET", "/v1/cache"): (200, 200, 200),
        ("GET", "/v1/runs/default"): (200, 200, 200),
        ("PUT", "/v1/runs/new"): (403, 403, 200),
        ("DELETE", "/v1/runs/new"): (403, 403, 405),
        ("GET", "/v1/nothing"): (404, 404, 404),
    }
    for (method, path), statuses in expected.items():
        body = {"json": {"budget": 5}} if method == "PUT" else {}
        answers = [keys.ask(key, method, path, **body) for key in made.values()]
        assert tuple(answer.status_code for answer in answers) == statuses, path
        for answer in answers:
            assert answer.status_code != 403 or answer.json()["code"] == "forbidden"
    assert "needs metrics;" in keys.ask(made["infer"], "GET", "/metrics").json()["error"]
    assert [keys.rows(key, [0]).status_code for key in made.values()] == [200, 403, 200]
    owners = keys.ask(made["metrics"], "GET", "/v1/ledger").json()["owners"]
    assert [owners[name]["teacher_calls"] for name in ("infer", "admin")] == [1, 0]
    assert owners["admin"]["hits"] == owners["admin"]["charged"] == 1


def test_a_key_spends_under_its_own_runs_whatever_the_route(keys: Keys) -> None:
    key = keys.make("runs", "--run", "mine", "--run", "ours")
    picture = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(picture, format="PNG")
    teacher = keys.ask(key, "GET", "/v1/cache").json()["teachers"][0]["id"]

    def infer(run: str | None) -> httpx.Response:
        parameters = {"dataset": "pictures/train"} | ({} if run is None else {"run": run})
        tensor = {"name": "row", "datatype": "INT64", "shape": [1], "data": [12]}
        body = {"parameters": parameters, "inputs": [tensor]}
        return keys.ask(key, "POST", f"/v2/models/{teacher}/infer", json=body)

    def query(method: str, path: str, run: str | None, **body: Any) -> httpx.Response:
        return keys.ask(key, method, path, params={} if run is None else {"run": run}, **body)

    # In this order: the last one reads what the first had computed.
    ways: list[Callable[[str | None], httpx.Response]] = [
        lambda run: keys.rows(key, [11], **({} if run is None else {"run": run})),
        infer,
        lambda run: query("POST", "/v1/images", run, content=picture.getvalue(), headers={"content-type": "image/png"}),
        lambda run: query("GET", "/v1/logits/pictures/train/11", run),
    ]
    for way in ways:
        for run in ("default", "nobody", ""):
            answer = way(run)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
            assert "mine, ours" in answer.json()["error"]
        assert [way(run).status_code for run in (None, "ours")] == [200, 200]
    runs = keys.ask(key, "GET", "/v1/ledger").json()["runs"]
    assert [runs[name]["teacher_calls"] for name in ("mine", "ours")] == [3, 0]
    assert [runs[name]["charged"] for name in ("mine", "ours")] == [3, 3]


def test_the_fill_command_spends_under_the_first_run_of_its_key(keys: Keys, capsys: pytest.CaptureFixture[str]) -> None:
    key = keys.make("filler", "--scope", "infer", "--run", "night")
    command = ["fill", "--server", keys.server.url, "--api-key", key, "--dataset", "pictures"]

    def fill(*options: str) -> int:
        with pytest.raises(SystemExit) as ended:
            run_command(app, [*command, *options])
        return int(str(ended.value.code))

    assert fill("--sample", "3", "--views", "9") == 0
    assert "no budget" not in capsys.readouterr().err
    assert fill("--sample", "3", "--views", "9", "--run", "night") == 0
    assert capsys.readouterr().out.startswith("3 rows, 0 teacher calls, 3 hits")
    with TeacherClient(keys.server.url, api_key=key) as client:
        assert [(status.run, status.done) for status in client.fills()] == [("night", 3)] * 2
        assert client.run("night")["teacher_calls"] == 3


def test_a_revoked_key_spends_no_more_and_no_key_takes_all_places(
    launch_server: Callable, make_images: Callable, make_key: Callable, tmp_path: Path
) -> None:
    file, pictures = tmp_path / "keys", make_images(tmp_path / "pictures", count=40)
    greedy, other = (make_key("make", name, "--scope", "infer", "--file", str(file)) for name in ("greedy", "other"))
    boss = make_key("make", "boss", "--scope", "admin", "--file", str(file))
    options = ("--dataset", f"folder:{pictures}", "--api-key-file", str(file), "--batch", "2")
    server = launch_server(tmp_path / "store", *options, forward_s=0.05)
    watchers: list[httpx.Response] = []
    with (
        TeacherClient(server.url, api_key=greedy) as first,
        TeacherClient(server.url, api_key=other) as second,
        TeacherClient(server.url, api_key=boss) as admin,
        httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {other}"}, timeout=30) as raw,
        ExitStack() as streams,
    ):
        for _ in range(10):
            first.start_fill("pictures/train", views="1-90")
        body = {"dataset": "pictures/train"}
        more = httpx.post(f"{server.url}/v1/fills", json=body, headers={"authorization": f"Bearer {greedy}"})
        states = [status.state for status in first.fills()]
        assert (states.count("running"), states.count("queued"), more.status_code) == (2, 8, 503)
        assert "8 of them for greedy" in more.json()["error"]

        free = second.start_fill("pictures/train", views="100-110").id
        watched = admin.watch_fill(free)
        assert any(status.state == "running" for status in watched)
        for _ in range(65):
            watchers.append(streams.enter_context(raw.stream("GET", f"/v1/fills/{free}/events")))
        assert [one.status_code for one in watchers] == [200] * 64 + [503]
        assert watchers[-1].headers["retry-after"].isdigit()
        # Nobody asks anything meanwhile.
        make_key("revoke", "other", "--file", str(file))
        *_, last = watched
    assert last.error is not None
    assert (last.state, last.error.code) == ("cancelled", "unauthorized")
    assert "'other' was revoked" in last.error.error


def test_the_budget_of_a_key_is_exact_under_concurrency_and_after_a_restart(
    launch_server: Callable, make_images: Callable, make_key: Callable, tmp_path: Path
) -> None:
    file, pictures = tmp_path / "keys", make_images(tmp_path / "pictures", count=160, size=2)
    options = ("--dataset", f"folder:{pictures}", "--api-key-file", str(file))
    secrets = [make_key("make", name, "--budget", "30", "--file", str(file)) for name in ("ada", "bob")]
    client = httpx.Client(timeout=30)

    def start() -> Keys:
        return Keys(server=launch_server(tmp_path / "store", *options), file=file, run=make_key, client=client)

    def owner(name: str) -> tuple[int, ...]:
        counts = keys.ask(secrets[1], "GET", "/v1/ledger").json()["owners"][name]
        return tuple(counts[column] for column in ("budget", "attempts", "teacher_calls", "remaining"))

    def refusal(rows: list[int]) -> tuple[int, int, int]:
        answer = keys.rows(secrets[0], rows)
        body = answer.json()
        assert "key owner ada's budget" in body["error"]
        return answer.status_code, body["needed"], body["remaining"]

    keys = start()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda row: keys.rows(secrets[0], [row]).status_code, range(160)))
    assert sorted(answers) == [200] * 30 + [402] * 130
    assert owner("ada") == (30, 30, 30, 0)
    left = [row for row, status in enumerate(answers) if status == 402]
    secrets[0] = keys.rotate("ada")
    assert refusal(left[:1]) == (402, 1, 0)
    assert keys.rows(secrets[1], left[:1]).status_code == 200
    # Cached by now, and answers that are there cost nothing.
    assert keys.rows(secrets[0], left[:1]).status_code == 200
    keys.server.stop()

    # Less than was used already: nothing more, and no reason not to start.
    file.write_text(file.read_text().replace('"budget": 30', '"budget": 20', 1))
    keys = start()
    assert refusal(left[1:3]) == (402, 2, 0)
    assert owner("ada") == (20, 30, 30, 0)
    file.write_text(file.read_text().replace('"budget": 20', '"budget": 31', 1))
    assert refusal(left[1:3]) == (402, 2, 1)
    assert keys.rows(secrets[0], left[1:2]).status_code == 200
    assert owner("ada") == (31, 31, 31, 0)
    client.close()


FORM = "application/x-www-form-urlencoded"
HTML = {"accept": "text/html,application/xhtml+xml"}


def test_a_browser_logs_in_looks_and_is_out_when_its_key_ends(keys: Keys) -> None:
    key, infer = keys.make("web"), keys.make("no-eyes", "--scope", "infer")
    with httpx.Client(base_url=keys.server.url, headers=HTML) as browser:
        for path in ("/", "/docs"):
            sent = browser.get(path)
            assert (sent.status_code, sent.headers["location"]) == (303, "/login")
        assert browser.get("/favicon.ico").headers["content-type"].startswith("image/svg+xml")
        page = browser.get("/login")
        assert page.status_code == 200
        assert 'autocomplete="current-password"' in page.text
        for wrong, status in (("wrong", 401), ("", 401), ("\xe4<b>", 401), (infer, 403)):
            again = browser.post("/login", data={"key": wrong})
            assert (again.status_code, again.headers["content-type"]) == (status, "text/html; charset=utf-8")
            assert 'name="key"' in again.text
            assert wrong == "" or wrong not in again.text
        for answer in (page, again):
            policy = answer.headers["content-security-policy"].split("; ")
            assert {"default-src 'self'", "frame-ancestors 'none'", "form-action 'self'"} <= set(policy)
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] == "no-store"
        for body in (b"key=" + b"x" * 5000, (b"key=" + b"x" * 5000 for _ in range(2))):
            too_much = browser.post("/login", content=body, headers={"content-type": FORM})
            assert (too_much.status_code, "more than this path takes" in too_much.json()["error"]) == (413, True)
        assert browser.post("/login", json={"key": key}).status_code == 415
        assert browser.post("/login", data={"key": key}, headers={"sec-fetch-site": "cross-site"}).status_code == 403
        assert not browser.cookies

        entered = browser.post("/login", data={"key": f" {key} "})
        assert (entered.status_code, entered.headers["location"]) == (303, "/")
        cookie = entered.headers["set-cookie"].lower().split("; ")
        assert cookie[0].startswith("teachonce_session=")
        assert len(cookie[0]) > 18 + 40
        assert key.lower() not in cookie[0]
        assert set(cookie[1:]) == {"httponly", "max-age=43200", "path=/", "samesite=strict"}

        assert browser.get("/v1/ledger").status_code == 200
        assert browser.get("/").status_code not in (303, 401, 403)
        forbidden = [
            browser.post("/v1/logits", json={"dataset": "pictures/train", "rows": [39]}),
            browser.put("/v1/runs/default", json={"budget": 0}),
        ]
        assert [(one.status_code, one.json()["code"]) for one in forbidden] == [(403, "forbidden")] * 2
        assert browser.get("/v1/nothing").status_code == 404
        assert refused(browser.get("/v1/ledger", headers={"authorization": "Bearer wrong"}))

        token = browser.cookies["teachonce_session"]
        left = browser.post("/logout")
        assert (left.status_code, left.headers["location"]) == (303, "/login")
        assert not browser.cookies
        assert refused(browser.get("/v1/ledger", headers={"cookie": f"teachonce_session={token}"}))

        browser.post("/login", data={"key": key})
        assert browser.get("/v1/ledger").status_code == 200
        key = keys.rotate("web")
        assert refused(browser.get("/v1/ledger"))
        assert browser.get("/").headers["location"] == "/login"
        browser.post("/login", data={"key": key})
        assert browser.get("/v1/ledger").status_code == 200
        keys.revoke("web")
        assert refused(browser.get("/v1/ledger"))


def test_a_stream_ends_with_the_key_or_the_session_that_it_was_asked_with(keys: Keys) -> None:
    url, admin, ending = keys.server.url, keys.make("stays", "--scope", "admin"), keys.make("ends")
    fill = keys.ask(ending, "POST", "/v1/fills", json={"dataset": "pictures/train", "views": "1-100"}).json()["id"]
    header = {"authorization": f"Bearer {ending}"}
    with httpx.Client(base_url=url, timeout=10) as browser, ExitStack() as streams:

        def watch(path: str, headers: dict[str, str]) -> Iterator[str]:
            lines = streams.enter_context(browser.stream("GET", path, headers=headers)).iter_lines()
            assert any(line.startswith("data: ") for line in lines)
            return lines

        browser.post("/login", data={"key": admin})
        cookie = {"cookie": f"teachonce_session={browser.cookies['teachonce_session']}"}
        watched = [
            watch("/v1/status/events", header),
            watch(f"/v1/fills/{fill}/events", header),
            watch("/v1/status/events", cookie),
        ]
        keys.revoke("ends")
        browser.post("/logout")
        # What was on its way before is read; then nothing more.
        for lines in watched:
            assert len(list(islice((line for line in lines if line.startswith("data: ")), 2))) <= 1
    state = keys.ask(admin, "DELETE", f"/v1/fills/{fill}").json()["state"]
    assert state == "cancelled"
