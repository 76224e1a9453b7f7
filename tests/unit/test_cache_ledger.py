"""The ledger: budgets of runs and of key owners, the history of calls, and ledgers that an earlier version wrote."""

import json
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from toy_cache import BEGAN_S, TEACHER, TRAIN, commit, model_call
from typer.testing import CliRunner

from cache.backup import back_up
from cache.cli import app
from cache.history_report import describe_history
from cache.info import describe_cache
from cache.merge import merge_caches
from cache.writer import CacheHandle, CacheWriter
from shared.errors import BudgetConflictError, BudgetExhaustedError, InputError, UnknownNameError

FORMER_TABLES = """
BEGIN;
ALTER TABLE counts RENAME TO later_counts;
ALTER TABLE charges RENAME TO later_charges;
CREATE TABLE counts (
    run TEXT NOT NULL, cache INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    teacher_calls INTEGER NOT NULL DEFAULT 0, hits INTEGER NOT NULL DEFAULT 0, joined INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (run, cache)) WITHOUT ROWID;
CREATE TABLE charges (
    run TEXT NOT NULL, cache INTEGER NOT NULL, chunk INTEGER NOT NULL, bits BLOB NOT NULL,
    PRIMARY KEY (run, cache, chunk)) WITHOUT ROWID;
INSERT INTO counts SELECT run, cache, attempts, teacher_calls, hits, joined FROM later_counts;
INSERT INTO charges SELECT run, cache, chunk, bits FROM later_charges;
DROP TABLE later_counts;
DROP TABLE later_charges;
DROP TABLE owners;
DROP TABLE environments;
DROP TABLE calls;
DELETE FROM meta WHERE name = 'ledger';
COMMIT;
"""
"""Makes a ledger of version 1 of one of version 2, the tables being those that version 1 made."""


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def writer(store: Path) -> Iterator[CacheWriter]:
    with CacheWriter.open(store) as opened:
        yield opened


@pytest.fixture
def train(writer: CacheWriter) -> CacheHandle:
    return writer.open_cache(TEACHER, TRAIN)


def rewrite(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path / "ledger.sqlite3")) as database:
        database.executescript(script)
    (path / "ledger.crc32c.json").unlink()


