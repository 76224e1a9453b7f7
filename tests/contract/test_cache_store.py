"""What a cache promises to those who write it and those who read it.

Shape key: B answers, C classes, D feature width, N rows.
"""

import multiprocessing
import os
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from cache.epoch import epoch_order
from cache.info import describe_cache
from cache.reader import CacheReader
from cache.writer import AnswerBatch, CacheHandle, CacheWriter, CallRequest, Place
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.errors import (
    AnswerError,
    BudgetConflictError,
    BudgetExhaustedError,
    CacheLockedError,
    CorruptCacheError,
    DiskFullError,
    IdentityError,
    InputError,
    MissingRowsError,
    OutputNotCachedError,
    RowRangeError,
    UnknownNameError,
)

TEACHER = TeacherDescription(
    id="wrn_40_2-0123456789ab",
    arch="wrn_40_2",
    weights="ab" * 32,
    preprocessing={"mean": [0.5, 0.5, 0.5]},
    precision="float32",
    classes=5,
    features=3,
    libraries={"numpy": "2.4"},
)
TRAIN = DatasetDescription(
    name="toy/train",
    rows=20_000,
    classes=("ant", "bee", "cat", "dog", "eel"),
    fingerprint="12" * 32,
    view_policy="crop1flip",
    decoder="pillow 13.0.0",
)
TEST = replace(TRAIN, name="toy/test", fingerprint="34" * 32, rows=100)
UPLOADS = replace(TRAIN, name="uploads/images", rows=0, fingerprint="", view_policy="")


def key_of(row: int, view: int = 0) -> bytes:
    return sha256(f"{row}:{view}".encode()).digest()


def keys_of(rows: list[int], view: int = 0) -> np.ndarray:
    return np.frombuffer(b"".join(key_of(row, view) for row in rows), dtype=np.uint8).reshape(-1, 32)


def answers_of(rows: list[int], view: int = 0) -> dict[str, np.ndarray]:
    """What the teacher says: known for every row, so that a misplaced answer shows."""
    base = np.array(rows, dtype=np.float32)[:, None] / 7 + view
    return {"logits": np.sin(base + np.arange(5)), "features": np.cos(base * np.arange(1, 4))}


def stored(rows: list[int], view: int = 0) -> dict[str, np.ndarray]:
    return {name: values.astype(np.float16) for name, values in answers_of(rows, view).items()}


def keep(
    writer: CacheWriter, cache: CacheHandle, rows: list[int], /, *, view: int = 0, run: str = "default", **changed: Any
) -> list[Place]:
    """Reserve, answer and commit these rows."""
    reservation = writer.reserve(run=run, cache=cache, calls=len(rows))
    given = {
        "keys": keys_of(rows, view),
        "rows": rows,
        "views": [view] * len(rows),
        "labels": [row % 5 for row in rows],
        "outputs": answers_of(rows, view),
    }
    return writer.commit(cache, run=run, reservation=reservation, **(given | changed))


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def writer(store_path: Path) -> Iterator[CacheWriter]:
    with CacheWriter.open(store_path) as opened:
        yield opened


@pytest.fixture
def train(writer: CacheWriter) -> CacheHandle:
    return writer.open_cache(TEACHER, TRAIN)


def run_of(writer: CacheWriter, name: str = "default") -> dict[str, Any]:
    return writer.ledger_counts()["runs"][name]


