"""Every loss, and sums of them, trains a real student from one real cache: the same bits again, and after a stop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from cache.info import describe_cache
from shared.errors import InputError, OutputNotCachedError
from student_trainer.loop import TrainConfig, train
from student_trainer.losses import LOSSES, DistillBatch
from student_trainer.losses.registry import build_loss
from student_trainer.losses.rkd import RKD
from student_trainer.progress import EpochMetrics, Quiet
from teacher_server.cli import app

ROWS = 24
KEPT = ",".join(
    [
        "logits,features,input_grad,constants,maps.0",
        *(f"{kind}.{number}" for kind in ("maps", "preacts", "attention") for number in (1, 2, 3)),
    ]
)
STAGES: dict[str, object] = {"init_epochs": 2}
SETTINGS: dict[str, dict[str, object]] = {"ab": STAGES, "crd": {"negatives": 64}, "fsp": STAGES, "ft": STAGES}
"""Where a default asks for more than so few rows, or so few epochs, have."""
SUMS: tuple[tuple[str, dict[str, object]], ...] = (
    ("fitnets+ckd", {"fitnets.weight": "50", "ckd.w_cls": 0}),
    ("vid+crd", {"vid.maps": "2,3", "crd.negatives": 64}),
    ("ft+ofd", {"ft.init_epochs": 2}),
)
EPOCHS = 3


def fill(*arguments: object) -> None:
    done = CliRunner().invoke(app, ["fill", *(str(argument) for argument in arguments)])
    if done.exception is not None:
        raise done.exception


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("losses") / "cache"
    asked = ("--teacher", "zoo:resnet8", "--dataset", "digits/train", "--cache", path, "--outputs", KEPT)
    fill(*asked, "--sample", ROWS, "--device", "cpu", "--threads", "1")
    return path


@pytest.fixture
def config(store: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        dataset="digits",
        student="zoo:resnet8",
        cache=str(store),
        missing="skip",
        epochs=EPOCHS,
        batch=12,
        val=0.0,
        lr=1e-4,
        device="cpu",
        threads=1,
        test=False,
        tensorboard=False,
        checkpoint_every_s=0.0,
        out=tmp_path / "run",
    )


class StoppedError(Exception):
    """As if the training had been killed."""


class StopAfterOneEpoch(Quiet):
    def epoch(self, metrics: EpochMetrics) -> None:
        raise StoppedError


@pytest.mark.parametrize(("loss", "hyper"), [*((name, SETTINGS.get(name, {})) for name in LOSSES), *SUMS])
def test_a_loss_trains_and_a_stopped_training_goes_on_to_the_same_bits(
    loss: str, hyper: dict[str, object], config: TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, loss=loss, hyper=hyper)
    result = train(config)
    assert (result.loss, result.epochs, result.teacher_calls) == (loss, EPOCHS, 0)
    assert result.charged == (0 if loss == "ce" else ROWS)
    stopped = replace(config, out=tmp_path / "stopped")
    with pytest.raises(StoppedError):
        train(stopped, progress=StopAfterOneEpoch())
    train(replace(stopped, resume=True))
    whole, resumed = (load_file(folder / "last.safetensors") for folder in (config.out, stopped.out))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_a_sum_records_the_settings_and_weights_of_each_loss(config: TrainConfig) -> None:
    result = train(replace(config, loss="kl+mse", hyper={"kl.temperature": "2", "mse.weight": "3"}, epochs=1))
    assert result.loss == "kl+mse"
    assert {"kl.temperature": 2.0, "kl.weight": 0.9, "mse.weight": 3.0}.items() <= result.hyper.items()
    assert (result.ce_weight, result.kd_weight) == (0.1, 1.0)


@pytest.mark.parametrize(
    ("name", "hyper", "message"),
    [
        ("kl+kl", {}, r"names 'kl' twice"),
        ("kl+mse", {"temperature": 2}, r"no hyper-parameter 'temperature'; write kl.NAME, mse.NAME"),
        ("kl+mse", {"kl.heat": 2}, r"kl has no hyper-parameter 'heat'; it has temperature"),
        ("kl+mse", {"kl.weight": "-1"}, r"kl.weight='-1' is not valid"),
        ("kl+mse", {"kl.weight": 0, "mse.weight": 0}, r"all weights are 0"),
        ("kl+mixup", {}, r"mixup mixes images"),
    ],
)
def test_a_sum_that_makes_no_sense_is_refused(name: str, hyper: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_loss(name, **hyper)


def test_a_cache_without_maps_is_refused_before_training_and_can_be_given_them(
    config: TrainConfig, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    teacher = ("--teacher", "zoo:resnet8", "--dataset", "digits/train", "--cache", plain, "--device", "cpu")
    fill(*teacher, "--sample", 8)
    config = replace(config, cache=str(plain), loss="fitnets", epochs=1)
    with pytest.raises(OutputNotCachedError, match=r"needs maps\.2; add it with `.*--add-outputs maps\.2`.* 8 teacher"):
        train(config)
    assert not config.out.exists()
    fill(*teacher, "--add-outputs", "maps.2")
    assert describe_cache(plain)["teacher_calls"] == 16
    train(config)


FLAT = """
from torch import nn

