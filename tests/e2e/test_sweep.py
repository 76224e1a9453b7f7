"""Whole sweeps with real processes: killed and resumed, counted, grown, refused, and fed by other people's answers."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cache.info import describe_cache
from shared.command import run_command
from shared.errors import IdentityError, MissingRowsError, TeachonceError
from student_trainer.cli import app
from student_trainer.sweep.progress import Lines
from student_trainer.sweep.reading import read_recipe
from student_trainer.sweep.results import TIMING
from student_trainer.sweep.run import Outcome, SweepSettings, run_sweep

RECIPE: dict[str, Any] = {
    "name": "small",
    "dataset": "digits",
    "teacher": {"spec": "fake:10"},
    "students": ["zoo:mlp"],
    "losses": ["ce", "kl", {"label": "kl label-only", "loss": "kl", "missing": "label-only", "group": "control"}],
    "budgets": [20, 40],
    "seeds": 2,
    "lr": [0.1, 0.02],
    "train": {"steps": 20, "schedule": "plateau", "patience_steps": 5},
    "test_sample": 100,
}
TRIALS = (2 * 3 + 1) * 2 * 2

pytestmark = pytest.mark.timeout(1500)


def write_recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(RECIPE | changes))
    return path


def run(recipe: Path, *, out: Path, jobs: int = 1) -> Outcome:
    settings = SweepSettings(recipe=read_recipe(recipe), out=out, jobs=jobs, device="cpu", gpus=(), command="sweep")
    with Lines(sys.stderr) as view:
        return run_sweep(settings, view=view)


def start(recipe: Path, *, out: Path) -> "subprocess.Popen[bytes]":
    """The command, in a process group of its own, on two processes."""
    command = [sys.executable, "-m", "student_trainer.cli", "sweep", str(recipe), "--out", str(out), "--jobs", "2"]
    return subprocess.Popen(
        [*command, "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def wait_until(true: Callable[[], bool], *, process: "subprocess.Popen[bytes] | None" = None) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)


def table(out: Path) -> list[dict[str, Any]]:
    """results.jsonl without what differs from machine to machine."""
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMING} for line in lines]


def finished(out: Path) -> dict[Path, int]:
    """Trials that are finished, each with the time of its last epoch."""
    return {path: (path.parent / "metrics.jsonl").stat().st_mtime_ns for path in (out / "runs").rglob("results.json")}


def is_free(lock: Path) -> bool:
    with lock.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def header(out: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((out / "sweep.json").read_text())
    return read


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sweep that was never interrupted, in one process."""
    folder = tmp_path_factory.mktemp("whole")
    outcome = run(write_recipe(folder), out=folder / "out")
    assert (outcome.trials, outcome.cells, outcome.diverged, outcome.lost) == (TRIALS, 7, 0, ())
    yield folder / "out"


