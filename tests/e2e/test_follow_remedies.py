"""What a message tells the user to type works as it is printed, and costs no more than it says."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cache.info import describe_cache
from shared.datasets.spec import open_train_test, with_split
from shared.errors import InputError, OutputNotCachedError
from student_trainer.loop import TrainConfig, train
from teacher_server.cli import app

TEACHER = "zoo:resnet8"
PRINTED = re.compile(r"`teacher-server (fill .*?)`.*at most (\d+) teacher calls")


def fill(*arguments: str) -> None:
    done = CliRunner().invoke(app, ["fill", *arguments, "--device", "cpu", "--threads", "1"])
    if done.exception is not None:
        raise done.exception


def calls(path: Path) -> int:
    return int(describe_cache(path)["teacher_calls"])


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of sixteen images; of the eight of a class, two have the same pixels."""
    base, generator = tmp_path_factory.mktemp("my data") / "Pets", np.random.default_rng(0)
    for split in ("Train", "Test"):
        for name in ("cat", "dog"):
            folder = base / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                pixels = generator.integers(0, 255, (8, 8, 3), np.uint8)
                if number > 0:
                    Image.fromarray(pixels).save(folder / f"{number}.png")
            Image.fromarray(pixels).save(folder / "0.png")
    return base


def config_of(dataset: str, *, cache: Path, out: Path, loss: str = "fitnets", **options: object) -> TrainConfig:
    fixed = {"student": "zoo:resnet8", "missing": "skip", "test": False, "tensorboard": False, "threads": 1}
    small = {"epochs": 1, "batch": 8, "val": 0.0, "device": "cpu", "dataset": dataset, "loss": loss}
    return TrainConfig(cache=str(cache), out=out, **{**fixed, **small, **options})  # type: ignore[arg-type]


def follow(config: TrainConfig) -> int:
    """Be refused, type what is printed, and train; how many calls were said to be the most."""
    with pytest.raises(OutputNotCachedError) as raised:
        train(config)
    printed = PRINTED.search(str(raised.value))
    assert printed is not None, raised.value
    fill(*shlex.split(printed[1].replace("TEACHER", TEACHER))[1:])
    train(config)
    return int(printed[2])


@pytest.mark.parametrize("spec", ["digits", "digits/train", "numbers=digits"])
def test_the_printed_fill_adds_what_lacks_to_the_split_that_is_trained_on(spec: str, tmp_path: Path) -> None:
    cache = tmp_path / "a cache"
    fill("--dataset", with_split(spec, "train"), "--teacher", TEACHER, "--cache", str(cache), "--sample", "20")
    assert follow(config_of(spec, cache=cache, out=tmp_path / "run")) == 20
    assert calls(cache) == 40


@pytest.mark.parametrize("form", ["folder:{}", "folder:{}/", "folder:{}/Train", "p=folder:{}"])
def test_the_printed_fill_leaves_other_splits_alone(form: str, pets: Path, tmp_path: Path) -> None:
    spec, cache = form.format(pets), tmp_path / "cache"
    whole = spec.replace("/Train", "")
    fill("--dataset", whole, "--teacher", TEACHER, "--cache", str(cache))
    before = calls(cache)
    most = follow(config_of(spec, cache=cache, out=tmp_path / "run"))
    assert 0 < calls(cache) - before <= most <= 16


def test_the_printed_fill_asks_for_views_of_the_same_policy(tmp_path: Path) -> None:
    cache, policy = tmp_path / "cache", "randaug:n=1,m=9"
    about = ("--teacher", TEACHER, "--cache", str(cache), "--dataset", "digits/train", "--view-policy", policy)
    fill(*about, "--sample", "20", "--views", "1-2")
    assert follow(config_of("digits", cache=cache, out=tmp_path / "run", teacher_views="1-2")) == 40


def test_constants_are_added_by_the_printed_fill_at_no_call(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fill("--dataset", "digits/train", "--teacher", TEACHER, "--cache", str(cache), "--sample", "20")
    assert follow(config_of("digits", cache=cache, out=tmp_path / "run", loss="srrl")) == 0
    assert calls(cache) == 20


def test_a_map_that_the_teacher_may_not_have_is_told_with_the_choice_of_others(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fill("--dataset", "digits/train", "--teacher", TEACHER, "--cache", str(cache), "--sample", "20")
    config = config_of("digits", cache=cache, out=tmp_path / "run", student="zoo:vgg8", loss="sp")
    with pytest.raises(
        OutputNotCachedError, match=r"needs maps\.4; .*a teacher that has no such map needs teacher_maps"
    ):
        train(config)
    online = replace(config, cache=None, missing=None, teacher=TEACHER, sample=20)
    with pytest.raises(InputError, match=r"cannot give 'maps\.4'; .*a teacher that has no such map needs teacher_maps"):
        train(online)


def test_a_split_is_named_as_its_folder_is_spelt(pets: Path) -> None:
    assert with_split(f"folder:{pets}/", "train") == f"folder:{pets}/Train"
    assert with_split(f"folder:{pets}/Test", "train") == f"folder:{pets}/Test"
    train_set, _ = open_train_test(with_split(f"folder:{pets}", "train"))
    assert train_set.name == "pets/train"