def flat(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes))
"""


def test_a_student_without_the_maps_that_are_compared_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(FLAT)
    with pytest.raises(InputError, match="compares feature maps, and the student"):
        train(replace(config, student=f"python:{tmp_path}/flat.py:flat", loss="fitnets"))
    with pytest.raises(InputError, match="maps 2 of the student: it has maps 0 to 1"):
        train(replace(config, student="zoo:mlp", loss="fitnets"))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_input_gradients_are_refused_in_half_precision(
    config: TrainConfig, precision: Literal["bfloat16", "float16"]
) -> None:
    with pytest.raises(InputError, match=r"jacobian needs input gradients in float32; use --precision float32"):
        train(replace(config, loss="jacobian", precision=precision))


def test_a_loss_that_asks_for_it_gets_several_samples_of_each_class(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes: dict[int, int] = {}
    for per_class in (0, 4):
        seen: list[list[int]] = []
        with monkeypatch.context() as patched:
            patched.setattr(RKD, "value", noting(RKD.value, seen))
            out = config.out / str(per_class)
            train(replace(config, loss="rkd", hyper={"per_class": per_class}, epochs=1, out=out))
        assert [len(labels) for labels in seen] == [12, 12]
        classes[per_class] = sum(len(set(labels)) for labels in seen)
    assert classes[4] < classes[0]


Value = Callable[[RKD, DistillBatch], Tensor]


def noting(value: Value, seen: list[list[int]]) -> Value:
    def noted(loss: RKD, batch: DistillBatch) -> Tensor:
        assert batch.labels is not None
        seen.append(batch.labels.tolist())
        return value(loss, batch)

    return noted


@pytest.mark.parametrize(
    ("loss", "hyper", "epochs"),
    [("jacobian", {}, 2), ("ft", {"init_epochs": 3}, 2), ("fsp", {"init_epochs": 1}, 2), ("review", {}, 2)],
)
def test_a_run_from_a_cache_says_what_the_same_training_costs_online(
    loss: str, hyper: dict[str, object], epochs: int, config: TrainConfig, tmp_path: Path
) -> None:
    config = replace(config, loss=loss, hyper=hyper, epochs=epochs)
    cached = train(config)
    online = train(
        replace(config, cache=None, teacher="zoo:resnet8", sample=ROWS, missing=None, out=tmp_path / "online")
    )
    assert cached.online_calls_equivalent == online.online_calls_equivalent == online.teacher_calls > 0
    assert (cached.teacher_calls, cached.charged) == (0, ROWS)


def test_stages_and_warm_ups_that_leave_nothing_to_train_on_are_refused(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="loss review counts in none of 1 epochs"):
        train(replace(config, loss="review", epochs=1))
    with pytest.raises(InputError, match="neither cross-entropy nor loss review counts in epoch 1 of 3"):
        train(replace(config, loss="review", ce_weight=0.0))
    with pytest.raises(InputError, match="loss ab trains alone in its first epochs, and --epochs 3 ends before"):
        train(replace(config, loss="ab"))


def test_a_stage_without_cross_entropy_ends_no_training_early(config: TrainConfig) -> None:
    plateau = {"schedule": "plateau", "patience": 1, "stages": 1, "val": 0.25, "epochs": 30}
    result = train(replace(config, loss="ab", hyper={"init_epochs": 6}, **plateau))  # type: ignore[arg-type]
    assert result.epochs > 6
    assert result.best_epoch is not None
    assert result.best_epoch > 6


@pytest.mark.parametrize("loss", ["vid", "mixup", "ab"])
def test_a_loss_of_weight_0_is_cross_entropy_alone(loss: str, config: TrainConfig, tmp_path: Path) -> None:
    control = train(replace(config, loss=loss, kd_weight=0.0, ce_weight=1.0, cache=None, missing=None, sample=ROWS))
    assert (control.loss, control.charged) == (loss, 0)
    out = tmp_path / "ce"
    train(replace(config, loss="ce", cache=None, missing=None, sample=ROWS, out=out))
    weights, expected = (load_file(folder / "last.safetensors") for folder in (config.out, out))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