class TestKeeping:
    def test_a_committed_answer_is_found_by_key_and_by_row_and_read_as_rounded(
        self, writer: CacheWriter, train: CacheHandle
    ) -> None:
        places = keep(writer, train, [7, 3])
        assert writer.find(TEACHER.id, key_of(3)) == places[1] == train.place_of(3)
        assert writer.find(TEACHER.id, key_of(4)) is None
        assert train.slot_of(7) == 0
        assert np.flatnonzero(train.present()).tolist() == [3, 7]
        read = writer.read(places[::-1], ["logits", "features"])
        for name, expected in stored([3, 7]).items():
            assert read[name].dtype == np.float16
            np.testing.assert_array_equal(read[name], expected)

    def test_everything_survives_a_restart_folded_or_not(self, store_path: Path) -> None:
        rows = list(range(8200))
        for chunk in (rows[:5], rows[5:8195], rows[8195:]):
            with CacheWriter.open(store_path) as writer:
                train = writer.open_cache(TEACHER, TRAIN)
                keep(writer, train, chunk)
        with CacheWriter.open(store_path) as writer:
            train = writer.open_cache(TEACHER, TRAIN)
            assert [train.slot_of(row) for row in (0, 8194, 8199)] == [0, 8194, 8199]
            assert writer.find(TEACHER.id, key_of(8191)) == Place(train.index, 8191)
            places = [Place(train.index, row) for row in rows]
            np.testing.assert_array_equal(writer.read(places, ["logits"])["logits"], stored(rows)["logits"])
            counts = writer.ledger_counts()
        assert counts["attempts"] == counts["teacher_calls"] == 8200
        assert counts["runs"]["default"]["charged"] == 8200

    def test_an_answer_is_durable_when_commit_returns(
        self, writer: CacheWriter, train: CacheHandle, tmp_path: Path
    ) -> None:
        keep(writer, train, [1])
        writer.fold()
        keep(writer, train, [2])
        with CacheWriter.open(copy_of(writer.path, tmp_path / "copy")) as second:
            again = second.open_cache(TEACHER, TRAIN)
            assert np.flatnonzero(again.present()).tolist() == [1, 2]
            read = second.read([Place(again.index, 1)], ["logits"])["logits"]
            np.testing.assert_array_equal(read, stored([2])["logits"])
            assert run_of(second)["teacher_calls"] == 2

    @pytest.mark.parametrize("document", ["behind", "empty", "gone", "of the group"])
    def test_opening_undoes_what_a_crash_left(self, store_path: Path, document: str) -> None:
        with CacheWriter.open(store_path) as writer:
            train = writer.open_cache(TEACHER, TRAIN)
            keep(writer, train, [1, 2])
            writer.fold()
            early = (train.folder / "keys" / "zarr.json").read_bytes()
            keep(writer, train, [3])
        match document:
            case "behind":
                (train.folder / "keys" / "zarr.json").write_bytes(early)
            case "empty":
                (train.folder / "keys" / "zarr.json").write_bytes(b"")
            case "gone":
                (train.folder / "keys" / "zarr.json").unlink()
            case _:
                (train.folder / "zarr.json").write_bytes(b"")
        (train.folder / "logits" / "c.7.0.partial").write_bytes(b"half")
        (store_path / "data.zarr" / "zarr.json.partial").write_bytes(b"half")
        with CacheWriter.open(store_path):
            assert not list(store_path.rglob("*.partial"))
            members = dict(zarr.open_group(str(train.folder), mode="r").members())
            assert {array.shape[0] for array in members.values()} == {3}

    def test_the_same_pixels_twice_in_a_batch_cost_one_call_and_get_the_same_bytes(
        self, writer: CacheWriter, train: CacheHandle
    ) -> None:
        outputs = answers_of([1, 2])
        places = keep(writer, train, [1, 2], keys=keys_of([1, 1]), outputs=outputs)
        read = writer.read(places, ["logits"])["logits"]
        np.testing.assert_array_equal(read[0], read[1])
        counts = run_of(writer)
        assert (counts["attempts"], counts["teacher_calls"], counts["charged"]) == (2, 1, 1)

    def test_the_first_committed_answer_wins(self, writer: CacheWriter, train: CacheHandle) -> None:
        keep(writer, train, [1])
        again = keep(writer, train, [2], keys=keys_of([1]), outputs=answers_of([99]))
        np.testing.assert_array_equal(writer.read(again, ["logits"])["logits"], stored([1])["logits"])
        assert (run_of(writer)["attempts"], run_of(writer)["teacher_calls"]) == (2, 1)
        same_row = keep(writer, train, [1], outputs=answers_of([99]))
        assert same_row == [Place(train.index, 0)]
        assert train.num_slots == 2

    def test_an_alias_costs_nothing_also_across_data_sets_and_after_a_restart(self, store_path: Path) -> None:
        with CacheWriter.open(store_path) as writer:
            test = writer.open_cache(TEACHER, TEST)
            train = writer.open_cache(TEACHER, TRAIN)
            (place,) = keep(writer, train, [5])
            (alias,) = writer.alias(test, run="default", items=[(9, 0, 4, place)])
            assert alias == test.place_of(9)
            assert writer.alias(train, run="default", items=[(6, 0, 1, alias)]) == [Place(train.index, 1)]
        with CacheWriter.open(store_path) as writer:
            test = writer.open_cache(TEACHER, TEST)
            np.testing.assert_array_equal(
                writer.read([Place(test.index, 0)], ["features"])["features"], stored([5])["features"]
            )
            # The first answer is still the one that is found and charged.
            assert writer.find(TEACHER.id, key_of(5)) == place
            writer.note_hits(run="default", cache=test, places=[alias])
            counts = run_of(writer)
            assert (counts["attempts"], counts["teacher_calls"], counts["charged"]) == (1, 1, 1)

    def test_aliases_of_a_batch_are_kept_in_its_transaction(self, writer: CacheWriter, train: CacheHandle) -> None:
        places = keep(writer, train, [1], aliases=[(11, 0, 1, 0), (12, 0, 1, 0)])
        assert places == [train.place_of(row) for row in (1, 11, 12)]
        assert run_of(writer)["teacher_calls"] == 1

    def test_uploads_are_numbered_as_they_come_and_answer_for_data_sets(
        self, writer: CacheWriter, train: CacheHandle
    ) -> None:
        uploads = writer.open_cache(TEACHER, UPLOADS)
        places = keep(writer, uploads, [1, 2], rows=[-1, -1], labels=[-1, -1])
        assert places == [uploads.place_of(0), uploads.place_of(1)]
        assert keep(writer, uploads, [2], rows=[-1], labels=[-1]) == [places[1]]
        assert writer.find(TEACHER.id, key_of(2), cache=train) == places[1]

    def test_another_teacher_has_its_own_answers(self, writer: CacheWriter, train: CacheHandle) -> None:
        keep(writer, train, [1])
        assert writer.find("wrn_40_2-ffffffffffff", key_of(1)) is None
        other = writer.open_cache(replace(TEACHER, id="wrn_40_2-ffffffffffff"), TRAIN)
        keep(writer, other, [1], outputs=answers_of([50]))
        assert writer.ledger_counts()["teacher_calls"] == 2

    def test_an_answer_serves_only_caches_whose_outputs_it_has(self, writer: CacheWriter, train: CacheHandle) -> None:
        narrow = writer.open_cache(TEACHER, TEST, {"logits": "float16"})
        keep(writer, narrow, [1])
        assert writer.find(TEACHER.id, key_of(1), cache=train) is None
        assert writer.find(TEACHER.id, key_of(1), cache=narrow) is not None
        keep(writer, train, [2])
        assert writer.find(TEACHER.id, key_of(2), cache=narrow) == train.place_of(2)

    def test_an_output_that_was_said_once_is_never_said_differently(
        self, writer: CacheWriter, train: CacheHandle
    ) -> None:
        narrow = writer.open_cache(TEACHER, TEST, {"logits": "float16"})
        keep(writer, narrow, [1])
        places = keep(writer, train, [1], outputs=answers_of([60]))
        read = writer.read(places, ["logits", "features"])
        np.testing.assert_array_equal(read["logits"], stored([1])["logits"])
        np.testing.assert_array_equal(read["features"], stored([60])["features"])

    @pytest.mark.parametrize(("order", "calls"), [(("wide", "narrow"), 1), (("narrow", "wide"), 2)])
    def test_nor_by_two_caches_in_one_transaction(
        self, writer: CacheWriter, train: CacheHandle, order: tuple[str, str], calls: int
    ) -> None:
        caches = {"wide": train, "narrow": writer.open_cache(TEACHER, TEST, {"logits": "float16"})}
        batches = [
            AnswerBatch(
                cache=caches[name],
                run="default",
                reservation=writer.reserve(run="default", cache=caches[name], calls=1),
                keys=keys_of([1]),
                rows=[1],
                views=[0],
                labels=[0],
                outputs=answers_of([said]),
                aliases=[(2, 0, 0, 0)],
            )
            for name, said in zip(order, (1, 60), strict=True)
        ]
        places = [place for batch in writer.commit_all(batches) for place in batch]
        assert len(set(places)) == 4
        np.testing.assert_array_equal(writer.read(places, ["logits"])["logits"], stored([1] * 4)["logits"])
        features = stored([1 if order[0] == "wide" else 60])["features"]
        np.testing.assert_array_equal(writer.read([train.place_of(2)], ["features"])["features"], features)
        assert writer.ledger_counts()["teacher_calls"] == calls

    @pytest.mark.parametrize("bad", [np.nan, np.inf, 65_505.0, -1e30])
    def test_an_answer_that_is_not_finite_or_too_large_is_refused_by_name(
        self, writer: CacheWriter, train: CacheHandle, bad: float
    ) -> None:
        outputs = answers_of([4, 8])
        outputs["features"][1, 2] = bad
        with pytest.raises(AnswerError, match=r"features of row 8 of toy/train"):
            keep(writer, train, [4, 8], outputs=outputs)
        assert train.num_slots == 0
        assert run_of(writer)["teacher_calls"] == 0

    def test_rows_and_views_beyond_the_data_set_are_refused(self, writer: CacheWriter, train: CacheHandle) -> None:
        with pytest.raises(RowRangeError, match="row 20000"):
            keep(writer, train, [20_000])
        with pytest.raises(RowRangeError, match="view -1"):
            keep(writer, train, [1], view=-1)

    def test_several_payers_settle_in_one_transaction(self, writer: CacheWriter, train: CacheHandle) -> None:
        writer.ensure_run("other")
        paid = writer.reserve_all(
            [CallRequest(run=run, cache=train, calls=1) for run in ("default", "other", "nobody")]
        )
        assert isinstance(paid[2], UnknownNameError)
        batches = [
            AnswerBatch(
                cache=train,
                run=run,
                reservation=reservation,
                keys=keys_of([3]),
                rows=[row],
                views=[0],
                labels=[0],
                outputs=answers_of([3]),
            )
            for row, (run, reservation) in enumerate(zip(["default", "other"], paid[:2], strict=True))
        ]
        assert writer.commit_all(batches) == [[Place(train.index, 0)], [Place(train.index, 1)]]
        assert [run_of(writer, run)["charged"] for run in ("default", "other")] == [1, 1]
        assert [run_of(writer, run)["teacher_calls"] for run in ("default", "other")] == [1, 0]

    def test_adopted_answers_count_nothing(self, writer: CacheWriter, train: CacheHandle) -> None:
        rows = [1, 2]
        writer.adopt(train, keys=keys_of(rows), rows=rows, views=[0, 0], labels=[1, 2], outputs=stored(rows))
        np.testing.assert_array_equal(writer.read([Place(train.index, 1)], ["logits"])["logits"], stored([2])["logits"])
        assert run_of(writer) == {
            "budget": None,
            "remaining": None,
            "attempts": 0,
            "teacher_calls": 0,
            "charged": 0,
        }

    def test_a_full_disk_keeps_nothing_of_a_batch_and_all_that_was_before(
        self, writer: CacheWriter, train: CacheHandle
    ) -> None:
        keep(writer, train, [1])
        database: sqlite3.Connection = writer._ledger.database
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        reservation = writer.reserve(run="default", cache=train, calls=2000)
        database.execute(f"PRAGMA max_page_count = {pages + 5}")
        rows = list(range(10, 2010))
        given: dict[str, Any] = {"rows": rows, "views": [0] * 2000, "labels": [0] * 2000, "outputs": answers_of(rows)}
        with pytest.raises(DiskFullError, match="make room"):
            writer.commit(train, run="default", reservation=reservation, keys=keys_of(rows), **given)
        assert train.num_slots == 1
        assert run_of(writer)["charged"] == 1
        database.execute("PRAGMA max_page_count = 1000000")
        keep(writer, train, [3])
        assert run_of(writer)["charged"] == 2
        assert len(writer.commit(train, run="default", reservation=reservation, keys=keys_of(rows), **given)) == 2000
        assert run_of(writer)["teacher_calls"] == 2002

    def test_a_journal_with_a_gap_is_refused(self, writer: CacheWriter, train: CacheHandle, tmp_path: Path) -> None:
        keep(writer, train, [1, 2, 3])
        copy = copy_of(writer.path, tmp_path / "copy")
        with closing(sqlite3.connect(copy / "ledger.sqlite3")) as database:
            database.execute("DELETE FROM journal WHERE row = 2")
            database.commit()
        with pytest.raises(CorruptCacheError, match="does not continue at slot 0"):
            CacheWriter.open(copy)

    def test_a_quiet_writer_folds_and_writes_its_counts_by_itself(
        self, writer: CacheWriter, train: CacheHandle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        places = keep(writer, train, [1])
        writer.ensure_run("late")
        writer.note_hits(run="late", cache=train, places=places)
        writer._tidy()
        assert train.folded == 0
        assert describe_cache(writer.path)["budgets"]["late"]["charged"] == 1
        monkeypatch.setattr("cache.writer.IDLE_S", -1.0)
        writer._tidy()
        assert train.folded == 1

    def test_a_fold_is_on_the_disk_before_the_mark_moves(
        self, writer: CacheWriter, train: CacheHandle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keep(writer, train, [1, 2])
        done: list[tuple[str, str]] = []
        sync, rename = os.fsync, Path.replace

        def noted_sync(descriptor: int) -> None:
            done.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
            sync(descriptor)

        def noted_rename(path: Path, target: Path) -> Path:
            done.append(("rename", str(target)))
            return rename(path, target)

        monkeypatch.setattr(os, "fsync", noted_sync)
        monkeypatch.setattr(Path, "replace", noted_rename)
        writer._ledger.database.set_trace_callback(lambda text: done.append(("sql", text.split()[0])))
        writer.fold()
        marked = done.index(("sql", "COMMIT"))
        renames = [(at, Path(name)) for at, (what, name) in enumerate(done[:marked]) if what == "rename"]
        assert {path.name for _, path in renames} == {"c.0", "c.0.0", "crc32c.json"}
        assert len(renames) == 12
        for at, path in renames:
            assert ("sync", f"{path}.partial") in done[:at]
            assert ("sync", str(path.parent)) in done[at:marked]

    def test_a_fold_that_cannot_map_what_it_wrote_never_answers_with_another_slot(
        self, writer: CacheWriter, train: CacheHandle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = list(range(16_400))
        writer._housekeeping.stop()
        keep(writer, train, rows[:8200])
        writer._tidy()
        with monkeypatch.context() as patch:
            patch.setattr("cache.handle.open_own_array", too_many_files)
            keep(writer, train, rows[8200:])
            writer._tidy()
            assert (train.folded, train.tail.start) == (16_384, 8192)
        for _ in range(2):
            places = [Place(train.index, row) for row in rows]
            np.testing.assert_array_equal(writer.read(places, ["logits"])["logits"], stored(rows)["logits"])
            writer.fold()
        assert train.folded == 16_400
        assert train.tail.start == 16_384

    def test_a_disk_that_fails_a_fold_fails_no_commit_and_leaves_no_half_file(
        self, writer: CacheWriter, train: CacheHandle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*_: object) -> int:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr("os.write", failing)
        rows = list(range(8200))
        writer._housekeeping.stop()
        assert len(keep(writer, train, rows)) == 8200
        writer._tidy()
        assert train.folded == 0
        assert not list(writer.path.rglob("*.partial"))
        monkeypatch.undo()
        writer.fold()
        assert train.folded == 8200

    def test_a_fold_that_waits_for_the_disk_keeps_nobody_waiting(
        self, writer: CacheWriter, train: CacheHandle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every sync of a chunk file stands still until all the rest was done."""
        rows = list(range(8200))
        waiting, go_on = threading.Event(), threading.Event()
        sync = os.fsync

        def slow(descriptor: int) -> None:
            if "/c." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                waiting.set()
                assert go_on.wait(60)
            sync(descriptor)

        monkeypatch.setattr(os, "fsync", slow)
        keep(writer, train, rows)
        assert waiting.wait(60), "nobody folds a full block"
        assert train.place_of(8191) == writer.find(TEACHER.id, key_of(8191)) == Place(train.index, 8191)
        late = keep(writer, train, [9000, 9001])
        writer.note_hits(run="default", cache=train, places=late)
        read = writer.read([Place(train.index, 5), *late], ["logits"])["logits"]
        np.testing.assert_array_equal(read, stored([5, 9000, 9001])["logits"])
        assert train.folded == 0
        go_on.set()
        writer.fold()
        assert train.folded == 8202
        places = [Place(train.index, slot) for slot in range(8202)]
        read = writer.read(places, ["features"])["features"]
        np.testing.assert_array_equal(read, stored([*rows, 9000, 9001])["features"])

    def test_a_cached_row_is_answered_and_counted_while_a_commit_waits_for_the_disk(
        self, writer: CacheWriter, train: CacheHandle
    ) -> None:
        keep(writer, train, [1])
        writer.ensure_run("late")
        found: list[np.ndarray] = []

        def answer() -> None:
            place = train.place_of(1)
            assert place is not None
            assert train.place_of(2) is None
            found.append(writer.read([place], ["logits"])["logits"])
            writer.note_hits(run="late", cache=train, places=[place])

        with writer._lock:
            thread = threading.Thread(target=answer)
            thread.start()
            thread.join(10)
            np.testing.assert_array_equal(found, [stored([1])["logits"]])
        assert run_of(writer, "late")["charged"] == 1
        assert writer.ledger_counts()["hits"] == 1

    def test_commits_wait_where_folding_cannot_keep_up(self, writer: CacheWriter, train: CacheHandle) -> None:
        writer._housekeeping.stop()
        rows = list(range(20_000))
        writer.adopt(train, **adopted(rows))
        assert train.folded == 0
        test = writer.open_cache(TEACHER, replace(TRAIN, name="big/train", rows=30_000))
        writer.adopt(test, **adopted(list(range(3 * 8192))))
        assert (test.folded, train.folded) == (3 * 8192, 2 * 8192)

    def test_entries_that_were_folded_but_not_dropped_are_dropped_when_opened(
        self, writer: CacheWriter, train: CacheHandle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        """As a kill between the mark and the journal's tidying leaves them."""
        keep(writer, train, list(range(600)))
        monkeypatch.setattr("cache.fold.forget_entries", lambda *_, **__: pytest.fail("killed here"))
        with pytest.raises(pytest.fail.Exception):
            writer.fold()
        monkeypatch.undo()
        copy = copy_of(writer.path, tmp_path / "copy")
        with CacheReader.open(copy, journal=True) as reader:
            assert reader.present().sum() == 600
        with CacheWriter.open(copy) as second:
            again = second.open_cache(TEACHER, TRAIN)
            assert (again.folded, again.num_slots) == (600, 600)
            assert second._ledger.database.execute("SELECT count(*) FROM journal").fetchone() == (0,)
            read = second.read([Place(again.index, 599)], ["logits"])["logits"]
            np.testing.assert_array_equal(read, stored([599])["logits"])

    def test_a_disk_that_is_full_at_the_end_is_told_and_lets_the_next_process_write(
        self, writer: CacheWriter, train: CacheHandle
    ) -> None:
        places = keep(writer, train, [1])
        runs = [f"run-{number}" for number in range(100)]
        for run in runs:
            writer.ensure_run(run)
        pages = writer._ledger.database.execute("PRAGMA page_count").fetchone()[0]
        writer._ledger.database.execute(f"PRAGMA max_page_count = {pages}")
        for run in runs:
            writer.note_hits(run=run, cache=train, places=places)
        with pytest.raises(DiskFullError):
            writer.close()
        with CacheWriter.open(writer.path) as again:
            assert again.find(TEACHER.id, key_of(1)) == places[0]


def adopted(rows: list[int]) -> dict[str, Any]:
    """Arguments of `CacheWriter.adopt`."""
    none = [0] * len(rows)
    return {"keys": keys_of(rows), "rows": rows, "views": none, "labels": none, "outputs": answers_of(rows)}


def too_many_files(*_: object, **__: object) -> None:
    raise OSError(24, "Too many open files")


class TestPaying:
    def test_reservations_are_all_or_nothing_and_name_what_is_left(
        self, writer: CacheWriter, train: CacheHandle
    ) -> None:
        writer.ensure_run("small", 10)
        writer.reserve(run="small", cache=train, calls=7)
        with pytest.raises(BudgetExhaustedError, match="raise its budget by 1") as caught:
            writer.reserve(run="small", cache=train, calls=4)
        assert (caught.value.needed, caught.value.remaining) == (4, 3)
        assert run_of(writer, "small")["remaining"] == 3
        writer.reserve(run="small", cache=train, calls=3)

    def test_the_whole_budget_bounds_all_runs(self, writer: CacheWriter, train: CacheHandle) -> None:
        writer.set_total_budget(10)
        writer.ensure_run("one", 100)
        writer.reserve(run="one", cache=train, calls=8)
        with pytest.raises(BudgetExhaustedError) as caught:
            writer.reserve(run="default", cache=train, calls=3)
        assert caught.value.remaining == 2
        assert run_of(writer)["remaining"] == 2

    def test_answers_that_nobody_reserved_are_not_kept(self, writer: CacheWriter, train: CacheHandle) -> None:
        reservation = writer.reserve(run="default", cache=train, calls=1)
        given: dict[str, Any] = {"views": [0, 0], "labels": [0, 0], "outputs": answers_of([1, 2])}
        with pytest.raises(InputError, match="2 calls needed, but only 1 of 1 are open"):
            writer.commit(train, run="default", reservation=reservation, keys=keys_of([1, 2]), rows=[1, 2], **given)
        assert train.num_slots == 0

    def test_released_calls_come_back_and_failed_ones_do_not(self, writer: CacheWriter, train: CacheHandle) -> None:
        reservation = writer.reserve(run="default", cache=train, calls=5)
        assert writer.ledger_counts()["reserved"] == 5
        writer.release(reservation, calls=2)
        writer.fail(reservation, calls=1)
        assert writer.ledger_counts()["reserved"] == 2
        assert run_of(writer)["attempts"] == 3
        with pytest.raises(InputError, match="2 of 5 are open"):
            writer.fail(reservation, calls=3)

    def test_a_reservation_survives_a_crash_as_attempts(self, store_path: Path, tmp_path: Path) -> None:
        with CacheWriter.open(store_path) as writer:
            train = writer.open_cache(TEACHER, TRAIN)
            writer.ensure_run("r", 9)
            writer.reserve(run="r", cache=train, calls=4)
            copy = copy_of(store_path, tmp_path / "copy")
        with CacheWriter.open(copy) as writer:
            assert run_of(writer, "r") == {
                "budget": 9,
                "remaining": 5,
                "attempts": 4,
                "teacher_calls": 0,
                "charged": 0,
            }
            with pytest.raises(BudgetConflictError, match="4 or more"):
                writer.set_budget("r", 3)
            writer.ensure_run("r")
            assert run_of(writer, "r")["budget"] == 9

    def test_sixteen_threads_never_exceed_a_budget(self, writer: CacheWriter, train: CacheHandle) -> None:
        writer.ensure_run("shared-run", 100)
        granted: list[int] = []

        def spend() -> None:
            for _ in range(10):
                try:
                    writer.reserve(run="shared-run", cache=train, calls=3)
                    granted.append(3)
                except BudgetExhaustedError:
                    return

        threads = [threading.Thread(target=spend) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(granted) == run_of(writer, "shared-run")["attempts"] == 99

    def test_runs_must_exist_and_have_a_name(self, writer: CacheWriter, train: CacheHandle) -> None:
        with pytest.raises(UnknownNameError, match="unknown run 'nope'; known: default"):
            writer.reserve(run="nope", cache=train, calls=1)
        with pytest.raises(UnknownNameError, match="is not a name"):
            writer.ensure_run("No Name")
        with pytest.raises(BudgetConflictError, match="use 0 or more"):
            writer.ensure_run("negative", -1)

    def test_hits_charge_each_answer_once_per_run_and_are_kept(self, store_path: Path) -> None:
        with CacheWriter.open(store_path) as writer:
            train = writer.open_cache(TEACHER, TRAIN)
            places = keep(writer, train, [1, 2, 3])
            writer.ensure_run("late")
            for _ in range(2):
                writer.note_hits(run="late", cache=train, places=places[:2], joined=1)
        with CacheWriter.open(store_path) as writer:
            counts = writer.ledger_counts()
            assert (counts["hits"], counts["joined"]) == (2, 2)
            assert counts["runs"]["late"]["charged"] == 2
            assert counts["runs"]["late"]["attempts"] == 0


class TestIdentity:
    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"fingerprint": "56" * 32}, "fingerprint"),
            ({"rows": 3}, "rows 20000 there, 3 here"),
            ({"classes": ("a",) * 5}, "classes"),
            ({"view_policy": "crop4flip"}, "view policy crop1flip there, crop4flip here; give --view-policy crop1flip"),
        ],
    )
    def test_a_name_belongs_to_one_data_set(
        self, writer: CacheWriter, train: CacheHandle, change: dict[str, Any], named: str
    ) -> None:
        with pytest.raises(IdentityError, match=named):
            writer.open_cache(TEACHER, replace(TRAIN, **change))

    def test_another_decoder_is_named_where_pixels_differ(self, writer: CacheWriter, train: CacheHandle) -> None:
        other = replace(TRAIN, fingerprint="56" * 32, decoder="pillow 11.0.0")
        with pytest.raises(IdentityError, match=r"pillow 13\.0\.0 there, pillow 11\.0\.0 here"):
            writer.open_cache(TEACHER, other)

    def test_a_cache_keeps_the_outputs_it_was_created_with(self, writer: CacheWriter, train: CacheHandle) -> None:
        assert writer.open_cache(TEACHER, TRAIN, None) is train
        with pytest.raises(InputError, match="keeps the outputs it was created with"):
            writer.open_cache(TEACHER, TRAIN, {"logits": "float32"})
        with pytest.raises(InputError, match="unknown output 'maps'"):
            writer.open_cache(TEACHER, TEST, {"logits": "float16", "maps": "float16"})

    def test_two_writers_exclude_each_other_and_the_first_is_named(self, writer: CacheWriter, store_path: Path) -> None:
        with pytest.raises(CacheLockedError, match=r"process \d+ \(.*since 20") as caught:
            CacheWriter.open(store_path)
        assert caught.value.exit_code == 4

    def test_another_format_is_refused_by_writer_and_reader(self, store_path: Path) -> None:
        with CacheWriter.open(store_path) as writer:
            keep(writer, writer.open_cache(TEACHER, TRAIN), [1])
        database = sqlite3.connect(store_path / "ledger.sqlite3")
        database.execute("UPDATE meta SET value = 99 WHERE name = 'format'")
        database.commit()
        database.close()
        (store_path / "ledger.crc32c.json").unlink()
        with pytest.raises(InputError, match="format 99"):
            CacheWriter.open(store_path)
        root = store_path / "data.zarr" / "zarr.json"
        root.write_text(root.read_text().replace('"format": 1', '"format": 99'))
        with pytest.raises(InputError, match="format 99"):
            CacheReader.open(store_path)

    def test_a_folder_that_holds_something_else_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").write_text("precious")
        with pytest.raises(InputError, match=r"thesis\.tex"):
            CacheWriter.open(tmp_path)
        with pytest.raises(InputError, match="is not a cache"):
            CacheReader.open(tmp_path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def copy_of(path: Path, to: Path, *, ledger: bool = True) -> Path:
    """The bytes as they are now, as a crash would leave them."""
    for file in path.rglob("*"):
        if file.is_file() and (ledger or not file.name.startswith("ledger")):
            target = to / file.relative_to(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return to


@pytest.fixture(params=["tail", "whole blocks and tail", "journal"])
def filled(request: pytest.FixtureRequest, store_path: Path) -> Iterator[tuple[Path, list[int]]]:
    """A cache and the rows it holds, in the order they were answered."""
    count = 8_500 if request.param.startswith("whole") else 300
    rows = np.random.default_rng(0).permutation(20_000)[:count].tolist()
    writer = CacheWriter.open(store_path)
    train = writer.open_cache(TEACHER, TRAIN)
    keep(writer, train, rows[:100])
    if request.param != "journal":
        keep(writer, train, rows[100:])
        writer.close()
        yield store_path, rows
        return
    writer.fold()
    keep(writer, train, rows[100:])
    yield store_path, rows
    writer.close()


class TestReading:
    def test_gather_returns_each_rows_own_answer(self, filled: tuple[Path, list[int]]) -> None:
        path, rows = filled
        with CacheReader.open(path, journal=True) as reader:
            wanted = np.random.default_rng(1).choice(rows, 256)
            batch = reader.gather(wanted)
            assert tuple(batch) == reader.outputs
            assert tuple(reader.gather(wanted, outputs="features")) == ("features",)
            for name, expected in stored(wanted.tolist()).items():
                assert batch[name].dtype == np.float16
                np.testing.assert_array_equal(batch[name], expected)
            np.testing.assert_array_equal(reader.labels(wanted), wanted % 5)
            np.testing.assert_array_equal(reader.keys(wanted), keys_of(wanted.tolist()))
            assert np.flatnonzero(reader.present()).tolist() == sorted(rows)
            assert reader.outputs == ("logits", "features")
            assert reader.dtypes == {"logits": "float16", "features": "float16"}
            assert (reader.num_rows, reader.num_views) == (20_000, 1)
            assert (reader.teacher, reader.dataset) == (TEACHER, TRAIN)

    def test_zarr_alone_reads_the_same_without_a_warning(self, filled: tuple[Path, list[int]]) -> None:
        path, rows = filled
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            root = zarr.open_group(str(path / "data.zarr"), mode="r")
            group = root[f"{TEACHER.id}/toy/train"]
            members = dict(group.members())
        slots = members["logits"].shape[0]
        assert slots in (len(rows), 100)
        assert sorted(members) == ["features", "keys", "labels", "logits", "rows", "views"]
        assert {array.shape[0] for array in members.values()} == {slots}
        np.testing.assert_array_equal(members["rows"][:], rows[:slots])
        np.testing.assert_array_equal(members["views"][:], np.zeros(slots))
        np.testing.assert_array_equal(members["labels"][:], np.array(rows[:slots]) % 5)
        np.testing.assert_array_equal(members["keys"][:], keys_of(rows[:slots]))
        for name, expected in stored(rows[:slots]).items():
            np.testing.assert_array_equal(members[name][:], expected)
        assert group.attrs["fingerprint"] == TRAIN.fingerprint
        assert root[TEACHER.id].attrs["weights"] == TEACHER.weights

    def test_a_copy_without_the_ledger_is_read_and_left_as_it_is(
        self, filled: tuple[Path, list[int]], tmp_path: Path
    ) -> None:
        path, rows = filled
        copy = copy_of(path, tmp_path / "copy", ledger=False)
        before = {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in copy.rglob("*")}
        with CacheReader.open(copy) as reader:
            batch = reader.gather(rows[:50])
        np.testing.assert_array_equal(batch["logits"], stored(rows[:50])["logits"])
        assert {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in copy.rglob("*")} == before
        with pytest.raises(InputError, match="journal=False"):
            CacheReader.open(copy, journal=True)

    def test_views_are_gathered_one_by_one_or_mixed(self, writer: CacheWriter, train: CacheHandle) -> None:
        for view in (0, 3, 18):
            keep(writer, train, [1, 2, 5], view=view)
        writer.fold()
        reader = CacheReader.open(writer.path)
        np.testing.assert_array_equal(reader.gather([5, 1], view=3)["logits"], stored([5, 1], 3)["logits"])
        mixed = reader.gather([5, 5, 2], view=[18, 0, 3])["logits"]
        expected = np.concatenate([stored([5], 18)["logits"], stored([5], 0)["logits"], stored([2], 3)["logits"]])
        np.testing.assert_array_equal(mixed, expected)
        assert reader.num_views == 3
        assert np.flatnonzero(reader.present(3)).tolist() == [1, 2, 5]
        assert not reader.present(4).any()
        assert train.slot_of(2, 18) == 7

    def test_refresh_shows_what_was_folded_since(self, writer: CacheWriter, train: CacheHandle) -> None:
        keep(writer, train, [1])
        writer.fold()
        reader = CacheReader.open(writer.path)
        held = reader.gather([1])["logits"]
        keep(writer, train, [2])
        writer.fold()
        assert not reader.present()[2]
        reader.refresh()
        np.testing.assert_array_equal(reader.gather([2, 1])["logits"], stored([2, 1])["logits"])
        reader.close()
        np.testing.assert_array_equal(held, stored([1])["logits"])
        with pytest.raises(InputError, match="closed"):
            reader.gather([1])

    def test_what_cannot_be_gathered_is_named_with_the_remedy(self, writer: CacheWriter, train: CacheHandle) -> None:
        keep(writer, train, [1])
        writer.fold()
        reader = CacheReader.open(writer.path)
        with pytest.raises(MissingRowsError, match=r"2 rows .*view 0: 4, 2; .*teacher-server fill") as caught:
            reader.gather([1, 4, 2])
        assert (caught.value.rows, caught.value.view) == ([4, 2], 0)
        with pytest.raises(RowRangeError, match=r"row 20000 .*0 to 19999"):
            reader.gather([1, 20_000])
        with pytest.raises(RowRangeError, match="row -1"):
            reader.gather([-1])
        with pytest.raises(RowRangeError, match=r"view 19 .*0 to 18"):
            reader.gather([1], view=19)
        with pytest.raises(OutputNotCachedError, match=r"'maps\.1'"):
            reader.gather([1], outputs=("maps.1",))
        with pytest.raises(InputError, match="must be integers"):
            reader.gather([0.5])
        with pytest.raises(InputError, match="2 views for 1 rows"):
            reader.gather([1], view=[0, 0])
        assert reader.gather([])["logits"].shape == (0, 5)

    def test_gather_writes_into_the_callers_arrays(self, filled: tuple[Path, list[int]]) -> None:
        path, rows = filled
        with CacheReader.open(path, journal=True) as reader:
            wanted = rows[3:7]
            out = {"features": np.empty((4, 3), np.float16)}
            batch = reader.gather(wanted, out=out)
            assert list(batch) == ["features"]
            assert batch["features"] is out["features"]
            np.testing.assert_array_equal(out["features"], stored(wanted)["features"])
            frozen = np.empty((4, 3), np.float16)
            frozen.flags.writeable = False
            for wrong in (np.empty((3, 3), np.float16), np.empty((4, 3), np.float32), np.empty((3, 4), "e").T, frozen):
                with pytest.raises(InputError, match=r"contiguous, writeable array of float16 \[4, 3\]"):
                    reader.gather(wanted, out={"features": wrong})

    @pytest.mark.parametrize("free", [10**12, 1000])
    @pytest.mark.parametrize("order", ["random", "window"])
    def test_an_epoch_visits_every_item_once_in_an_order_that_its_seed_fixes(
        self, filled: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch, order: Any, free: int
    ) -> None:
        """Also where the answers do not fit into memory, and are read ahead."""
        monkeypatch.setattr("cache.placement.host_free_bytes", lambda: free)
        path, rows = filled
        with CacheReader.open(path, journal=True, order=order) as reader:
            reader.prefetch(rows[:20])
            visits = []
            for seed in (1, 1, 2):
                seen = list(reader.epoch(rows, batch=64, seed=seed))
                assert [len(at) for at, _ in seen[:-1]] == [64] * (len(seen) - 1)
                for at, batch in seen:
                    np.testing.assert_array_equal(batch["logits"], stored([rows[i] for i in at])["logits"])
                visits.append(np.concatenate([at for at, _ in seen]).tolist())
            assert visits[0] == visits[1] != visits[2]
            assert sorted(visits[2]) == list(range(len(rows)))
            assert list(reader.epoch([])) == []

    def test_a_window_holds_neighbours_in_another_order(self) -> None:
        slots = np.random.default_rng(0).permutation(200_000)
        visited = slots[epoch_order(slots, order="window", window=65_536, seed=0)]
        window = np.sort(visited[:65_536])
        assert len(np.flatnonzero(np.diff(window) > 1)) < 512, "a window is made of whole blocks"
        assert window[-1] - window[0] > 150_000, "from all over the cache"
        assert np.abs(np.diff(visited)).mean() > 20_000, "and mixed"

    def test_answers_in_memory_outlive_their_files(self, filled: tuple[Path, list[int]]) -> None:
        path, rows = filled
        with CacheReader.open(path, journal=True, in_memory=True) as reader:
            for file in path.rglob("logits/c.*"):
                file.write_bytes(bytes(file.stat().st_size))
            np.testing.assert_array_equal(reader.gather(rows[:50])["logits"], stored(rows[:50])["logits"])

    def test_a_copy_that_does_not_fit_and_an_unknown_order_are_refused(
        self, filled: tuple[Path, list[int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path, _ = filled
        monkeypatch.setattr("cache.placement.host_free_bytes", lambda: 1000)
        with pytest.raises(InputError, match=r"do not fit into 60% of the 1\.0 kB"):
            CacheReader.open(path, in_memory=True)
        with pytest.raises(InputError, match="unknown order 'sorted'; known: random, window"):
            CacheReader.open(path, order="sorted")  # type: ignore[arg-type]

    @pytest.mark.parametrize("method", ["fork", "spawn"])
    def test_worker_processes_read_the_same(self, filled: tuple[Path, list[int]], method: str) -> None:
        path, rows = filled
        with CacheReader.open(path) as reader, multiprocessing.get_context(method).Pool(1) as pool:
            batch = pool.apply_async(methodcaller("gather", rows[:30]), (reader,)).get(60)
        np.testing.assert_array_equal(batch["logits"], stored(rows[:30])["logits"])

    def test_several_caches_must_be_told_apart(self, writer: CacheWriter, train: CacheHandle) -> None:
        other = replace(TEACHER, id="vgg8-ffffffffffff", arch="vgg8")
        keep(writer, writer.open_cache(other, TRAIN), [1])
        keep(writer, writer.open_cache(TEACHER, TEST), [2])
        keep(writer, train, [1])
        writer.fold()
        with pytest.raises(InputError, match=r"holds 3 caches, name one: .*toy/test.*toy/train"):
            CacheReader.open(writer.path)
        assert CacheReader.open(writer.path, teacher="vgg8").teacher == other
        assert CacheReader.open(writer.path, teacher="wrn", dataset="toy/test").dataset == TEST
        with pytest.raises(UnknownNameError, match="'mnist/train'; it has toy/test, toy/train"):
            CacheReader.open(writer.path, dataset="mnist/train")
        with pytest.raises(IdentityError, match="wrn_40_2-0123456789ab, not of wrn_40_2-eeeeeeeeeeee"):
            CacheReader.open(writer.path, teacher="wrn_40_2-eeeeeeeeeeee")

    def test_an_empty_cache_beside_a_filled_one_needs_no_name(self, writer: CacheWriter, train: CacheHandle) -> None:
        writer.open_cache(TEACHER, UPLOADS)
        keep(writer, train, [1])
        writer.fold()
        assert CacheReader.open(writer.path).dataset == TRAIN

    @pytest.mark.parametrize("damage", ["short", "missing"])
    def test_a_chunk_file_that_is_not_whole_is_an_error_before_it_is_read(
        self, writer: CacheWriter, train: CacheHandle, damage: str
    ) -> None:
        keep(writer, train, [1])
        writer.fold()
        chunk = train.folder / "logits" / "c.0.0"
        if damage == "short":
            chunk.write_bytes(chunk.read_bytes()[:-1])
        else:
            chunk.unlink()
        with pytest.raises(CorruptCacheError, match=r"c\.0\.0 has \d+ bytes instead of 81920"):
            CacheReader.open(writer.path)

    def test_what_all_arrays_hold_is_what_is_there(self, writer: CacheWriter, train: CacheHandle) -> None:
        """As in the middle of a fold's last step."""
        keep(writer, train, [1])
        writer.fold()
        early = (train.folder / "features" / "zarr.json").read_bytes()
        keep(writer, train, [2])
        writer.fold()
        (train.folder / "features" / "zarr.json").write_bytes(early)
        reader = CacheReader.open(writer.path)
        assert np.flatnonzero(reader.present()).tolist() == [1]

    @pytest.mark.parametrize(
        ("file", "old", "new", "named"),
        [
            ("zarr.json", b"          5\n", b"          4\n", "attributes of .*zarr.json differ from their checksum"),
            ("logits/zarr.json", b"\n    5\n", b"\n    4\n", "logits holds float16 .4. per slot, not float16 .5."),
            ("rows/c.0", (7).to_bytes(8, "little"), (20_000).to_bytes(8, "little"), "rows that toy/train does not"),
        ],
    )
    def test_documents_and_rows_that_contradict_each_other_are_refused(
        self, writer: CacheWriter, train: CacheHandle, *, file: str, old: bytes, new: bytes, named: str
    ) -> None:
        keep(writer, train, [7])
        writer.fold()
        data = (train.folder / file).read_bytes()
        assert data.count(old) == 1
        (train.folder / file).write_bytes(data.replace(old, new))
        with pytest.raises(CorruptCacheError, match=named):
            CacheReader.open(writer.path)

    def test_a_flipped_bit_in_the_tail_is_never_folded_again(self, store_path: Path) -> None:
        with CacheWriter.open(store_path) as writer:
            train = writer.open_cache(TEACHER, TRAIN)
            keep(writer, train, [1, 2])
        chunk = train.folder / "features" / "c.0.0"
        data = bytearray(chunk.read_bytes())
        data[3] ^= 1
        chunk.write_bytes(data)
        with (
            CacheWriter.open(store_path) as writer,
            pytest.raises(CorruptCacheError, match=r"slots 0 to 1 of .*features"),
        ):
            writer.open_cache(TEACHER, TRAIN)

    def test_arrays_that_another_tool_rewrote_are_still_read(self, writer: CacheWriter, train: CacheHandle) -> None:
        rows = list(range(50))
        keep(writer, train, rows)
        writer.fold()
        group = zarr.open_group(str(train.folder), mode="a")
        for name, values in {name: array[:] for name, array in group.members()}.items():
            group.create_array(name, data=values, chunks=(8, *values.shape[1:]), overwrite=True)
        with CacheReader.open(writer.path) as reader:
            np.testing.assert_array_equal(reader.gather([40, 3])["logits"], stored([40, 3])["logits"])
            assert reader.present().sum() == 50


class TestEncodings:
    """int8: a scale and a zero per row."""

    ROWS = tuple(range(8300))

    @pytest.fixture(params=["folded", "journal"])
    def path(self, request: pytest.FixtureRequest, store_path: Path) -> Iterator[Path]:
        with CacheWriter.open(store_path) as writer:
            cache = writer.open_cache(TEACHER, TRAIN, {"logits": "int8", "features": "float32"})
            keep(writer, cache, list(self.ROWS[:8250]))
            writer.fold()
            keep(writer, cache, list(self.ROWS[8250:]))
            if request.param == "folded":
                writer.fold()
            yield store_path

    def test_everybody_sees_the_same_numbers_near_the_teachers(self, path: Path) -> None:
        rows = [8299, 3, 8200]
        said = answers_of(rows)
        with CacheReader.open(path, journal=True) as reader:
            assert reader.dtypes == {"logits": "int8", "features": "float32"}
            batch = reader.gather(rows)
            kept = reader.gather(rows, encoded=True)
            out = {"logits": np.empty((3, 5), np.float32)}
            reader.gather(rows, out=out)
            streamed = dict(zip(*next(reader.epoch(rows, outputs="logits", batch=3)), strict=False))
        assert batch["logits"].dtype == np.float32
        np.testing.assert_array_equal(out["logits"], batch["logits"])
        assert streamed
        half_steps = (said["logits"].max(axis=1) - said["logits"].min(axis=1)) / 255 / 2
        assert (np.abs(batch["logits"] - said["logits"]).max(axis=1) <= half_steps * 1.001).all()
        np.testing.assert_array_equal(batch["features"], said["features"].astype(np.float32))
        assert list(kept) == ["logits", "logits.scale", "logits.zero", "features"]
        by_hand = kept["logits"].astype(np.float32) * kept["logits.scale"][:, None] + kept["logits.zero"][:, None]
        np.testing.assert_array_equal(batch["logits"], by_hand)
        copy = path.parent / "copy"
        with CacheWriter.open(copy_of(path, copy)) as writer:
            cache = writer.open_cache(TEACHER, TRAIN)
            places = [Place(cache.index, row) for row in rows]
            np.testing.assert_array_equal(writer.read(places, ["logits"])["logits"], batch["logits"])

    def test_zarr_alone_reads_them(self, path: Path) -> None:
        group = zarr.open_group(str(path / "data.zarr" / TEACHER.id / "toy" / "train"), mode="r")
        rows = group["rows"][:].tolist()
        values = (
            group["logits"][:].astype(np.float32) * group["logits.scale"][:][:, None] + group["logits.zero"][:][:, None]
        )
        with CacheReader.open(path) as reader:
            np.testing.assert_array_equal(reader.gather(rows)["logits"], values)
        assert group["logits"].dtype == np.int8
        assert dict(group.attrs["outputs"]) == {
            "logits": {"dtype": "int8", "shape": [5]},
            "features": {"dtype": "float32", "shape": [3]},
        }

    def test_encoded_answers_are_taken_over_to_the_bit(self, path: Path, tmp_path: Path) -> None:
        rows = [5, 8299]
        with CacheReader.open(path, journal=True) as reader, CacheWriter.open(tmp_path / "other") as writer:
            cache = writer.open_cache(TEACHER, TRAIN, reader.dtypes)
            kept = reader.gather(rows, encoded=True)
            given = adopted(rows) | {"outputs": kept}
            places = writer.adopt(cache, **given)
            read = writer.read(places, ["logits"])["logits"]
            np.testing.assert_array_equal(read, reader.gather(rows)["logits"])
            for name, wrong in (("logits.scale", np.full(2, np.nan, np.float32)), ("logits.zero", np.zeros(3, "f4"))):
                with pytest.raises(AnswerError, match=r"scale|zero"):
                    writer.adopt(cache, **(given | {"rows": [1, 2], "outputs": kept | {name: wrong}}))

    def test_another_data_sets_row_with_these_pixels_gets_the_same_bytes(self, path: Path) -> None:
        with CacheWriter.open(copy_of(path, path.parent / "copy")) as writer:
            train = writer.open_cache(TEACHER, TRAIN)
            test = writer.open_cache(TEACHER, TEST, train.outputs)
            known = writer.find(TEACHER.id, key_of(8299), cache=test)
            assert known == train.place_of(8299)
            (alias,) = writer.alias(test, run="default", items=[(4, 0, 0, known)])
            narrow = writer.open_cache(TEACHER, replace(TEST, name="toy/val"), {"logits": "int8"})
            (copied,) = keep(writer, narrow, [8299], keys=keys_of([8299]), rows=[7], outputs=answers_of([1]))
            read = writer.read([known, alias, copied], ["logits"])["logits"]
            np.testing.assert_array_equal(read[1:], read[:1].repeat(2, axis=0))


class Images:
    """A data set whose keys are known."""

    def __init__(self, description: DatasetDescription = TRAIN, *, wrong_row: int | None = None) -> None:
        self.description = description
        self.num_rows = description.rows
        self._wrong_row = wrong_row

    def key_of(self, row: int, view: int) -> bytes:
        return bytes(32) if row == self._wrong_row else key_of(row, view)


class TestSameImages:
    @pytest.fixture
    def reader(self, writer: CacheWriter, train: CacheHandle) -> CacheReader:
        keep(writer, train, [4, 17, 9])
        writer.fold()
        return CacheReader.open(writer.path)

    def test_the_images_of_the_cache_are_accepted(self, reader: CacheReader) -> None:
        reader.check_dataset(Images())
        reader.check_dataset(Images(replace(TRAIN, name="renamed/train")))

    @pytest.mark.parametrize(
        ("images", "named"),
        [
            (Images(wrong_row=17), "row 17 view 0 of toy/train shows other pixels"),
            (Images(replace(TRAIN, fingerprint="56" * 32)), "labels, pixels or their order differ"),
            (Images(replace(TRAIN, fingerprint="56" * 32, decoder="pillow 1"), wrong_row=4), "by pillow 1 now"),
            (Images(replace(TRAIN, rows=10)), "row 17 of the cache is not in toy/train of 10 rows"),
            (Images(replace(TRAIN, rows=30, fingerprint="")), "20000 rows in the cache, 30 here"),
        ],
    )
    def test_other_images_are_refused_with_the_remedy(self, reader: CacheReader, images: Images, named: str) -> None:
        with pytest.raises(IdentityError, match=f"{named}.*fill a new cache"):
            reader.check_dataset(images)