def test_a_sweep_killed_while_asking_and_while_training_ends_with_the_same_table(whole: Path, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "out"
    asking = start(recipe, out=out)
    log = out / "server.log"
    wait_until(lambda: log.exists() and "listening" in log.read_text(), process=asking)
    os.kill(asking.pid, signal.SIGKILL)
    asking.wait()
    # Its processes, the teacher's too, end with it.
    wait_until(lambda: is_free(out / "cache" / "writer.lock"))
    training = start(recipe, out=out)
    wait_until(lambda: len(finished(out)) >= 5, process=training)
    os.killpg(training.pid, signal.SIGKILL)
    training.wait()
    before = finished(out)
    assert 5 <= len(before) < TRIALS
    run(recipe, out=out)
    after = finished(out)
    assert {path: after[path] for path in before} == before
    assert table(out) == table(whole)


def test_every_line_says_what_it_is(whole: Path) -> None:
    lines = table(whole)
    assert len(lines) == TRIALS
    chosen = [line for line in lines if line["chosen"]]
    assert len(chosen) == TRIALS / 2
    assert {(line["cell"], line["seed"]) for line in chosen} == {(line["cell"], line["seed"]) for line in lines}
    for line in lines:
        result = json.loads((whole / line["run"] / "results.json").read_text())
        assert (result["loss"], result["seed"], result["lr"]) == (line["loss"].split()[0], line["seed"], line["lr"])
        assert line["val_accuracy"] == result["val_accuracy_best"]
        # The test split is touched by the chosen learning rate alone.
        assert (line["test_accuracy"] is not None) == line["chosen"] == (result["test_accuracy_best"] is not None)
        asks = line["loss"].startswith("kl")
        assert line["charged"] == line["answered_rows"] == (line["budget"] if asks else 0)
        assert line["ledger_run"] == (f"random.s{line['seed']}.clean.n{line['budget']}" if asks else None)
        everything = line["budget"] == 0 or line["loss"] == "kl label-only"
        assert (line["rows"], line["val_rows"]) == ((1150, 287) if everything else (line["budget"], line["budget"] / 4))
        assert line["test_rows"] == (100 if line["chosen"] else 0)


def test_the_ledger_agrees_with_the_rows(whole: Path) -> None:
    ledger = header(whole)["ledger"]
    asked: set[int] = set()
    for seed in (0, 1):
        for budget in (20, 40):
            rows = set(np.load(whole / "rows" / f"asked-random-s{seed}-n{budget}.npy").tolist())
            counts = ledger["runs"][f"random.s{seed}.clean.n{budget}"]
            assert len(rows) == budget == counts["charged"] == counts["budget"]
            assert counts["teacher_calls"] == counts["attempts"] == len(rows - asked)
            asked |= rows
    assert ledger["runs"]["teacher-test"]["teacher_calls"] == 100
    assert ledger["teacher_calls"] == ledger["attempts"] == len(asked) + 100
    assert header(whole)["teacher"]["test_accuracy"] is not None


def test_a_finished_sweep_asks_nobody_and_grows_by_what_is_new(whole: Path, tmp_path: Path) -> None:
    before, trained, calls = table(whole), finished(whole), header(whole)["ledger"]["teacher_calls"]
    (whole / "server.log").unlink()
    run(write_recipe(tmp_path), out=whole)
    assert not (whole / "server.log").exists()
    assert table(whole) == before
    grown = run(write_recipe(tmp_path, budgets=[20, 40, 60], losses=[*RECIPE["losses"], "mse"]), out=whole)
    assert grown.trials == (3 * 4 + 1) * 2 * 2
    after = finished(whole)
    assert {path: after[path] for path in trained} == trained
    old = [line for line in table(whole) if line["budget"] != 60 and line["loss"] != "mse"]
    assert old == before
    new = {row for seed in (0, 1) for row in np.load(whole / "rows" / f"asked-random-s{seed}-n60.npy").tolist()}
    known = {row for seed in (0, 1) for row in np.load(whole / "rows" / f"asked-random-s{seed}-n40.npy").tolist()}
    assert header(whole)["ledger"]["teacher_calls"] == calls + len(new - known)
    with pytest.raises(IdentityError, match=r"recipe: budgets was \[20, 40, 60\], is \[20, 40\]; .*; train was"):
        run(write_recipe(tmp_path, train={"steps": 21}), out=whole)


def test_answers_of_another_cache_are_read_and_never_added_to(whole: Path, tmp_path: Path) -> None:
    changes = {"losses": ["kl"], "seeds": 1, "lr": [0.1], "teacher": {"cache": str(whole / "cache")}}
    run(write_recipe(tmp_path, **changes), out=tmp_path / "out")
    theirs = {line["cell"]: line for line in table(whole) if (line["seed"], line["lr"]) == (0, 0.1)}
    for line in table(tmp_path / "out"):
        assert line["val_accuracy"] == theirs[line["cell"]]["val_accuracy"]
        assert line["ledger_run"] is None
        assert line["test_accuracy"] is not None
    with pytest.raises(MissingRowsError, match=r"of the 200 rows of random.s0.clean.n200 .* `teacher-server fill"):
        run(write_recipe(tmp_path, **changes | {"budgets": [200]}), out=tmp_path / "more")


def test_a_running_server_is_asked_once(launch_server: Callable[..., Any], tmp_path: Path) -> None:
    server = launch_server(tmp_path / "theirs", "--dataset", "digits")
    recipe = write_recipe(
        tmp_path, losses=["kl"], seeds=1, lr=[0.1], teacher={"server": server.url}, references={"ce_all": False}
    )
    run(recipe, out=tmp_path / "out")
    assert server.ledger()["teacher_calls"] == 40
    assert [(line["ledger_run"], line["charged"]) for line in table(tmp_path / "out")] == [
        ("small.random.s0.clean.n20", 20),
        ("small.random.s0.clean.n40", 40),
    ]
    assert server.stop() == 0
    run(recipe, out=tmp_path / "out")


def test_selections_that_look_at_a_student_begin_with_the_same_rows_and_are_charged_alike(tmp_path: Path) -> None:
    changes = {"select": ["random", "margin"], "losses": ["kl"], "seeds": 1, "lr": [0.1]}
    views = [{"name": "two", "teacher": "0,2", "student": "same"}]
    out = tmp_path / "out"
    run(write_recipe(tmp_path, **changes, views=views, references={"ce_all": False, "teacher": False}), out=out)
    orders = {select: np.load(out / "rows" / f"asked-{select}-s0-n20.npy").tolist() for select in ("random", "margin")}
    assert orders["random"][:10] == orders["margin"][:10]
    assert set(orders["random"]) != set(orders["margin"])
    runs = header(out)["ledger"]["runs"]
    assert {name: run["charged"] for name, run in runs.items()} == {
        f"{select}.s0.two.n{budget}": budget for select in ("random", "margin") for budget in (20, 40)
    }
    assert {line["select"]: line["answered_rows"] for line in table(out) if line["budget"] == 40} == {
        "random": 20,
        "margin": 20,
    }


def test_ctrl_c_keeps_what_is_finished_and_ends_with_130(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start(write_recipe(tmp_path, seeds=5), out=out)
    wait_until(lambda: len(finished(out)) >= 2, process=process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert len(table(out)) >= 2


def test_a_sample_beyond_the_test_split_is_all_of_it_and_an_unfinished_sweep_has_finished_cells(tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path, losses=["ce"], budgets=[20], lr=[0.1], test_sample=5000), tmp_path / "out"
    run(recipe, out=out)
    assert {(line["test_rows"], line["chosen"]) for line in table(out)} == {(360, True)}
    before = table(out)
    with pytest.raises(KeyboardInterrupt):
        interrupted(write_recipe(tmp_path, losses=["ce", "kl"], budgets=[20], lr=[0.1], test_sample=5000), out=out)
    # What was finished before is still called so.
    assert [line for line in table(out) if line["loss"] in ("ce", "ce (all labels)")] == before


def interrupted(recipe: Path, *, out: Path) -> None:
    """A sweep that is stopped as soon as one more training is done."""

    class Stop(Lines):
        def finish(self, name: str, *, work: int, outcome: str) -> None:
            if "/kl/" in name:
                raise KeyboardInterrupt

    settings = SweepSettings(recipe=read_recipe(recipe), out=out, jobs=1, device="cpu", gpus=(), command="sweep")
    with Stop(sys.stderr) as view:
        run_sweep(settings, view=view)


def test_a_teacher_of_other_classes_is_asked_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(TeachonceError, match="tells 7 classes apart and the data set has 10"):
        run(write_recipe(tmp_path, teacher={"spec": "fake:7"}), out=out)
    assert describe_cache(out / "cache")["attempts"] == 0


def test_a_second_sweep_in_the_same_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = write_recipe(tmp_path), tmp_path / "out"
    out.mkdir()
    with (out / "writer.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert ended(["sweep", str(recipe), "--out", str(out)]) == 4
    assert capsys.readouterr().err.startswith("error: another sweep is at work in it: ")


def ended(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as raised:
        run_command(app, argv)
    return int(raised.value.code or 0)


def test_a_plan_says_what_it_would_cost_and_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(["sweep", str(write_recipe(tmp_path)), "--out", str(tmp_path / "out"), "--plan"]) == 0
    shown = capsys.readouterr().out
    for line in ("cells        7", "trials       28 (each cell: 2 seeds x 2", "charged      120 in 4 budget runs"):
        assert line in shown
    rows = {row for seed in (0, 1) for row in first_rows(seed=seed)}
    assert f"calls        {len(rows)} distinct images" in shown
    assert not (tmp_path / "out").exists()


def first_rows(*, seed: int) -> list[int]:
    from shared.identity import sample_rows

    order = sample_rows(num_rows=1437, count=1437, seed=seed).tolist()
    return [row for place, row in enumerate(order) if place % 5 != 4][:40]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("losses=[hinton]", "mlp/clean/random/n20/hinton: unknown loss 'hinton'; known: ab, "),
        ("losses=[{loss: kl, set: {tau: 4}}]", "mlp/clean/random/n20/kl: kl has no hyper-parameter 'tau'"),
        ("losses.2.loss=mse", "--missing label-only uses labels through --ce-weight, which is 0 for mse"),
        ("students=[zoo:mlpp]", "students: unknown network zoo:mlpp"),
        ("dataset=digit", "unknown data set 'digit'"),
        ("budgets=[2000]", "2,000 images are more than the 1,150 that may be asked about: the data set has 1,437"),
        ("select=[best]", "select: unknown selection 'best'; known: random, class-balanced"),
        ("teacher.weights=none.safetensors", "teacher.weights: there is no file none.safetensors; give the teacher's"),
        ("val=false", "val is false: without validation nothing chooses"),
        ("train.batch=1", "--batch 1 is too small"),
        ("views=[{name: a, teacher: 1-99}]", "view 99 is out of range"),
    ],
)
def test_a_wrong_recipe_ends_with_one_line_and_2_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, sentence: str
) -> None:
    out = tmp_path / "out"
    assert ended(["sweep", str(write_recipe(tmp_path)), "--out", str(out), "--set", change]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err
    assert len(shown.err.splitlines()) == 1
    assert not out.exists()
