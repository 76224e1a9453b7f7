"""Random views from the teacher to the student: asked for once, kept with the cache, and the same pixels for both."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cache.reader import CacheReader
from shared import rendering
from shared.datasets import base
from shared.datasets.spec import open_dataset
from shared.errors import IdentityError, InputError, UnknownNameError
from student_trainer.data import CachedTeacherDataset, CachedTeacherLoader
from student_trainer.device_data import DeviceImages
from student_trainer.loop import TrainConfig, train
from teacher_server.cli import app

ROWS = 24
RANDAUG = "randaug:n=2,m=9,base=crop1,seed=0"
MIXUP = "mixup:alpha=1,base=crop1,seed=0"


def server_command(*arguments: str) -> str:
    """``teacher-server`` in this process; returns what it prints."""
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.output


def options(path: Path, *more: str) -> tuple[str, ...]:
    return "--teacher", "fake:10", "--dataset", "digits/train", "--cache", str(path), "--sample", str(ROWS), *more


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A cache of views 0 to 2 under each policy."""
    folder = tmp_path_factory.mktemp("stores")
    for kind in ("randaug", "mixup"):
        told = server_command("fill", *options(folder / kind, "--views", "0-2", "--view-policy", kind))
        assert f"{3 * ROWS} rows, " in told
    return {kind: folder / kind for kind in ("randaug", "mixup")}


@pytest.fixture
def config_of(stores: dict[str, Path], tmp_path: Path) -> Callable[[str], TrainConfig]:
    def config(kind: str) -> TrainConfig:
        return TrainConfig(
            dataset="digits",
            student="zoo:mlp",
            cache=str(stores[kind]),
            sample=ROWS,
            val=0.0,
            epochs=2,
            batch=8,
            teacher_views="1-2",
            student_views="same",
            test_sample=8,
            tensorboard=False,
            out=tmp_path / "run",
        )

    return config


@pytest.mark.parametrize(("kind", "policy"), [("randaug", RANDAUG), ("mixup", MIXUP)])
def test_a_student_is_trained_on_the_views_that_the_cache_records(
    kind: str, policy: str, stores: dict[str, Path], config_of: Callable[[str], TrainConfig]
) -> None:
    dataset = open_dataset("digits/train").with_views(policy)
    with CacheReader.open(stores[kind]) as reader:
        assert (reader.view_policy, reader.dataset.decoder) == (policy, dataset.description.decoder)
        rows = np.flatnonzero(reader.present(1))
        assert len(rows) == ROWS
        for view in (0, 1, 2):
            assert [key.tobytes() for key in reader.keys(rows, view)] == [dataset.key_of(row, view) for row in rows]
    result = train(config_of(kind))
    # Small digits under few views: some show the same pixels.
    assert ROWS < result.charged <= 2 * ROWS
    settings = json.loads((config_of(kind).out / "config.json").read_text())["settings"]
    assert settings["views"] == policy
    assert train(replace(config_of(kind), resume=True)) == result


def test_a_cache_of_one_policy_refuses_another_and_names_both(
    stores: dict[str, Path], config_of: Callable[[str], TrainConfig]
) -> None:
    for more, ours in (((), "crop1"), (("--view-policy", "randaug:m=10"), "randaug:n=2,m=10,base=crop1,seed=0")):
        named = f"view policy {RANDAUG} .*{ours} here; give --view-policy {RANDAUG}"
        for command in ("fill", "plan"):
            with pytest.raises(IdentityError, match=named):
                server_command(command, *options(stores["randaug"], *more))
    told = server_command("plan", *options(stores["randaug"], "--views", "0-3", "--view-policy", "randaug"))
    assert f"{4 * ROWS} answers, {3 * ROWS} cached, 0 with pixels answered otherwise, {ROWS} teacher calls" in told
    with pytest.raises(IdentityError, match=f"has view policy {RANDAUG} in .*--view-policy asks for rrc:area=8"):
        train(replace(config_of("randaug"), view_policy="rrc"))
    with CacheReader.open(stores["mixup"]) as reader:
        reader.check_dataset(open_dataset("digits/train").with_views("mixup"))
        with pytest.raises(IdentityError, match=f"views of {MIXUP} in the cache, of crop1 here"):
            reader.check_dataset(open_dataset("digits/train"))


