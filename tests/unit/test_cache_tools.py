"""Export, import, merge, repair and backup called on small caches: answers, costs and history come along."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from toy_cache import TEACHER, TRAIN, check_answers, commit, flip, group_of, keys_of, said

from cache.backup import back_up
from cache.brought import BroughtAnswers, DatasetFacts
from cache.catalog import read_catalog
from cache.export import export_answers
from cache.history_report import describe_history
from cache.importing import Imported, import_answers
from cache.info import describe_cache
from cache.merge import merge_caches
from cache.provenance import TeacherFacts
from cache.reader import CacheReader
from cache.repair import repair_cache
from cache.tensor_file import TensorFile
from cache.writer import CacheWriter
from shared.errors import CorruptCacheError, IdentityError, InputError


def fill(path: Path, *batches: range, owner: str = "local", shift: float = 0.0) -> Path:
    """Answers in the run ``study``, one model batch each."""
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(TEACHER, TRAIN)
        writer.ensure_run("study")
        for rows in batches:
            commit(writer, cache, rows, run="study", owner=owner, shift=shift)
    return path


def bring(file: Path, target: Path, **facts: Any) -> Imported:
    answers = BroughtAnswers(
        TensorFile(file),
        teacher=TeacherFacts(**facts),
        facts=DatasetFacts(),
        dataset=None,
        view=None,
        dtype="float16",
    )
    return import_answers(answers, file=file, target=target)


def told(path: Path) -> list[tuple[str, str, int, int, str]]:
    """The history as (owner, time, images, answers, device)."""
    calls = describe_history(path)["calls"]
    return [(call["owner"], call["time"], call["images"], call["answers"], call["device"]) for call in calls]


# export and import


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_an_export_comes_back_with_what_it_was_computed_with_and_costs_no_calls(tmp_path: Path, suffix: str) -> None:
    store, file, copy = fill(tmp_path / "store", range(5), range(5, 8)), tmp_path / f"a.{suffix}", tmp_path / "copy"
    assert export_answers(store, file) == 8
    brought = bring(file, copy)
    assert (brought.teacher, brought.adopted.new, brought.shared) == (TEACHER.id, 8, 0)
    check_answers(copy, range(8))
    assert (describe_cache(copy)["attempts"], describe_history(copy)["batches"]) == (0, 0)
    with CacheReader.open(copy) as reader, CacheReader.open(store) as original:
        for name, values in original.gather(range(8)).items():
            np.testing.assert_array_equal(reader.gather(range(8))[name], values)
    (entry,) = attributes_of(copy)["imported"]
    (history,) = entry["history"]
    assert (history["device"], history["batches"], history["images"], history["seconds"]) == ("toy", 2, 8, 0.5)
    assert (history["first"], history["versions"]) == ("2023-11-14T22:13:20.000+00:00", {"toylib": "1.0"})
    # Once more: everything is there already.
    assert (bring(file, copy).adopted.new, bring(file, copy).adopted.known) == (0, 8)
    assert len(attributes_of(copy)["imported"]) == 1


def attributes_of(path: Path) -> dict[str, Any]:
    """What the group of its one cache says."""
    (entry,) = read_catalog(path)
    return entry.attributes


def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", range(4))
    with pytest.raises(InputError, match=r"use one of \.safetensors, \.npz, \.parquet"):
        export_answers(store, tmp_path / "a.csv")
    export_answers(store, tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(InputError, match="exists"):
        export_answers(store, tmp_path / "a.npz")
    flip(group_of(store) / "logits" / "c.0.0")
    with pytest.raises(CorruptCacheError, match="nothing was exported"):
        export_answers(store, tmp_path / "b.npz")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.npz", "store"]
    assert (tmp_path / "a.npz").read_bytes() == before


def test_an_import_that_contradicts_a_cache_changes_nothing(tmp_path: Path) -> None:
    store, file = fill(tmp_path / "store", range(6)), tmp_path / "a.safetensors"
    export_answers(store, file)
    target = fill(tmp_path / "target", range(3), shift=1.0)
    with pytest.raises(IdentityError):
        bring(file, target)
    with CacheReader.open(target) as reader:
        assert np.flatnonzero(reader.present()).tolist() == [0, 1, 2]
        np.testing.assert_array_equal(reader.gather([1])["logits"].astype(np.float32), said([1], shift=1.0)["logits"])


def test_a_file_of_somebody_else_is_kept_under_a_teacher_that_never_ran_here(tmp_path: Path) -> None:
    rows = np.arange(6)
    keys = keys_of([0, 1, 2, 3, 4, 4])
    arrays = {"rows": rows, "views": rows * 0, "labels": rows % 4, "keys": keys, "logits": said(rows)["logits"]}
    save_file(arrays, tmp_path / "theirs.safetensors")
    assert load_file(tmp_path / "theirs.safetensors").keys() == arrays.keys()
    with pytest.raises(InputError, match="give --arch"):
        bring(tmp_path / "theirs.safetensors", tmp_path / "copy")
    answers = BroughtAnswers(
        TensorFile(tmp_path / "theirs.safetensors"),
        teacher=TeacherFacts(arch="vit", weights="ab" * 32),
        facts=DatasetFacts(name="pets/train"),
        dataset=None,
        view=None,
        dtype="float16",
    )
    brought = import_answers(answers, file=tmp_path / "theirs.safetensors", target=tmp_path / "copy")
    assert brought.teacher.startswith("vit-")
    # Two rows show the same pixels: the first answer counts for both.
    assert (brought.adopted.new, brought.shared) == (6, 1)
    with CacheReader.open(tmp_path / "copy") as reader:
        np.testing.assert_array_equal(reader.gather([5])["logits"], reader.gather([4])["logits"])


# merge


def test_a_merge_carries_owners_budgets_and_history_and_counts_them_once(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", range(4), owner="alice")
    two = fill(tmp_path / "two", range(2, 6), owner="bob")
    for path, owner, budget in ((one, "alice", 10), (two, "alice", 3), (two, "bob", 6)):
        with CacheWriter.open(path) as writer:
            writer.set_owner_budget(owner, budget)
    target = tmp_path / "target"
    merge_caches([one, two], target)
    check_answers(target, range(6))
    assert told(target) == [*told(one), *told(two)]
    owners = describe_history(target)["owners"]
    assert {name: (of["budget"], of["attempts"], of["charged"]) for name, of in owners.items()} == {
        "alice": (13, 4, 4),
        "bob": (6, 4, 4),
        "local": (None, 0, 0),
    }
    fill(two, range(6, 8), owner="bob")
    # The source has grown; what it said before is not told again.
    merge_caches([two], target)
    check_answers(target, range(8))
    assert told(target) == [*told(one), *told(two)]
    described = describe_history(target)
    assert (described["images"], described["unrecorded"], described["owners"]["bob"]["attempts"]) == (10, 0, 6)
    with closing(sqlite3.connect(target / "ledger.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM environments").fetchone() == (1,)


def test_caches_that_contradict_each_other_make_no_third(tmp_path: Path) -> None:
    one, two = fill(tmp_path / "one", range(4)), fill(tmp_path / "two", range(2, 6), shift=1.0)
    with pytest.raises(IdentityError):
        merge_caches([one, two], tmp_path / "target")
    with pytest.raises(InputError, match="named twice"):
        merge_caches([one, one], tmp_path / "target")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]


# repair and backup


def test_a_repair_takes_answers_and_no_cost(tmp_path: Path) -> None:
    store = fill(tmp_path / "store", range(4), owner="alice")
    with CacheWriter.open(store) as writer:
        commit(writer, writer.open_cache(TEACHER, TRAIN), range(4, 6), run="study", owner="bob")
        writer.fold()
    before = describe_history(store)
    assert repair_cache(store) == []
    flip(group_of(store) / "logits" / "c.0.0")
    (loss,) = repair_cache(store)
    # One flipped bit costs the segment that one fold wrote.
    assert (loss.answers, loss.kept, loss.rows) == (4, 2, tuple((row, 0) for row in range(4)))
    check_answers(store, range(4, 6))
    assert describe_history(store) == before
    assert loss.quarantine is not None
    fill(store, range(4), owner="alice")
    check_answers(store, range(6))
    alice = describe_history(store)["owners"]["alice"]
    assert (alice["attempts"], alice["teacher_calls"], alice["charged"]) == (8, 8, 8)
    assert len(told(store)) == 3


def test_a_backup_beside_an_open_writer_has_the_history_up_to_its_moment(tmp_path: Path) -> None:
    with CacheWriter.open(tmp_path / "store") as writer:
        cache = writer.open_cache(TEACHER, TRAIN)
        writer.ensure_run("study")
        commit(writer, cache, range(4), run="study", owner="alice")
        back_up(tmp_path / "store", tmp_path / "copy")
        commit(writer, cache, range(4, 6), run="study")
    assert told(tmp_path / "copy") == told(tmp_path / "store")[:1]
    check_answers(tmp_path / "copy", range(4))
