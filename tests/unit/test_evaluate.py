"""Accuracy: as counted by hand, over several batches, without changing the student."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from shared.datasets.base import ArrayDataset, Normalisation, SplitFacts
from student_trainer.cli import app
from student_trainer.device_data import DeviceImages
from student_trainer.evaluate import EVALUATION_BATCH, accuracy_of, correct_of, logits_of


def test_correct_answers_are_counted() -> None:
    logits = torch.tensor([[0.1, 0.2, 0.0], [3.0, 1.0, 2.0], [-1.0, -2.0, -0.5], [0.0, 9.0, 8.9]])
    assert correct_of(logits, torch.tensor([1, 0, 0, 2])).item() == 2


class Brightness(nn.Module):
    """Says class 1 for bright images, 0 for dark ones; training mode says the opposite."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.mean(dim=(1, 2, 3)) * (-1 if self.training else 1)
        return torch.stack([-bright, bright], dim=1)


def test_accuracy_is_over_all_images_in_evaluation_mode() -> None:
    count = 2 * EVALUATION_BATCH + 3
    levels = np.where(np.arange(count) % 5 == 0, 255, 0)
    pixels = np.broadcast_to(levels[:, None, None, None], (count, 2, 2, 3)).astype(np.uint8)
    # Right on all but the last 100 bright ones.
    labels = (levels > 0).astype(np.int64)
    labels[np.flatnonzero(labels)[-100:]] = 0
    facts = SplitFacts(name="toy/train", classes=["dark", "bright"], labels=labels, view_policy="crop1")
    images = DeviceImages(
        ArrayDataset(facts, pixels=pixels),
        np.arange(count),
        normalisation=Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        device=torch.device("cpu"),
    )
    student = Brightness().train()
    assert accuracy_of(student, student, images) == (count - 100) / count
    assert student.training
    torch.testing.assert_close(
        logits_of(student, student, images)[:, 1], torch.tensor(np.where(levels > 0, 1.0, -1.0)).float()
    )


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_the_training_accuracy_of_an_epoch_is_over_all_its_images(devices: int, tmp_path: Path) -> None:
    options = ["--dataset", "digits", "--student", "zoo:mlp", "--loss", "ce", "--epochs", "3", "--lr", "0.1"]
    options += ["--device", "cpu", "--devices", str(devices), "--threads", "1", "--student-views", "clean"]
    options += ["--out", str(tmp_path / "run")]
    if devices == 1:
        assert CliRunner().invoke(app, ["train", *options]).exception is None
    else:
        command = [sys.executable, "-m", "student_trainer.cli", "train", *options]
        subprocess.run(command, capture_output=True, check=True, timeout=100)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = [line["train_accuracy"] for line in lines]
    assert 0.1 < found[0] < found[-1] <= 1
    # 1,293 training images: each accuracy is a whole number of them.
    assert all(abs(accuracy * 1293 - round(accuracy * 1293)) < 1e-6 for accuracy in found)
