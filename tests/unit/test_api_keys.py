"""API keys: their file, the table of what they may, and the logins that stand for them."""

import asyncio
import json
import logging
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared.errors import DiskFullError, ForbiddenError, InputError
from teacher_server import sessions
from teacher_server.key_command import list_keys, make, revoke, rotate
from teacher_server.key_editing import prepare_key_file
from teacher_server.key_file import read_keys
from teacher_server.key_ring import KeyRing
from teacher_server.keys import ApiKey, Scope, digest_of, find_key
from teacher_server.permissions import check_permission, is_open
from teacher_server.sessions import MOST_SESSIONS, Sessions

LINE = {"name": "ada", "digest": "0" * 64, "scopes": ["infer"], "runs": None, "budget": None, "made": None}


def key_of(name: str = "ada", *scopes: Scope, runs: tuple[str, ...] | None = None) -> ApiKey:
    return ApiKey(name=name, digest=digest_of(name.encode()), scopes=frozenset(scopes), runs=runs)


def test_a_file_keeps_digests_and_what_was_typed_by_hand_and_is_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "link"
    path.symlink_to(tmp_path / "keys")
    path.write_text("# ours\nplainplainplainplain  # mine\n")
    path.chmod(0o644)
    make(name="ada", file=path, run=["b", "a", "b"], budget=0)
    make(name="bob", file=path, scope=[Scope.ADMIN])
    ada, bob = capsys.readouterr().out.split()
    assert path.is_symlink()
    assert path.read_text().startswith("# ours\nplainplainplainplain  # mine\n")
    assert ada not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "keys.lock").stat().st_mode) == 0o600
    keys = read_keys(path)
    found = [find_key(secret.encode(), keys=keys) for secret in ("plainplainplainplain", ada, bob, ada[:-1], "")]
    assert [key and key.name for key in found] == ["local", "ada", "bob", None, None]
    assert [(key.runs, key.budget) for key in found if key] == [(None, None), (("b", "a"), 0), (None, None)]
    assert [set(key.scopes) for key in found if key] == [set(Scope), {Scope.INFER, Scope.METRICS}, {Scope.ADMIN}]

    rotate(name="ada", file=path)
    fresh = capsys.readouterr().out.strip()
    keys = read_keys(path)
    assert find_key(ada.encode(), keys=keys) is None
    rotated = find_key(fresh.encode(), keys=keys)
    assert rotated is not None
    assert (rotated.name, rotated.runs, rotated.budget) == ("ada", ("b", "a"), 0)
    revoke(name="bob", file=path)
    revoke(name="local", file=path)
    capsys.readouterr()
    list_keys(file=path, as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [(key["name"], key["scopes"], key["runs"]) for key in told] == [("ada", ["infer", "metrics"], ["b", "a"])]
    assert path.read_text().startswith("# ours\n{")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("short", "line 1: a plain key is one line of 16 or more"),
        ("ä" * 20, "ASCII"),
        ("\n{", "line 2: the body"),
        (json.dumps(LINE | {"digest": "00"}), "digest"),
        (json.dumps(LINE | {"scopes": ["root"]}), "scopes.0"),
        (json.dumps(LINE | {"scopes": []}), "scopes"),
        (json.dumps(LINE | {"runs": []}), "runs"),
        (json.dumps(LINE | {"runs": ["A B"]}), "run 'A B' is not a name"),
        (json.dumps(LINE | {"budget": -1}), "budget"),
        (json.dumps(LINE | {"name": "local"}), "choose another name"),
        (json.dumps(LINE | {"name": "../x"}), "is not a name"),
        (json.dumps(LINE | {"more": 1}), "more"),
        (f"{json.dumps(LINE)}\n{json.dumps(LINE)}", "line 2: a second key is named 'ada'"),
    ],
)
def test_a_wrong_line_is_named_and_the_file_left_alone(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        make(name="bob", file=path)
    assert words in str(raised.value)
    assert path.read_text() == text


def test_a_name_is_given_once_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    make(name="ada", file=tmp_path / "keys")
    before = (tmp_path / "keys").read_bytes()
    for wrong in (
        make,
        lambda **given: rotate(**given | {"name": "bob"}),
        lambda **given: revoke(**given | {"name": "x"}),
    ):
        with pytest.raises(InputError, match="ada"):
            wrong(name="ada", file=tmp_path / "keys")
    assert (tmp_path / "keys").read_bytes() == before


def test_a_folder_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"no folder {tmp_path}/mistyped "):
        make(name="ada", file=tmp_path / "mistyped" / "keys")
    assert list(tmp_path.iterdir()) == []


def test_keys_made_at_the_same_time_are_all_there(tmp_path: Path) -> None:
    names = [f"key-{number}" for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: make(name=name, file=tmp_path / "keys"), names))
    assert sorted(key.name for key in read_keys(tmp_path / "keys")) == sorted(names)


def test_a_server_makes_a_missing_file_and_says_what_is_wrong_with_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys"
    prepare_key_file(path)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("", 0o600)
    assert "teacher-server key make" in caplog.messages[-1]
    path.write_text("plainplainplainplain\n")
    path.chmod(0o640)
    prepare_key_file(path)
    assert "chmod 600" in caplog.messages[-2]
    assert "plain keys" in caplog.messages[-1]


