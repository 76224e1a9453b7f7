"""The protocol of few-call experiments: named rows, early stopping in stages, a test that comes last, mixed images."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shared.errors import InputError
from shared.identity import sample_rows
from student_trainer.loop import TrainConfig, train
from student_trainer.losses import LOSSES, DistillBatch, TrainingFacts
from student_trainer.losses.base import DistillLoss
from student_trainer.losses.mix import Mix
from student_trainer.progress import EpochMetrics, Quiet

DIGITS_TRAIN_ROWS = 1437


def config(out: Path, **changes: Any) -> TrainConfig:
    basis: dict[str, Any] = {
        "dataset": "digits",
        "student": "zoo:mlp",
        "teacher": "fake:10",
        "sample": 64,
        "val": 0.25,
        "epochs": 3,
        "batch": 16,
        "threads": 1,
        "device": "cpu",
        "tensorboard": False,
        "out": out,
    }
    return TrainConfig(**(basis | changes))


def rows_file(path: Path, rows: Sequence[int]) -> Path:
    np.save(path, np.asarray(rows, dtype=np.int64))
    return path


class Epochs(Quiet):
    def __init__(self) -> None:
        self.metrics: list[EpochMetrics] = []

    def epoch(self, metrics: EpochMetrics) -> None:
        self.metrics.append(metrics)


def test_named_rows_are_trained_on_held_out_and_asked_about(tmp_path: Path) -> None:
    order = sample_rows(num_rows=DIGITS_TRAIN_ROWS, count=DIGITS_TRAIN_ROWS, seed=0)
    held = rows_file(tmp_path / "held.npy", order[:20])
    asked = rows_file(tmp_path / "asked.npy", order[20:50])
    result = train(
        config(tmp_path / "run", sample=None, val_rows=held, answer_rows=asked, missing="label-only", epochs=1)
    )
    assert (result.rows, result.val_rows, result.answered_rows) == (DIGITS_TRAIN_ROWS - 20, 20, 30)
    assert result.charged == 30
    assert result.online_calls_equivalent == 30
    trained = set(np.load(tmp_path / "run" / "rows.npy").tolist())
    assert trained == set(range(DIGITS_TRAIN_ROWS)) - set(order[:20].tolist())


def test_a_row_cannot_be_trained_on_and_held_out(tmp_path: Path) -> None:
    both = {
        "rows": rows_file(tmp_path / "rows.npy", [5, 6, 7]),
        "val_rows": rows_file(tmp_path / "val.npy", [7, 8]),
    }
    with pytest.raises(InputError, match=r"row 7 \(and 0 more\).*--val-rows"):
        train(config(tmp_path / "run", sample=None, **both))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer_rows": Path("rows.npy")}, "--missing skip or --missing label-only"),
        ({"schedule": "plateau", "val": 0.0}, "--val above 0"),
        ({"patience": 0}, "--patience 0 is too small"),
        ({"test_sample": 0}, "--test-sample 0 is too small"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        config(tmp_path / "run", **changes)


def test_stages_end_after_patience_epochs_without_a_better_validation_accuracy(tmp_path: Path) -> None:
    seen = Epochs()
    staged = config(
        tmp_path / "run", loss="ce", teacher=None, schedule="plateau", patience=3, stages=3, epochs=200, lr=0.05
    )
    result = train(staged, progress=seen)
    rates = [round(metrics.lr, 9) for metrics in seen.metrics]
    assert sorted(set(rates), reverse=True) == [0.05, 0.005, 0.0005]
    assert rates == sorted(rates, reverse=True)
    best = 0.0
    waited, expected_rates, rate = 0, [], 0.05
    for metrics in seen.metrics:
        expected_rates.append(round(rate, 9))
        assert metrics.val_accuracy is not None
        waited = 0 if metrics.val_accuracy > best else waited + 1
        best = max(best, metrics.val_accuracy)
        if waited == 3:
            waited, rate = 0, rate / 10
    assert rates == expected_rates
    assert rate == pytest.approx(0.05 / 1000)
    assert result.epochs == len(rates) < result.max_epochs == 200
    assert result.student_forwards == 48 * len(rates)
    assert result.val_accuracy_best == best


def test_each_stage_begins_with_the_best_weights(tmp_path: Path) -> None:
    """With a rate that falls to nothing, what the last stage ends with is what the first found best."""
    staged = config(
        tmp_path / "run",
        loss="ce",
        teacher=None,
        schedule="plateau",
        patience=2,
        stages=2,
        gamma=1e-12,
        weight_decay=0.0,
        epochs=100,
    )
    result = train(staged)
    assert result.val_accuracy_last == result.val_accuracy_best


def test_a_staged_training_killed_and_resumed_has_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    class KillsAt(Quiet):
        def epoch(self, metrics: EpochMetrics) -> None:
            if metrics.epoch == 9:
                raise KilledError

    staged = config(
        tmp_path / "killed", schedule="plateau", patience=2, stages=4, epochs=60, checkpoint_every_s=0.0, resume=True
    )
    with pytest.raises(KilledError):
        train(staged, progress=KillsAt())
    resumed = train(staged)
    whole = train(replace(staged, out=tmp_path / "whole"))
    assert (resumed.epochs, resumed.test_accuracy) == (whole.epochs, whole.test_accuracy)
    for name in ("best.safetensors", "last.safetensors"):
        killed, kept = load_file(tmp_path / "killed" / name), load_file(tmp_path / "whole" / name)
        assert all(torch.equal(killed[key], kept[key]) for key in kept)


def test_a_run_can_be_tested_later_and_then_reports_what_it_would_have(tmp_path: Path) -> None:
    untested = config(tmp_path / "later", test=False, test_sample=100)
    first = train(untested)
    assert (first.test_rows, first.test_accuracy_last, first.test_accuracy_best) == (0, None, None)
    with pytest.raises(ValueError, match="test=False"):
        _ = first.test_accuracy
    seen = Epochs()
    tested = train(replace(untested, test=True, resume=True), progress=seen)
    assert seen.metrics == []
    at_once = train(replace(untested, out=tmp_path / "at-once", test=True))
    assert tested.test_rows == 100
    assert (tested.test_accuracy_last, tested.test_accuracy_best) == (
        at_once.test_accuracy_last,
        at_once.test_accuracy_best,
    )
    assert json.loads((tmp_path / "later" / "results.json").read_text())["test_rows"] == 100


class Probe(DistillLoss):
    """Moves a weight of its own, and remembers what it was given."""

    name = "probe"
    needs = ("teacher_logits", "student_features", "teacher_features", "labels")
    given: ClassVar[list[DistillBatch]] = []
    told: ClassVar[list[TrainingFacts]] = []

    def start(self, facts: TrainingFacts) -> None:
        self.told.append(facts)
        assert facts.student_width is not None
        self.weight = nn.Parameter(torch.ones(facts.student_width))

    def value(self, batch: DistillBatch) -> Tensor:
        self.given.append(batch)
        assert batch.student_features is not None
        return (batch.student_features * self.weight).square().mean()


class MixingProbe(Probe):
    name = "mixing-probe"

    def mix(self, count: int, *, size: tuple[int, int]) -> Mix:
        assert size == (8, 8)
        return Mix(partner=torch.arange(count).flip(0), weight=torch.full((count,), 0.25))


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Probe, MixingProbe):
        monkeypatch.setitem(LOSSES, kind.name, kind)
    monkeypatch.setattr(Probe, "given", [])
    monkeypatch.setattr(Probe, "told", [])


@pytest.mark.usefixtures("probes")
def test_a_loss_is_told_of_the_training_and_given_features_and_its_own_weights_learn(tmp_path: Path) -> None:
    train(config(tmp_path / "run", loss="probe", epochs=2, ce_weight=1.0, checkpoint_every_s=0.0))
    (facts,) = Probe.told
    assert (facts.student_width, facts.teacher_width, facts.classes, len(facts.rows)) == (128, 16, 10, 48)
    for batch in Probe.given:
        assert batch.student_features is not None
        assert batch.student_features.shape == (16, 128)
        assert batch.student_features.requires_grad
        assert batch.rows is not None
        assert set(batch.rows.tolist()) <= set(facts.rows.tolist())
    state = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert not torch.equal(state["loss"]["weight"], torch.ones(128))


@pytest.mark.usefixtures("probes")
def test_features_are_the_input_of_the_last_layer(tmp_path: Path) -> None:
    train(config(tmp_path / "run", loss="probe", epochs=1, kd_weight=1e-9, lr=1e-9, val=0.0))
    batch, weights = Probe.given[-1], load_file(tmp_path / "run" / "last.safetensors")
    names = [name.removesuffix(".bias") for name in weights if name.endswith(".bias")]
    head = names[-1] if weights[names[-1] + ".bias"].shape == (10,) else names[0]
    assert batch.student_features is not None
    expected = batch.student_features @ weights[f"{head}.weight"].T + weights[f"{head}.bias"]
    assert torch.allclose(batch.student_logits, expected, atol=1e-5)


@pytest.mark.usefixtures("probes")
def test_mixed_images_reach_the_student_and_the_batch_says_how(tmp_path: Path) -> None:
    """A linear student: the logits of a mixed image are the mixed logits, so they tell what the student saw."""
    student = tmp_path / "linear.py"
    student.write_text(
        "from torch import nn\n\n\ndef linear(classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))\n"
    )
    common: dict[str, Any] = {
        "student": f"python:{student}:linear",
        "epochs": 1,
        "batch": 64,
        "lr": 1e-12,
        "val": 0.0,
        "kd_weight": 1e-9,
        "ce_weight": 1.0,
    }
    losses: dict[str, float] = {}

    class Step(Quiet):
        def step(self, *, images: int, loss: float) -> None:
            losses[str(len(losses))] = loss

    train(config(tmp_path / "plain", loss="probe", **common), progress=Step())
    train(config(tmp_path / "mixed", loss="mixing-probe", **common), progress=Step())
    plain, mixed = Probe.given
    expected = 0.25 * plain.student_logits + 0.75 * plain.student_logits.flip(0)
    assert torch.allclose(mixed.student_logits, expected, atol=1e-4)
    assert mixed.mix is not None
    assert plain.labels is not None
    assert plain.teacher_logits is not None
    assert mixed.teacher_logits is not None
    assert torch.equal(mixed.teacher_logits, plain.teacher_logits)
    log_p = expected.log_softmax(dim=1)
    own, other = (nn.functional.nll_loss(log_p, labels) for labels in (plain.labels, plain.labels.flip(0)))
    assert losses["1"] == pytest.approx((0.25 * own + 0.75 * other).item(), rel=1e-4)


@pytest.mark.usefixtures("probes")
def test_a_mixing_loss_refuses_rows_without_answers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mixes the answers of two images"):
        train(config(tmp_path / "run", loss="mixing-probe", missing="label-only", ce_weight=1.0))