def test_what_cannot_be_drawn_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    for policy, error, named in (
        ("randaugment", UnknownNameError, "unknown view policy 'randaugment'"),
        ("randaug:q=1", UnknownNameError, "no parameter 'q=1'"),
        ("cutmix:alpha=11", InputError, "use 0.05 to 10"),
    ):
        with pytest.raises(error, match=named):
            server_command("fill", *options(tmp_path / "store", "--view-policy", policy))
    with pytest.raises(InputError, match="view 100001 is out of range"):
        server_command("fill", *options(tmp_path / "store", "--view-policy", "rrc", "--views", "100001"))


def test_a_student_must_see_the_same_mix(config_of: Callable[[str], TrainConfig]) -> None:
    for student_views in ("fresh", "clean"):
        with pytest.raises(InputError, match=f"--student-views {student_views} shows the student others than"):
            train(replace(config_of("mixup"), student_views=student_views))
    with pytest.raises(InputError, match=r"--image-size changes the pixels .* rrc:size=6"):
        train(replace(config_of("mixup"), image_size=6))


def test_another_pillow_is_named_where_it_draws_other_pixels(
    config_of: Callable[[str], TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    augmented = rendering.augmented
    version = base.DECODER

    def one_step_brighter(*args: object, **named: object) -> np.ndarray:
        return augmented(*args, **named) // 2

    monkeypatch.setattr(base, "DECODER", "pillow 99.0.0")
    # The same pixels by another version are the same views.
    train(config_of("randaug"))
    monkeypatch.setattr(rendering, "augmented", one_step_brighter)
    with pytest.raises(IdentityError, match=rf"decoded by {version} for the cache, by pillow 99\.0\.0 now"):
        train(replace(config_of("randaug"), seed=1, out=config_of("randaug").out / "other"))


@pytest.mark.parametrize("kind", ["randaug", "mixup"])
def test_the_first_batch_is_held_to_the_keys_of_the_answers(
    kind: str, config_of: Callable[[str], TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = DeviceImages.pixels

    def one_is_wrong(
        self: DeviceImages, positions: torch.Tensor, views: np.ndarray, **more: np.ndarray
    ) -> torch.Tensor:
        found = pixels(self, positions, views, **more).clone()
        found[-1, 0, 0, 0] ^= 1
        return found

    monkeypatch.setattr(DeviceImages, "pixels", one_is_wrong)
    with pytest.raises(IdentityError, match=r"row \d+ view [12] of digits/train has other pixels than the teacher"):
        train(config_of(kind))


def test_your_own_loop_draws_the_same_views(stores: dict[str, Path]) -> None:
    digits = open_dataset("digits/train")

    class Items:
        def __len__(self) -> int:
            return digits.num_rows

        def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
            return digits.image(row), int(digits.labels[row])

    with CacheReader.open(stores["mixup"]) as reader:
        wrapped = CachedTeacherDataset(Items(), reader, views=(1, 2), transform=torch.from_numpy)
        batch = next(iter(CachedTeacherLoader(wrapped, batch_size=ROWS)))
        rows, views = batch.rows.tolist(), batch.views.tolist()
        drawn = digits.with_views(MIXUP)
        for image, row, view in zip(batch.images, rows, views, strict=True):
            assert np.array_equal(image.numpy(), drawn.rendered(row, view))
        partner, share = wrapped.mixing(rows, views, size=(8, 8))
        assert (partner != rows).all()
        assert ((share >= 0) & (share <= 1)).all()