ROUTES = [
    # (method, path, who may: i infer, m metrics, a admin)
    ("POST", "/v1/logits", "ia"),
    ("POST", "/v1/images", "ia"),
    ("POST", "/v2/models/m/infer", "ia"),
    ("POST", "/v2/models/m/versions/1/infer", "ia"),
    ("GET", "/v1/logits/digits/train/7", "ia"),
    ("GET", "/v1/runs/paper", "ima"),
    ("GET", "/v1/runs/other", "ma"),
    ("PUT", "/v1/runs/paper", "a"),
    ("GET", "/v1/cache", "ima"),
    ("GET", "/v2", "ima"),
    ("GET", "/v2/models/m", "ima"),
    ("GET", "/v2/models/m/ready", "ima"),
    ("POST", "/v2/models/m", "a"),
    ("GET", "/v1/ledger", "ma"),
    ("HEAD", "/metrics", "ma"),
    ("GET", "/", "ma"),
    ("GET", "/docs", "ma"),
    ("GET", "/openapi.json", "ma"),
    ("GET", "/v1/status/stream", "ma"),
    ("POST", "/v1/fills", "ia"),
    ("GET", "/v1/fills/1/events", "ima"),
    ("DELETE", "/v1/fills/1", "ia"),
    ("POST", "/v1/ledger", "a"),
    ("GET", "/v1/logits", "a"),
    ("GET", "/v1/cache/", "a"),
    ("GET", "/v1/cache\n", "a"),
    ("GET", "/v1/runs/paper/more", "a"),
    ("GET", "/healthz/../v1/ledger", "a"),
    ("GET", "//v1/ledger", "a"),
    ("DELETE", "/v1/logits", "a"),
    ("GET", "/new", "a"),
]


@pytest.mark.parametrize(("method", "path", "allowed"), ROUTES)
def test_the_table_opens_what_a_scope_is_for_and_nothing_else(method: str, path: str, allowed: str) -> None:
    opened = ""
    for scope in Scope:
        try:
            check_permission(key_of("ada", scope, runs=("paper",)), method=method, path=path)
            opened += scope[0]
        except ForbiddenError as error:
            assert "'ada'" in str(error)
            assert all(needed in str(error) for needed in Scope if needed[0] in allowed[:-1])
    assert opened == allowed
    assert not is_open(path)


def test_who_may_spend_under_any_run_may_look_at_any() -> None:
    check_permission(key_of("ada", Scope.INFER), method="GET", path="/v1/runs/other")


def test_a_file_that_breaks_leaves_the_keys_and_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    make(name="ada", file=path)
    good = path.read_text()
    admitted: list[str] = []

    async def names(ring: KeyRing) -> list[str]:
        return [key.name for key in await ring.keys()]

    async def story() -> None:
        ring = KeyRing(path, admit=lambda key: admitted.append(key.name))
        path.write_text(good + "{")
        assert [await names(ring) for _ in range(3)] == [["ada"]] * 3
        path.unlink()
        assert await names(ring) == ["ada"]
        # A second later it is tried again, and not told again.
        ring._retry_s = 0.0
        assert await names(ring) == ["ada"]
        assert ring._retry_s > 0
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 2
        make(name="bob", file=path)
        assert await names(ring) == ["bob"]
        path.write_text("")
        assert await names(ring) == []

    asyncio.run(story())
    assert admitted == ["ada", "bob"]


def test_a_revoked_key_ends_also_where_the_ledger_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    make(name="ada", file=path)
    make(name="bob", file=path)
    full: list[DiskFullError] = []

    def admit(key: ApiKey) -> None:
        if full:
            raise full[0]

    async def story() -> None:
        ring = KeyRing(path, admit=admit)
        full.append(DiskFullError("no room"))
        revoke(name="ada", file=path)
        make(name="eve", file=path)
        assert [key.name for key in await ring.keys()] == ["bob"]
        full.clear()
        ring._retry_s = 0.0
        assert [key.name for key in await ring.keys()] == ["bob", "eve"]
        # All is well again: the file is not read once more.
        ring._retry_s = 0.0
        monkeypatch.setattr("teacher_server.key_ring.read_keys", lambda _: pytest.fail("read again"))
        await ring.keys()

    asyncio.run(story())


def test_a_session_ends_with_its_time_its_key_or_a_thousand_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(sessions, "monotonic", lambda: now[0])
    ada, logins = key_of("ada", Scope.METRICS), Sessions()
    known: Callable[..., Any] = lambda token, keys=(ada,): logins.key(token, keys=keys)  # noqa: E731
    token = logins.begin(ada)
    assert known(token) == ada
    assert known(token + "x") is None
    now[0] = 12 * 3600 - 1
    assert known(token) == ada
    now[0] += 1
    assert known(token) is None
    token = logins.begin(ada)
    assert known(token, keys=(key_of("bob"),)) is None
    assert known(token) is None
    first, *_, last = [logins.begin(ada) for _ in range(MOST_SESSIONS + 1)]
    assert (known(first), known(last)) == (None, ada)
    logins.end(last)
    assert known(last) is None
