"""`logit-cache import` and `merge`, as processes, on real caches, killed in the middle too."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr
from safetensors.numpy import save_file
from toy_cache import ask, check_answers, costs, group_of, logit_cache, refused, succeed

from cache.info import describe_cache
from cache.reader import CacheReader
from cache.verify import find_damage
from shared.datasets.spec import open_dataset

DIGITS = open_dataset("digits/train")
WHO = ("--arch", "elsewhere", "--weights", "release 7")


def computed(rows: np.ndarray) -> dict[str, np.ndarray]:
    """Logits of a linear model of the pixels that nobody here knows, and what a careful user saves with them."""
    weights = np.random.default_rng(7).normal(size=(192, 10)).astype(np.float32)
    pixels = np.stack(DIGITS.images(rows)).reshape(len(rows), -1).astype(np.float32) / 255
    return {"logits": pixels @ weights, "features": pixels[:, :32], "rows": rows, "views": np.zeros_like(rows)}


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """500 answers computed elsewhere, with the labels."""
    rows = np.random.default_rng(0).permutation(1437)[:500]
    np.savez(tmp_path / "elsewhere.npz", labels=DIGITS.labels[rows], **computed(rows))
    return tmp_path / "elsewhere.npz"


# import


def test_answers_computed_elsewhere_become_a_cache_that_says_so(elsewhere: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    assert "500 answers imported" in succeed("import", path, elsewhere, "--dataset", "digits/train", *WHO)
    assert list(find_damage(path)) == []
    described = describe_cache(path)
    (entry,) = described["caches"]
    assert (described["attempts"], described["teacher_calls"], entry["slots"]) == (0, 0, 500)
    assert entry["teacher"].startswith("elsewhere-")
    group = zarr.open_group(str(path / "data.zarr" / entry["teacher"] / "digits" / "train"), mode="r")
    rows = group["rows"][:]
    np.testing.assert_array_equal(group["logits"][:], computed(rows)["logits"].astype(np.float16))
    np.testing.assert_array_equal(group["keys"][:], DIGITS.keys[rows])
    np.testing.assert_array_equal(group["labels"][:], DIGITS.labels[rows])
    (note,) = group.attrs["imported"]
    assert (note["file"], note["answers"], note["finished"]) == ("elsewhere.npz", 500, True)
    with CacheReader.open(path) as reader:
        reader.check_dataset(DIGITS)
        assert reader.present().sum() == 500


def test_an_imported_cache_trains_a_student(elsewhere: Path, tmp_path: Path) -> None:
    succeed("import", tmp_path / "store", elsewhere, "--dataset", "digits/train", *WHO)
    command = ["train", "--cache", str(tmp_path / "store"), "--dataset", "digits", "--student", "zoo:mlp"]
    command += ["--loss", "mse", "--missing", "skip", "--epochs", "1", "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "student_trainer.cli", *command],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": "rolled"}, "has another label"),
        ({"rows": "shifted"}, "has another label"),
        ({"keys": "wrong"}, "has other pixels"),
        ({"rows": None}, "has no rows"),
        ({"rows": "twice"}, "more than once"),
        ({"rows": "beyond"}, "is not a row of digits/train"),
        ({"views": None}, "--view 0"),
        ({"views": "many"}, "view 10 is out of range"),
        ({"logits": None}, "no array called logits"),
        ({"logits": "nan"}, "not finite"),
        ({"logits": "integers"}, "must be floats"),
        ({"features": "short"}, "must be floats [500, width]"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_made(
    elsewhere: Path, tmp_path: Path, change: dict[str, str | None], reason: str
) -> None:
    arrays = dict(np.load(elsewhere))
    ((name, what),) = change.items()
    values = arrays.pop(name, None)
    changed = {
        "rolled": lambda: np.roll(values, 1),
        "shifted": lambda: (values + 1) % 1437,
        "wrong": lambda: np.zeros((500, 32), dtype=np.uint8),
        "twice": lambda: np.where(np.arange(500) == 1, values[0], values),
        "beyond": lambda: np.where(np.arange(500) == 9, 1437, values),
        "many": lambda: values + 10,
        "nan": lambda: np.where(np.arange(5000).reshape(500, 10) == 77, np.nan, values),
        "integers": lambda: values.astype(np.int64),
        "short": lambda: values[:-1],
    }
    if name == "rows" and what == "twice":
        arrays.pop("labels")
    if what is not None:
        arrays[name] = changed[what]()
    np.savez(elsewhere, **arrays)
    assert reason in refused("import", tmp_path / "store", elsewhere, "--dataset", "digits/train", *WHO)
    assert [entry.name for entry in tmp_path.iterdir()] == [elsewhere.name]


def test_bad_files_and_missing_facts_have_one_clear_line(elsewhere: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    assert "--arch" in refused("import", path, elsewhere, "--dataset", "digits/train")
    assert "--dataset" in refused("import", path, elsewhere, *WHO)
    assert "not a file" in refused("import", path, tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("no zip")
    (tmp_path / "text.safetensors").write_text("no tensors")
    assert "no npz file" in refused("import", path, tmp_path / "text.npz")
    assert "no safetensors file" in refused("import", path, tmp_path / "text.safetensors")
    assert ".safetensors and .npz can be read" in refused("import", path, Path(__file__))
    assert not path.exists()


def test_a_file_with_all_keys_and_labels_needs_no_data_set(tmp_path: Path) -> None:
    rows = np.arange(1437)
    arrays = computed(rows) | {"keys": np.array(DIGITS.keys), "labels": np.array(DIGITS.labels)}
    classes = {"classes": json.dumps(list(DIGITS.classes))}
    save_file(arrays, tmp_path / "all.safetensors", metadata=classes)
    path = tmp_path / "store"
    succeed("import", path, tmp_path / "all.safetensors", *WHO, "--name", "digits/train", "--view-policy", "crop1")
    with CacheReader.open(path) as reader:
        # The same fingerprint as the images have.
        reader.check_dataset(DIGITS)
    some = {name: values[:100] for name, values in arrays.items()}
    save_file({**some, "rows": rows[1:101]}, tmp_path / "some.safetensors", metadata=classes)
    assert "without all of them" in refused(
        "import", tmp_path / "other", tmp_path / "some.safetensors", *WHO, "--name", "digits/train"
    )


def test_an_answer_that_is_there_with_other_bytes_is_refused(elsewhere: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    succeed("import", path, elsewhere, "--dataset", "digits/train", *WHO)
    arrays = dict(np.load(elsewhere))
    arrays["logits"][123] += 1
    np.savez(tmp_path / "again.npz", **arrays)
    reason = refused("import", path, tmp_path / "again.npz", "--dataset", "digits/train", *WHO)
    assert f"row {arrays['rows'][123]} view 0" in reason
    assert "1 answers differ" in reason
    assert describe_cache(path)["caches"][0]["slots"] == 500


@pytest.mark.timeout(300)
def test_an_import_killed_anywhere_goes_on_where_it_stopped(elsewhere: Path, tmp_path: Path) -> None:
    first, rest = tmp_path / "first.npz", tmp_path / "rest.npz"
    arrays = dict(np.load(elsewhere))
    np.savez(first, **{name: values[:100] for name, values in arrays.items()})
    np.savez(rest, **arrays)
    options = ("--dataset", "digits/train", *WHO)
    succeed("import", tmp_path / "base", first, *options)
    for name, kill_at in (("old", 30), ("old", 45), ("old", 60), ("old", 80), ("new", 60), ("new", 200)):
        path = tmp_path / f"{name}{kill_at}"
        if name == "old":
            shutil.copytree(tmp_path / "base", path)
        assert logit_cache("import", path, rest, *options, kill_at=kill_at).returncode == -signal.SIGKILL
        succeed("import", path, rest, *options)
        assert list(find_damage(path)) == []
        (entry,) = describe_cache(path)["caches"]
        assert entry["slots"] == 500
        group = zarr.open_group(str(path / "data.zarr" / entry["teacher"] / "digits" / "train"), mode="r")
        np.testing.assert_array_equal(group["logits"][:], computed(group["rows"][:])["logits"].astype(np.float16))
        notes = [(note["file"], note["answers"], note["finished"]) for note in group.attrs["imported"]]
        assert notes == (
            [("first.npz", 100, True), ("rest.npz", 400, True)] if name == "old" else [("rest.npz", 500, True)]
        )
    assert not list(tmp_path.glob("*.partial"))


# merge


def test_a_merge_adds_answers_calls_and_budgets_up(tmp_path: Path) -> None:
    ask(tmp_path / "a", range(100), budget=150)
    ask(tmp_path / "b", range(60, 200), budget=140)
    ask(tmp_path / "b", range(60, 80), run="other")
    shown = succeed("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "both")
    assert "100 answers, 40 were there already" in shown
    assert "run study: budget 150 + 140 = 290" in shown
    check_answers(tmp_path / "both", range(200))
    described = describe_cache(tmp_path / "both")
    # Both asked about rows 60 to 99: these calls were made twice; 200 answers were consumed.
    assert described["budgets"]["study"] == {"budget": 290, "attempts": 240, "teacher_calls": 240, "charged": 200}
    assert described["budgets"]["other"] == {"budget": None, "attempts": 0, "teacher_calls": 0, "charged": 20}
    assert (described["attempts"], described["teacher_calls"]) == (240, 240)
    # The result is a cache like any other: what is there costs nothing.
    ask(tmp_path / "both", range(150, 210))
    assert costs(tmp_path / "both") == (250, 250, 210)


def test_a_source_merged_again_adds_only_what_is_new(tmp_path: Path) -> None:
    ask(tmp_path / "a", range(100), budget=200)
    ask(tmp_path / "target", range(200, 250), budget=50)
    succeed("merge", tmp_path / "a", "--into", tmp_path / "target")
    for _ in range(2):
        assert "0 teacher calls (0 attempts) added" in succeed("merge", tmp_path / "a", "--into", tmp_path / "target")
    assert costs(tmp_path / "target") == (150, 150, 150)
    ask(tmp_path / "a", range(100, 130))
    succeed("backup", tmp_path / "a", tmp_path / "copy")
    # A copy is the same ledger.
    shown = succeed("merge", tmp_path / "a", tmp_path / "copy", "--into", tmp_path / "target")
    assert "30 answers, 100 were there already; 30 teacher calls (30 attempts) added" in shown
    assert "0 answers, 130 were there already; 0 teacher calls (0 attempts) added" in shown
    check_answers(tmp_path / "target", [*range(130), *range(200, 250)])
    assert costs(tmp_path / "target") == (180, 180, 180)
    assert describe_cache(tmp_path / "target")["budgets"]["study"]["budget"] == 250


def test_copies_that_went_separate_ways_are_added_in_full_and_it_is_said(tmp_path: Path) -> None:
    ask(tmp_path / "a", range(100))
    succeed("backup", tmp_path / "a", tmp_path / "b")
    ask(tmp_path / "a", range(100, 110))
    ask(tmp_path / "b", range(200, 220))
    shown = succeed("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "both")
    assert "separate ways" in shown
    check_answers(tmp_path / "both", [*range(110), *range(200, 220)])
    # Never fewer than were made.
    assert costs(tmp_path / "both") == (230, 230, 130)


def test_contradictions_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    ask(tmp_path / "a", range(100))
    ask(tmp_path / "b", range(200, 300))
    ask(tmp_path / "c", [299], shift=1)
    reason = refused("merge", tmp_path / "a", tmp_path / "b", tmp_path / "c", "--into", tmp_path / "all")
    assert "row 299 view 0 of toy/train" in reason
    assert not (tmp_path / "all").exists()
    before = {file: file.read_bytes() for file in (tmp_path / "a" / "data.zarr").rglob("c.*")}
    assert "row 299" in refused("merge", tmp_path / "b", tmp_path / "c", "--into", tmp_path / "a")
    check_answers(tmp_path / "a", range(100))
    assert costs(tmp_path / "a") == (100, 100, 100)
    assert {file: file.read_bytes() for file in before} == before


def test_what_does_not_belong_together_is_not_merged(
    tmp_path: Path, run_server_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    ask(tmp_path / "a", range(10))
    fill = [
        "fill",
        "--teacher",
        "fake:10",
        "--dataset",
        "digits/train",
        "--cache",
        str(tmp_path / "b"),
        "--sample",
        "5",
    ]
    assert run_server_command(*fill).returncode == 0
    assert "different teachers" in refused("merge", tmp_path / "a", tmp_path / "b", "--into", tmp_path / "all")
    assert "named twice" in refused("merge", tmp_path / "a", tmp_path / "a", "--into", tmp_path / "all")
    assert "is not a cache" in refused("merge", tmp_path / "a", tmp_path / "no", "--into", tmp_path / "all")
    chunk = group_of(tmp_path / "a") / "logits" / "c.0.0"
    chunk.write_bytes(b"x" + chunk.read_bytes()[1:])
    assert "repair" in refused("merge", tmp_path / "a", "--into", tmp_path / "all", code=5)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.timeout(300)
def test_a_merge_killed_anywhere_loses_no_answer_and_counts_no_call_twice(tmp_path: Path) -> None:
    ask(tmp_path / "a", range(100), budget=100)
    ask(tmp_path / "base", range(90, 120), budget=30)
    for kill_at in (60, 100, 140, 180, 220):
        old, new = tmp_path / f"old{kill_at}", tmp_path / f"new{kill_at}"
        shutil.copytree(tmp_path / "base", old)
        assert logit_cache("merge", tmp_path / "a", "--into", old, kill_at=kill_at).returncode == -signal.SIGKILL
        # Answers are never there without what they cost.
        described = describe_cache(old)
        if described["caches"][0]["slots"] > 30:
            assert described["teacher_calls"] == 130
        succeed("merge", tmp_path / "a", "--into", old)
        check_answers(old, range(120))
        assert costs(old) == (130, 130, 120)
        assert describe_cache(old)["budgets"]["study"]["budget"] == 130
        logit_cache("merge", tmp_path / "a", tmp_path / "base", "--into", new, kill_at=kill_at)
        if not new.exists():
            succeed("merge", tmp_path / "a", tmp_path / "base", "--into", new)
        check_answers(new, range(120))
        assert costs(new) == (130, 130, 120)
    assert not list(tmp_path.glob("*.partial"))


def test_imported_answers_stay_marked_when_they_are_merged(elsewhere: Path, tmp_path: Path) -> None:
    options = ("--dataset", "digits/train", *WHO)
    succeed("import", tmp_path / "a", elsewhere, *options)
    succeed("merge", tmp_path / "a", "--into", tmp_path / "b")
    (entry,) = describe_cache(tmp_path / "b")["caches"]
    group = zarr.open_group(str(tmp_path / "b" / "data.zarr" / entry["teacher"] / "digits" / "train"), mode="r")
    (note,) = group.attrs["imported"]
    assert (note["file"], note["answers"]) == ("elsewhere.npz", 500)
    assert (entry["attempts"], entry["teacher_calls"]) == (0, 0)
