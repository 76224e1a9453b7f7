"""The command: help, results, and every mistake answered by one line and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shared.command import run_command
from student_trainer.cli import app, default_threads, read_milestones, read_settings

TINY = ["--dataset", "digits", "--student", "zoo:resnet8", "--sample", "32", "--epochs", "1", "--no-tensorboard"]


def run(argv: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        run_command(app, argv)
    return int(ended.value.code or 0)


def test_a_training_shows_its_progress_and_result_and_ends_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = ["--loss", "kl", "--set", "temperature=2", "--teacher", "fake:10", "--threads", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bin/student-trainer", "train", "--loss", "kl"])
    assert run(["train", *TINY, *options]) == 0
    shown = capsys.readouterr()
    assert "epoch 1/1 loss" in shown.err
    assert "test accuracy: last" in shown.out
    results = json.loads((out / "results.json").read_text())
    assert results["hyper"] == {"temperature": 2.0, "scale": "tau2"}
    assert results["command"] == "student-trainer train --loss kl"


def test_help_names_every_option_without_importing_torch() -> None:
    code = (
        "import sys; from shared.command import run_command; from student_trainer.cli import app\n"
        "try: run_command(app, ['train', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch was imported' if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env={"COLUMNS": "200"}
    )
    for option in (
        "--cache",
        "--missing",
        "--student-views",
        "--teacher-views",
        "--resume",
        "--set",
        "--expect-teacher",
    ):
        assert option in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--loss", "hinton", "--teacher", "fake:10"],
            "unknown loss 'hinton'; known: ab, at, cc, ce, ckd,",
        ),
        (["--set", "tau=4", "--teacher", "fake:10"], "kl has no hyper-parameter 'tau'"),
        (["--set", "temperature", "--teacher", "fake:10"], "cannot read --set 'temperature'; write name=value"),
        (["--loss", "kl"], "loss kl needs teacher answers: give --cache CACHE"),
        (["--loss", "ce", "--student", "zoo:resnet9999999"], "resnet9999999"),
        (["--loss", "ce", "--student", "zoo:lenet"], "lenet"),
        (["--loss", "ce", "--dataset", "mnist"], "unknown data set 'mnist'"),
        (["--loss", "ce", "--dataset", "digits/dev"], "has no split 'dev'; it has train, test"),
        (["--teacher", "fake:7"], "has 7 classes and digits/train has 10"),
        (["--teacher", "nothing:7"], "nothing"),
        (["--cache", "{tmp}/none"], "{tmp}/none"),
        (["--teacher", "fake:10", "--teacher-views", "99"], "view 99 is out of range"),
        (["--teacher", "fake:10", "--sample", "99999"], "--sample 99999 is more than the 1437 rows"),
        (["--teacher", "fake:10", "--milestones", "soon"], "cannot read --milestones 'soon'"),
        (["--teacher", "fake:10", "--weights", "{tmp}/w.safetensors", "--cache", "{tmp}"], "exclude each other"),
        (["--loss", "ce", "--weights", "{tmp}/w.safetensors"], "--weights are the online teacher's"),
        (["--teacher", "fake:10", "--expect-teacher", "wrn_40_2"], "not wrn_40_2"),
        (["--loss", "ce", "--sample", "1"], "1 training rows are too few"),
        (["--loss", "ce", "--no-such-option"], "--no-such-option"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = [option.replace("{tmp}", str(tmp_path)) for option in options]
    assert run(["train", *TINY, "--out", str(out), *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message.replace("{tmp}", str(tmp_path)) in error
    assert not out.exists()


def test_settings_and_milestones_are_read() -> None:
    assert read_settings(["temperature=4", "scale = max"]) == {"temperature": "4", "scale": "max"}
    assert read_milestones("150,180, 210") == (150.0, 180.0, 210.0)
    assert read_milestones("") == ()
    assert default_threads() >= 1


@pytest.mark.soak
def test_two_processes_train_one_student_and_one_of_them_speaks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "student_trainer.cli", "train", *TINY]
    options = ["--loss", "ce", "--devices", "2", "--device", "cpu", "--out", str(tmp_path / "run")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.count("test accuracy: last") == 1
    assert done.stderr.count("epoch 1/1 loss") == 1
    assert json.loads((tmp_path / "run" / "results.json").read_text())["student_forwards"] == 29
