"""``teacher-server fill`` and ``plan`` as real processes: resumed after kill -9, bounded, counted."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache.catalog import read_catalog
from cache.history_report import describe_history
from cache.info import describe_cache
from cache.reader import CacheReader
from cache.removal import remove
from cache.verify import find_damage
from cache.writer import CacheWriter
from shared.command import run_command
from shared.datasets.spec import open_dataset
from shared.errors import TeachonceError
from shared.fake_teacher import FakeTeacher
from shared.identity import sample_rows
from shared.models.build import build_model
from shared.models.checkpoint import CheckpointMetadata, save_checkpoint
from teacher_server.cli import app

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def cache_info(store: Path) -> dict:
    command = [str(Path(sys.executable).with_name("logit-cache")), "info", "--json", str(store)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True, env=ENVIRONMENT).stdout)


def test_a_fill_that_was_killed_goes_on_and_makes_no_committed_call_twice(
    run_server_command: Callable, start_server_command: Callable, make_images: Callable, tmp_path: Path
) -> None:
    pictures = make_images(tmp_path / "pictures", count=200)
    store = tmp_path / "store"
    options = ("--teacher", "fake:2", "--dataset", f"folder:{pictures}/train")
    fill = ("fill", *options, "--cache", str(store), "--batch", "8")
    killed = start_server_command(*fill, forward_s=0.1)
    wait_for_slots(store, count=40, process=killed)
    killed.kill()
    killed.communicate()
    before = cache_info(store)
    again = run_server_command(*fill)
    after = cache_info(store)

    assert again.returncode == 0, again.stderr
    kept = before["teacher_calls"]
    assert 40 <= kept < 200
    assert f"200 rows, {200 - kept} teacher calls, {kept} hits" in again.stdout
    assert after["teacher_calls"] == 200
    assert after["caches"][0]["present"] == {"0": 200}
    assert after["caches"][0]["folded"] == after["caches"][0]["slots"] == 200
    # Attempts of the batch that the kill interrupted stay counted, and no more than those in flight.
    assert 200 <= after["attempts"] <= 200 + 8 * 4
    # Every answer is in the history, and nothing that was cut off.
    described = describe_history(store)
    assert described["images"] == described["answers"] == 200
    assert described["unrecorded"] == after["attempts"] - 200


def wait_for_slots(store: Path, *, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while committed_slots(store) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def committed_slots(store: Path) -> int:
    """Slots that another process sees while the fill runs."""
    if not (store / "ledger.sqlite3").exists():
        return 0
    try:
        return int(describe_cache(store)["teacher_calls"])
    except TeachonceError:
        return 0  # it is being made


def test_a_fill_keeps_what_the_teacher_said_about_the_rows_that_were_drawn(
    run_server_command: Callable, pictures: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    spec = f"folder:{pictures}/train"
    options = ("--teacher", "fake:2", "--dataset", spec, "--cache", str(store), "--sample", "12", "--seed", "3")
    ran = run_server_command("fill", *options, "--dtype", "float32", "--batch", "5")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("12 rows, 12 teacher calls, 0 hits, ")

    dataset = open_dataset(spec)
    rows = sample_rows(num_rows=40, count=12, seed=3)
    with CacheReader.open(store) as reader:
        assert set(np.flatnonzero(reader.present())) == set(rows.tolist())
        kept = reader.gather(rows)
    expected = FakeTeacher(classes=2).answer(dataset.images(rows))
    np.testing.assert_array_equal(kept["logits"], expected["logits"])
    np.testing.assert_array_equal(kept["features"], expected["features"])


def test_a_fill_over_budget_ends_with_3_before_computing_anything(
    run_server_command: Callable, pictures: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    options = ("--teacher", "fake:2", "--dataset", f"folder:{pictures}/train", "--cache", str(store), "--run", "paper")
    first = run_server_command("fill", *options, "--budget", "15", "--sample", "10")
    second = run_server_command("fill", *options, "--budget", "15")
    third = run_server_command("fill", *options, "--budget", "40")

    assert (first.returncode, second.returncode, third.returncode) == (0, 3, 0), (first.stderr, third.stderr)
    assert "30 teacher calls needed, 5 remain" in second.stderr
    assert "raise --budget to 40" in second.stderr
    assert "Traceback" not in second.stderr
    assert cache_info(store)["budgets"]["paper"] == {"budget": 40, "attempts": 40, "teacher_calls": 40, "charged": 40}


def fill_in_process(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str]:
    """Exit code and output of ``teacher-server fill``."""
    with pytest.raises(SystemExit) as ended:
        run_command(app, ["fill", "--teacher", "fake:2", *arguments])
    captured = capsys.readouterr()
    return ended.value.code, captured.out + captured.err


def test_a_fill_over_the_whole_budget_says_which_budget_to_raise(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with CacheWriter.open(tmp_path / "store") as writer:
        writer.set_total_budget(5)
    options = ("--dataset", f"folder:{pictures}/train", "--cache", str(tmp_path / "store"))
    code, told = fill_in_process(capsys, *options)
    assert (code, "teacher-server serve --budget" in told, "raise --budget" in told) == (3, True, False), told


@pytest.mark.parametrize(("whole", "budget"), [(None, "20"), (15, "60")])
def test_a_refused_fill_leaves_the_run_the_budget_it_had(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], whole: int | None, budget: str
) -> None:
    options = ("--dataset", f"folder:{pictures}/train", "--cache", str(tmp_path / "store"), "--run", "paper")
    assert fill_in_process(capsys, *options, "--sample", "10", "--budget", "12")[0] == 0
    with CacheWriter.open(tmp_path / "store") as writer:
        writer.set_total_budget(whole)
    code, told = fill_in_process(capsys, *options, "--budget", budget)
    assert (code, "nothing was computed" in told) == (3, True), told
    assert cache_info(tmp_path / "store")["budgets"]["paper"]["budget"] == 12


def test_a_fill_on_a_budget_that_a_crash_ate_into_ends_with_3_and_says_by_how_much_to_raise_it(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    options = ("--dataset", f"folder:{pictures}/train", "--cache", str(store), "--run", "paper")
    assert fill_in_process(capsys, *options, "--sample", "10", "--budget", "40")[0] == 0
    with CacheWriter.open(store) as writer:
        (entry,) = read_catalog(store)
        # What a crash leaves of a batch of 8.
        writer.reserve(run="paper", cache=writer.open_cache(entry.teacher, entry.dataset), calls=8)
    for budget in ((), ("--budget", "40")):
        code, told = fill_in_process(capsys, *options, *budget)
        assert code == 3, told
        assert "30 teacher calls needed, 22 remain for run paper (8 of its attempts brought no answer" in told
        assert told.endswith("or raise --budget to 48 (8 more)\n")
    assert fill_in_process(capsys, *options, "--budget", "48")[0] == 0
    assert cache_info(store)["budgets"]["paper"] == {"budget": 48, "attempts": 48, "teacher_calls": 40, "charged": 40}


def test_a_budget_below_the_calls_made_is_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--dataset", f"folder:{pictures}/train", "--cache", str(tmp_path / "store"), "--sample", "10")
    assert fill_in_process(capsys, *options, "--budget", "12")[0] == 0
    code, told = fill_in_process(capsys, *options, "--budget", "9")
    assert (code, "below the 10 attempts" in told) == (2, True), told


def test_answers_that_are_kept_otherwise_are_no_answers_for_a_budget(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ("--cache", str(tmp_path / "store"))
    assert fill_in_process(capsys, "--dataset", f"folder:{pictures}/train", *store, "--dtype", "float32")[0] == 0
    again = ("--dataset", f"other=folder:{pictures}/train", *store, "--dtype", "float16", "--run", "b", "--batch", "8")
    code, told = fill_in_process(capsys, *again, "--budget", "20")
    assert (code, "nothing was computed" in told) == (3, True), told
    assert describe_cache(tmp_path / "store")["budgets"]["b"]["attempts"] == 0


def test_what_was_removed_is_asked_again_counted_again_and_bounded(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    options = ("--dataset", f"folder:{pictures}/train", "--cache", str(store), "--run", "paper")
    assert fill_in_process(capsys, *options, "--budget", "60")[0] == 0
    (entry,) = describe_cache(store)["caches"]
    with CacheReader.open(store) as reader:
        first = reader.gather(range(40))
    remove(store, what=f"{entry['teacher']}/pictures/train")
    assert describe_cache(store)["caches"] == []
    code, told = fill_in_process(capsys, *options)
    assert (code, "40 teacher calls needed, 20 remain" in told, "to 80 (20 more)" in told) == (3, True, True), told
    code, told = fill_in_process(capsys, *options, "--sample", "20")
    assert (code, "20 rows, 20 teacher calls, 0 hits" in told) == (0, True), told
    code, told = fill_in_process(capsys, *options, "--budget", "80")
    assert (code, "40 rows, 20 teacher calls, 20 hits" in told) == (0, True), told
    with CacheReader.open(store) as reader:
        again = reader.gather(range(40))
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)
    described = describe_history(store)
    assert (described["images"], described["answers"], described["unrecorded"]) == (80, 80, 0)
    # The batches of what was removed are still told with their names.
    assert {call["cache"] for call in described["calls"]} == {f"{entry['teacher']}/pictures/train"}
    paper = described["runs"]["paper"]
    # What was consumed before it was removed stays charged.
    assert (paper["attempts"], paper["teacher_calls"], paper["charged"]) == (80, 80, 80)
    assert list(find_damage(store)) == []


def test_a_budget_counts_duplicates_once(run_server_command: Callable, pictures: Path, tmp_path: Path) -> None:
    cats = sorted((pictures / "train" / "cat").iterdir())
    cats[5].write_bytes(cats[0].read_bytes())
    options = ("--teacher", "fake:2", "--dataset", f"folder:{pictures}/train", "--cache", str(tmp_path / "store"))
    planned = run_server_command("plan", *options, "--rate", "100")
    filled = run_server_command("fill", *options, "--budget", "39")
    after = run_server_command("plan", *options)

    assert "40 answers, 0 cached, 1 with pixels answered otherwise, 39 teacher calls" in planned.stdout
    assert "0.0 minutes at 100 images/s" in planned.stdout
    assert filled.stdout.startswith("40 rows, 39 teacher calls, 1 hits, ")
    assert "40 answers, 40 cached, 0 with pixels answered otherwise, 0 teacher calls" in after.stdout


def test_a_plan_leaves_nothing_behind(run_server_command: Callable, pictures: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    ran = run_server_command(
        "plan", "--teacher", "fake:2", "--dataset", f"folder:{pictures}", "--cache", str(store), "--views", "0-3"
    )
    assert ran.returncode == 0, ran.stderr
    assert "160 teacher calls, " in ran.stdout
    assert " kB, " in ran.stdout
    assert not store.exists()


def test_views_are_filled_and_the_one_that_is_the_image_costs_nothing(
    run_server_command: Callable, pictures: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    options = ("--teacher", "fake:2", "--dataset", f"folder:{pictures}/train", "--cache", str(store))
    ran = run_server_command("fill", *options, "--views", "0,41,7", "--batch", "16")
    assert ran.stdout.startswith("120 rows, 80 teacher calls, 40 hits, "), ran.stderr
    assert cache_info(store)["caches"][0]["present"] == {"0": 40, "7": 40, "41": 40}


@pytest.mark.parametrize("form", ["rows.txt", "rows.npy"])
def test_rows_come_from_a_file(run_server_command: Callable, pictures: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    if form.endswith("npy"):
        np.save(path, np.array([3, 1, 3]))
    else:
        path.write_text("3\n1\n3\n")
    options = ("--teacher", "fake:2", "--dataset", f"folder:{pictures}/train", "--cache", str(tmp_path / "store"))
    ran = run_server_command("fill", *options, "--rows", str(path), "--outputs", "logits")
    assert ran.stdout.startswith("2 rows, 2 teacher calls"), ran.stderr
    with CacheReader.open(tmp_path / "store") as reader:
        assert np.flatnonzero(reader.present()).tolist() == [1, 3]
        assert list(reader.outputs) == ["logits"]


BAD = {
    "an unknown teacher": (("--teacher", "zoo:nothing"), "nothing"),
    "an unknown kind of teacher": (("--teacher", "nothing"), "nothing"),
    "an unknown data set": (("--dataset", "nothing:x"), "known forms"),
    "an unknown split": (("--dataset", "digits/nothing"), "train"),
    "a row out of range": (("--rows", "ROWS"), "0 to 39"),
    "a sample too large": (("--sample", "41"), "40"),
    "an output that no teacher has": (("--outputs", "maps.1"), "logits"),
    "a dtype": (("--dtype", "float64"), "float16"),
    "a view out of range": (("--views", "163"), "0 to 162"),
    "views that are no numbers": (("--views", "x"), "0,5"),
    "a budget that no ledger can count": (("--budget", "9" * 20), "--budget"),
    "a run that is no name": (("--run", "A B"), "run"),
    "sample and rows": (("--sample", "1", "--rows", "ROWS"), "one of them"),
    "weights of a teacher without": (("--weights", "w.safetensors"), "drop --weights"),
    "classes of a teacher that has its own": (("--classes", "3"), "drop --classes"),
    "an unknown device": (("--teacher", "zoo:resnet8", "--device", "tpu"), "cuda"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_ends_with_2_and_one_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "rows.txt").write_text("40\n")
    options, word = BAD[name]
    given = [str(tmp_path / "rows.txt") if option == "ROWS" else option for option in options]
    defaults = {"--teacher": "fake:2", "--dataset": f"folder:{pictures}/train"}
    missing = [part for option, value in defaults.items() if option not in given for part in (option, value)]
    with pytest.raises(SystemExit) as ended:
        run_command(app, ["fill", *given, *missing, "--cache", str(tmp_path / "store")])
    errors = capsys.readouterr().err
    assert ended.value.code == 2, errors
    assert len(errors.splitlines()) == 1, errors
    assert word in errors


@pytest.mark.parametrize(("classes", "code"), [(("--classes", "5"), 2), (("--classes", "3"), 0), ((), 0)])
def test_classes_that_contradict_the_weights_are_refused(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: tuple[str, ...], code: int
) -> None:
    weights = tmp_path / "weights.safetensors"
    metadata = CheckpointMetadata(architecture="zoo:resnet8", classes=3)
    save_checkpoint(weights, build_model("zoo:resnet8", classes=3, seed=0), metadata=metadata)
    options = ("--dataset", f"folder:{pictures}/train", "--cache", str(tmp_path / "store"), "--sample", "1")
    with pytest.raises(SystemExit) as ended:
        run_command(app, ["fill", "--teacher", str(weights), *options, *classes])
    errors = capsys.readouterr().err
    assert ended.value.code == code, errors
    assert ("has 3 classes" in errors and "--classes 5" in errors) == (code == 2), errors
    assert cache_info(tmp_path / "store")["attempts"] == (1 if code == 0 else 0)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, rows=np.arange(3))
    return buffer.getvalue()


ROW_FILES = {
    "a word": ("rows.txt", b"1\nseven\n", "'seven'"),
    "a float": ("rows.txt", b"1.0\n", "'1.0'"),
    "no rows": ("rows.txt", b"\n", "no rows"),
    "a huge number": ("rows.txt", b"9" * 40, "one row number per line"),
    "bytes": ("rows.txt", b"\xff\xfe", "one row number per line"),
    "a missing file": ("rows.txt", None, "No such file"),
    "an empty npy": ("rows.npy", b"", "an .npy of integers"),
    "a truncated npy": ("rows.npy", npy(np.arange(9))[:-4], "an .npy of integers"),
    "several arrays": ("rows.npy", npz(), "one list of integers"),
    "floats in an npy": ("rows.npy", npy(np.ones(2)), "float64"),
    "an npy of no rows": ("rows.npy", npy(np.arange(0)), "no rows"),
    "a row over int64": ("rows.npy", npy(np.array([2**64 - 1], dtype=np.uint64)), "18446744073709551615"),
}


@pytest.mark.parametrize("name", ROW_FILES)
def test_a_bad_file_of_rows_ends_with_2_and_one_line(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file, content, word = ROW_FILES[name]
    if content is not None:
        (tmp_path / file).write_bytes(content)
    options = ("--teacher", "fake:2", "--dataset", f"folder:{pictures}/train", "--cache", str(tmp_path / "store"))
    with pytest.raises(SystemExit) as ended:
        run_command(app, ["fill", *options, "--rows", str(tmp_path / file)])
    errors = capsys.readouterr().err
    assert ended.value.code == 2, errors
    assert len(errors.splitlines()) == 1, errors
    assert word in errors


def test_another_data_set_of_the_same_name_and_size_is_refused(
    run_server_command: Callable, pictures: Path, tmp_path: Path
) -> None:
    options = ("--teacher", "fake:2", "--dataset", f"folder:{pictures}/train", "--cache", str(tmp_path / "store"))
    assert run_server_command("fill", *options).returncode == 0
    cats = sorted((pictures / "train" / "cat").iterdir())
    dogs = sorted((pictures / "train" / "dog").iterdir())
    first, second = cats[0].read_bytes(), dogs[0].read_bytes()
    cats[0].write_bytes(second)
    dogs[0].write_bytes(first)
    ran = run_server_command("fill", *options)
    assert ran.returncode == 2
    assert "pictures/train" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_nan_from_the_teacher_names_the_row_and_keeps_the_others(
    run_server_command: Callable, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "nan.py").write_text(
        "import torch\n"
        "class Odd(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.head = torch.nn.Linear(3, classes)\n"
        "    def forward(self, x):\n"
        "        y = self.head(x.mean((2, 3)))\n"
        "        return y + torch.where(torch.arange(len(y)) == 2, float('nan'), 0.0)[:, None] if len(y) == 8 else y\n"
        "def build(classes):\n"
        "    return Odd(classes)\n"
    )
    store = tmp_path / "store"
    teacher = ("--teacher", f"python:{tmp_path}/nan.py:build", "--device", "cpu")
    rows = ("--sample", "8", "--batch", "8")
    ran = run_server_command("fill", *teacher, "--dataset", f"folder:{pictures}/train", "--cache", str(store), *rows)
    bad = sample_rows(num_rows=40, count=8, seed=0)[2]
    assert ran.returncode == 2
    assert f"row {bad} of pictures/train" in ran.stderr
    counts = cache_info(store)
    assert (counts["attempts"], counts["teacher_calls"], counts["caches"][0]["present"]) == (8, 7, {"0": 7})


def test_ctrl_c_keeps_what_was_answered(start_server_command: Callable, make_images: Callable, tmp_path: Path) -> None:
    pictures = make_images(tmp_path / "pictures", count=100)
    store = tmp_path / "store"
    options = ("--teacher", "fake:2", "--dataset", f"folder:{pictures}/train", "--cache", str(store), "--batch", "2")
    filling = start_server_command("fill", *options, forward_s=0.1)
    wait_for_slots(store, count=6, process=filling)
    filling.send_signal(signal.SIGINT)
    _, errors = filling.communicate(timeout=30)
    counts = cache_info(store)

    assert filling.returncode == 130, errors
    assert "Traceback" not in errors
    assert 6 <= counts["teacher_calls"] < 100
    assert counts["teacher_calls"] == counts["attempts"] == counts["caches"][0]["folded"]


def test_answers_are_kept_in_the_encoding_asked_for_and_planned_so(
    run_server_command: Callable, pictures: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    options = ("--teacher", "fake:10", "--dataset", f"folder:{pictures}/train", "--cache", str(store))
    planned = run_server_command("plan", *options, "--outputs", "logits=int8,features=float32")
    filled = run_server_command("fill", *options, "--outputs", "logits=int8,features", "--dtype", "float32")
    assert filled.returncode == 0, filled.stderr
    width = cache_info(store)["caches"][0]["outputs"]["features"]["shape"][0]
    per_row = 8 + 8 + 4 + 32 + 10 + 8 + 4 * width
    assert f"{40 * per_row / 1000:.1f} kB" in planned.stdout
    with CacheReader.open(store) as reader:
        assert reader.dtypes == {"logits": "int8", "features": "float32"}
        said = FakeTeacher(classes=10).answer(open_dataset(f"folder:{pictures}/train").images(range(40)))["logits"]
        kept = reader.gather(range(40))["logits"]
        assert (np.abs(kept - said).max(axis=1) <= np.ptp(said, axis=1) / 255 / 2 * 1.001).all()
    for outputs, named in (("logits=int4", "int4"), ("logits,logits=int8", "logits or logits,features")):
        refused = run_server_command("fill", *options, "--outputs", outputs)
        assert refused.returncode == 2
        assert named in refused.stderr
