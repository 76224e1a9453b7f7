"""A killed training goes on to the bits of one that was not killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cache.writer import CacheWriter
from shared.datasets.spec import open_dataset
from shared.errors import IdentityError
from shared.fake_teacher import FakeTeacher
from student_trainer.loop import TrainConfig, train
from student_trainer.progress import EpochMetrics, Quiet


def lines_in(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def weights_of(run: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: load_file(run / f"{name}.safetensors") for name in ("last", "best")}


def test_a_training_killed_and_resumed_has_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    options = (
        "--loss ckd --set pairs=sampled --set offset=calibrate --dataset digits --student zoo:resnet8 --teacher fake:10"
        " --sample 64 --val 0.25 --epochs 24 --batch 16 --schedule cosine --student-views fresh --threads 1"
        " --device cpu --checkpoint-every 0 --no-tensorboard"
    )
    run = tmp_path / "killed"
    command = [sys.executable, "-m", "student_trainer.cli", "train", *options.split(), "--out", str(run), "--resume"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while lines_in(run / "metrics.jsonl") < 4 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    assert process.poll() is None, "it ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (run / "state.pt").exists()
    assert not (run / "results.json").exists()
    config = TrainConfig(
        dataset="digits",
        student="zoo:resnet8",
        teacher="fake:10",
        sample=64,
        val=0.25,
        epochs=24,
        batch=16,
        schedule="cosine",
        student_views="fresh",
        threads=1,
        device="cpu",
        tensorboard=False,
        out=run,
        resume=True,
        hyper={"pairs": "sampled", "offset": "calibrate"},
        loss="ckd",
    )
    seen: list[int] = []

    class Epochs(Quiet):
        def epoch(self, metrics: EpochMetrics) -> None:
            seen.append(metrics.epoch)

    resumed = train(config, progress=Epochs())
    whole = train(replace(config, out=tmp_path / "whole", resume=False))
    assert seen[0] > 2
    assert seen[-1] == 24
    for name, weights in weights_of(run).items():
        for tensor, value in weights_of(tmp_path / "whole")[name].items():
            assert torch.equal(weights[tensor], value), f"{name} {tensor}"
    # Times differ, and so do calls: with the teacher online, what a killed process asked is asked again.
    apart = {"seconds": 0.0, "images_per_second": 0.0, "teacher_calls": 0}
    assert replace(resumed, **apart) == replace(whole, **apart)
    epochs = [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert epochs == list(range(1, 25))


def keep_answers(path: Path, *, rows: range) -> None:
    digits, teacher = open_dataset("digits/train"), FakeTeacher(classes=10)
    with CacheWriter.open(path) as writer:
        writer.adopt(
            writer.open_cache(teacher.description, digits.description, {"logits": "float16"}),
            keys=digits.keys[list(rows)],
            rows=list(rows),
            views=[0] * len(rows),
            labels=digits.labels[list(rows)],
            outputs={"logits": teacher.answer(digits.images(list(rows)))["logits"]},
        )


def test_a_run_does_not_go_on_with_rows_that_were_answered_since(tmp_path: Path) -> None:
    keep_answers(tmp_path / "cache", rows=range(30))
    config = TrainConfig(
        dataset="digits",
        student="zoo:resnet8",
        cache=str(tmp_path / "cache"),
        missing="skip",
        epochs=2,
        val=0.0,
        checkpoint_every_s=0.0,
        tensorboard=False,
        out=tmp_path / "run",
    )
    train(config)
    (tmp_path / "run" / "results.json").unlink()  # as if it had been killed at the very end
    keep_answers(tmp_path / "cache", rows=range(30, 40))
    with pytest.raises(IdentityError, match=r"training_rows was '30 rows, 30 answered, .*is '40 rows, 40 answered"):
        train(replace(config, resume=True))