def logit_cache(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.exception
    return done.stdout


# Owners


def test_a_key_owners_budget_bounds_all_of_its_runs_and_nobody_else(writer: CacheWriter, train: CacheHandle) -> None:
    writer.set_owner_budget("alice", 10)
    writer.ensure_run("one", 100)
    writer.reserve(run="one", owner="alice", cache=train, calls=7)
    with pytest.raises(BudgetExhaustedError, match="3 of key owner alice's budget of 10 remain; raise its budget by 1"):
        writer.reserve(run="default", owner="alice", cache=train, calls=4)
    assert (writer.remaining("one", owner="alice"), writer.remaining("one")) == (3, 93)
    writer.reserve(run="one", owner="bob", cache=train, calls=20)
    with pytest.raises(BudgetConflictError, match="key owner alice has made; use 7 or more"):
        writer.set_owner_budget("alice", 6)
    with pytest.raises(UnknownNameError, match="is not a name"):
        writer.set_owner_budget("Alice Smith", 6)
    writer.set_owner_budget("alice", 12)
    writer.reserve(run="default", owner="alice", cache=train, calls=5)
    # Everyone's budget is above each one's.
    writer.set_total_budget(33)
    with pytest.raises(BudgetExhaustedError, match="1 of the ledger's budget of 33 remain"):
        writer.reserve(run="one", owner="bob", cache=train, calls=2)


def test_runs_and_owners_are_counted_apart_and_charged_once_each(store: Path) -> None:
    with CacheWriter.open(store) as writer:
        train = writer.open_cache(TEACHER, TRAIN)
        writer.ensure_run("study")
        commit(writer, train, [1, 2, 3], run="study", owner="alice")
        commit(writer, train, [4], run="default", owner="alice")
        places = [train.place_of(row) for row in (1, 2, 4)]
        writer.note_hits(run="study", owner="bob", cache=train, places=[place for place in places if place], joined=1)
        writer.set_owner_budget("alice", 9)
        before = writer.ledger_counts()
    assert {name: run["charged"] for name, run in before["runs"].items()} == {"default": 1, "study": 4}
    assert before["owners"] == {
        "alice": {
            "budget": 9, "remaining": 5, "attempts": 4, "teacher_calls": 4, "hits": 0, "joined": 0, "charged": 4
        },
        "bob": {
            "budget": None, "remaining": None, "attempts": 0, "teacher_calls": 0, "hits": 2, "joined": 1, "charged": 3
        },
        "local": {
            "budget": None, "remaining": None, "attempts": 0, "teacher_calls": 0, "hits": 0, "joined": 0, "charged": 0
        },
    }  # fmt: skip
    with CacheWriter.open(store) as writer:
        assert writer.ledger_counts() == before
    shown = describe_history(store)
    assert shown["owners"] == before["owners"]
    assert (shown["runs"]["study"]["hits"], shown["runs"]["study"]["joined"]) == (2, 1)
    # A copy without the ledger knows what the last fold knew.
    root = json.loads((store / "data.zarr" / "zarr.json").read_text())
    assert root["attributes"]["ledger"]["owners"] == before["owners"]


def test_a_budget_is_lowered_or_lifted_only_with_a_word_and_never_by_a_restart(
    writer: CacheWriter, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        writer.raise_budget("paper", 100)
        writer.raise_budget("paper", 200)
        assert caplog.messages == []
        # The command line of a server that is started again.
        writer.raise_budget("paper", 100)
        assert writer.ledger_counts()["runs"]["paper"]["budget"] == 200
        writer.raise_budget("paper", None)
        writer.set_budget("paper", 50)
        writer.set_budget("paper", None)
    assert caplog.messages == [
        "run paper keeps its budget of 200, larger than the 100 given",
        "run paper: its budget is lowered from 200 to 50",
        "run paper: its budget of 50 is lifted",
    ]


# History


def test_the_history_tells_batches_in_the_transaction_of_their_answers(
    writer: CacheWriter, train: CacheHandle, store: Path
) -> None:
    writer.ensure_run("study")
    commit(writer, train, [1, 2, 3], run="study", owner="alice")
    statements: list[str] = []
    writer._ledger.database.set_trace_callback(lambda text: statements.append(text.split()[0]))
    commit(writer, train, [4, 5], run="default")
    writer._ledger.database.set_trace_callback(None)
    # To reserve, and to keep answers, counts and history together.
    assert statements.count("COMMIT") == 2
    # A batch without an answer waits for the next transaction.
    failed = writer.reserve(run="study", cache=train, calls=2)
    writer.fail(failed, calls=2, call=model_call(4, began_s=BEGAN_S + 9))
    assert describe_history(store)["batches"] == 2
    commit(writer, train, [6], run="default")
    described = describe_history(store)
    assert [(call["run"], call["owner"], call["images"], call["answers"]) for call in described["calls"]] == [
        ("study", "alice", 3, 3),
        ("default", "local", 2, 2),
        ("study", "local", 2, 0),
        ("default", "local", 1, 1),
    ]
    assert described["calls"][0] == {
        "time": "2023-11-14T22:13:21.000+00:00",
        "run": "study",
        "owner": "alice",
        "cache": f"{TEACHER.id}/toy/train",
        "device": "toy",
        "images": 3,
        "answers": 3,
        "batch_images": 3,
        "ms": 250.0,
        "images_per_second": 12.0,
        "versions": {"toylib": "1.0"},
    }
    # Half of the batch that failed was this payer's, and so is half of its time.
    assert (described["batches"], described["images"], described["answers"]) == (4, 8, 6)
    assert described["seconds"] == pytest.approx(0.75 + 0.125)
    assert described["unrecorded"] == 0
    writer.reserve(run="default", cache=train, calls=5)
    assert describe_history(store)["unrecorded"] == 5
    assert [call["batch_images"] for call in describe_history(store, run="study", last=1)["calls"]] == [4]
    database = writer._ledger.database
    assert database.execute("SELECT count(*) FROM environments").fetchone() == (1,)


def test_an_answer_that_is_not_kept_is_not_in_the_history(writer: CacheWriter, train: CacheHandle, store: Path) -> None:
    writer._ledger.database.execute(
        "CREATE TEMP TRIGGER full BEFORE INSERT ON main.calls BEGIN SELECT RAISE(ABORT, 'x'); END"
    )
    with pytest.raises(Exception, match="cannot be used"):
        commit(writer, train, [1], run="default")
    assert describe_history(store)["batches"] == 0
    assert train.num_slots == 0


def test_people_and_scripts_are_shown_the_history(store: Path) -> None:
    with CacheWriter.open(store) as writer:
        train = writer.open_cache(TEACHER, TRAIN)
        writer.ensure_run("study")
        commit(writer, train, range(4), run="study")
        commit(writer, train, range(4, 6), run="default")
    lines = logit_cache("history", store).splitlines()
    assert lines == [
        "2023-11-14T22:13:20  study  local  toy  4  4  250.0  16  toylib 1.0",
        "2023-11-14T22:13:24  default  local  toy  2  2  250.0  8  toylib 1.0",
        "2 batches, 6 images in 0.5 s, 12 images/s, from 2023-11-14T22:13:20 to 2023-11-14T22:13:24 UTC",
    ]
    assert logit_cache("history", store, "--run", "study", "--last", "5").splitlines()[0] == lines[0]
    shown = json.loads(logit_cache("history", store, "--json", "--last", "1"))
    assert (shown["batches"], [call["images"] for call in shown["calls"]]) == (2, [2])
    assert f"history: {lines[-1]}" in logit_cache("info", store)
    assert "key owner local: budget none, 6 attempts, 6 teacher calls, 0 hits, 0 joined, 6 charged" in logit_cache(
        "info", store
    )
    with pytest.raises(UnknownNameError, match="knows default, study"):
        describe_history(store, run="nobody")
    with pytest.raises(InputError, match="is not a cache"):
        describe_history(store.parent / "nowhere")


# Ledgers of an earlier and a later version


@pytest.fixture
def former(store: Path) -> Path:
    """A cache whose ledger has no owners and no history."""
    with CacheWriter.open(store) as writer:
        train = writer.open_cache(TEACHER, TRAIN)
        writer.ensure_run("study", 10)
        commit(writer, train, range(6), run="study")
        place = train.place_of(2)
        assert place is not None
        writer.note_hits(run="default", cache=train, places=[place])
        writer.reserve(run="study", cache=train, calls=2)
    rewrite(store, FORMER_TABLES)
    return store


def test_a_former_ledger_is_read_as_it_is_and_brought_up_by_its_next_writer(former: Path, tmp_path: Path) -> None:
    ledger = (former / "ledger.sqlite3").read_bytes()
    budgets = {
        "default": {"budget": None, "attempts": 0, "teacher_calls": 0, "charged": 1},
        "study": {"budget": 10, "attempts": 8, "teacher_calls": 6, "charged": 6},
    }
    local = {
        "budget": None, "remaining": None, "attempts": 8, "teacher_calls": 6, "hits": 1, "joined": 0, "charged": 6
    }  # fmt: skip
    assert describe_cache(former)["budgets"] == budgets
    assert describe_history(former)["owners"] == {"local": local}
    assert (describe_history(former)["calls"], describe_history(former)["unrecorded"]) == ([], 8)
    back_up(former, tmp_path / "copy")
    merge_caches([former], tmp_path / "merged")
    assert (former / "ledger.sqlite3").read_bytes() == ledger
    for copy in ("copy", "merged"):
        assert describe_cache(tmp_path / copy)["budgets"] == budgets
        assert describe_history(tmp_path / copy)["owners"]["local"]["charged"] == 6
    with CacheWriter.open(former) as writer:
        commit(writer, writer.open_cache(TEACHER, TRAIN), [7, 8], run="study")
        with pytest.raises(BudgetExhaustedError):
            writer.reserve(run="study", cache=writer.open_cache(TEACHER, TRAIN), calls=1)
    described = describe_history(former)
    assert described["runs"]["study"]["charged"] == described["owners"]["local"]["charged"] == 8
    assert (described["images"], described["unrecorded"]) == (2, 8)
    assert logit_cache("verify", former).endswith("is sound\n")


def test_a_merge_of_a_ledger_that_was_merged_when_it_was_older_adds_only_what_is_new(
    former: Path, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    merge_caches([former], target)
    # The note of a merge from before there were owners.
    script = """
    UPDATE upkeep SET detail = json_remove(detail, '$.owner_budgets', '$.calls', '$.counts[0][6]', '$.counts[1][6]');
    """
    rewrite(target, script)
    with CacheWriter.open(former) as writer:
        commit(writer, writer.open_cache(TEACHER, TRAIN), [7], run="default")
    merge_caches([former], target)
    described = describe_history(target)
    local = described["owners"]["local"]
    assert (local["attempts"], local["teacher_calls"], local["charged"]) == (9, 7, 7)
    assert described["images"] == 1


def test_a_migration_that_is_cut_off_leaves_the_former_ledger(former: Path, tmp_path: Path) -> None:
    before = describe_cache(former)["budgets"]
    shutil.copy(former / "ledger.sqlite3", tmp_path / "ledger.sqlite3")
    with closing(sqlite3.connect(former / "ledger.sqlite3")) as database:
        # The last statement of the migration fails.
        database.execute("CREATE TRIGGER cut BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'cut off'); END")
        database.commit()
    with pytest.raises(Exception, match="cut off"):
        CacheWriter.open(former)
    assert describe_cache(former)["budgets"] == before
    shutil.copy(tmp_path / "ledger.sqlite3", former / "ledger.sqlite3")
    CacheWriter.open(former).close()
    assert describe_cache(former)["budgets"] == before


def test_a_ledger_of_a_later_version_is_refused(store: Path) -> None:
    with CacheWriter.open(store) as writer:
        writer.open_cache(TEACHER, TRAIN)
    rewrite(store, "UPDATE meta SET value = 3 WHERE name = 'ledger'")
    for work in (CacheWriter.open, describe_cache):
        with pytest.raises(InputError, match="has version 3; this version of teachonce knows up to 2"):
            work(store)
