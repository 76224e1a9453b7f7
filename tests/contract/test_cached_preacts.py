"""Maps before their last activation, from the teacher through a cache into a batch."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cache.reader import CacheReader
from cache.verify import find_damage
from shared.datasets.spec import open_dataset
from shared.errors import InputError
from shared.teacher import load_teacher
from student_trainer.data import CachedTeacherDataset, CachedTeacherLoader
from student_trainer.losses.batch import DistillBatch
from teacher_server.cli import app

ROWS = 20
OPTIONS = ("--teacher", "zoo:resnet8", "--dataset", "digits/test")


def teacher_server(*arguments: object) -> str:
    """What a command prints; its error is raised."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 20 digits' logits, and of what map 2 is made of."""
    store = tmp_path_factory.mktemp("preacts") / "store"
    options = (*OPTIONS, "--cache", store, "--sample", ROWS, "--outputs", "logits,preacts.2,maps.2=float32")
    assert "preacts.2: float16 [32, 4, 4], 1024 bytes per row" in teacher_server("plan", *options)
    assert f"{ROWS} rows, {ROWS} teacher calls" in teacher_server("fill", *options)
    return store


def test_a_cache_keeps_what_the_teacher_says_rounded(store_path: Path) -> None:
    digits = open_dataset("digits/test")
    teacher = load_teacher("zoo:resnet8", classes=10, normalisation=digits.normalisation, device="cpu")
    with CacheReader.open(store_path) as reader:
        rows = np.flatnonzero(reader.present())
        read = reader.gather(rows, outputs=("maps.2", "preacts.2"))
    said = teacher.answer(digits.images(rows), ["preacts.2"])["preacts.2"]
    assert read["preacts.2"].dtype == np.float16
    np.testing.assert_allclose(read["preacts.2"], said, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(np.maximum(read["preacts.2"], 0), read["maps.2"], rtol=2e-3, atol=1e-4)


def test_they_are_added_to_a_cache_that_exists(store_path: Path, tmp_path: Path) -> None:
    store = shutil.copytree(store_path, tmp_path / "store")
    options = (*OPTIONS, "--cache", store)
    added = teacher_server("fill", *options, "--add-outputs", "preacts.3,preacts.1=int8", "--budget", 2 * ROWS)
    assert added.startswith(f"{ROWS} rows, {ROWS} teacher calls")
    assert list(find_damage(store)) == []
    with CacheReader.open(store) as reader:
        read = reader.gather(np.flatnonzero(reader.present()))
        assert {name: values.shape[1:] for name, values in read.items() if name.startswith("preacts.")} == {
            "preacts.1": (16, 8, 8),
            "preacts.2": (32, 4, 4),
            "preacts.3": (64, 2, 2),
        }
        assert all((values < 0).any() for name, values in read.items() if name.startswith("preacts."))
    with pytest.raises(InputError, match=r"cannot give 'preacts.4'; it gives .*preacts.3"):
        teacher_server("fill", *options, "--add-outputs", "preacts.4")
    with pytest.raises(InputError, match=r"maps.K, preacts.K"):
        teacher_server("fill", *options, "--add-outputs", "preacts.02")


def test_a_batch_has_them_as_the_teachers_maps(store_path: Path) -> None:
    with CacheReader.open(store_path) as reader:
        dataset = CachedTeacherDataset(_images(), reader, transform=torch.from_numpy)
        batch = next(iter(CachedTeacherLoader(dataset, outputs=("logits", "preacts.2"), batch_size=4)))
        given = batch.distill(torch.zeros(4, 10))
        expected = reader.gather(batch.rows.numpy(), outputs="preacts.2")["preacts.2"]
    (found,) = given.teacher_maps
    np.testing.assert_array_equal(found, expected)


def _images() -> list[tuple[np.ndarray, int]]:
    digits = open_dataset("digits/test")
    return [(digits.image(row), int(digits.labels[row])) for row in range(len(digits.labels))]


def test_a_batch_holds_one_kind_of_maps_in_the_order_in_which_they_were_gathered() -> None:
    ten, two = torch.full((1,), 10.0), torch.full((1,), 2.0)
    fields = DistillBatch.teacher_fields({"preacts.10": ten, "attention.1": two, "preacts.2": two})
    assert fields == {"teacher_maps": (ten, two), "teacher_attention": (two,)}
    with pytest.raises(InputError, match=r"not both \(preacts.2, maps.1\)"):
        DistillBatch.teacher_fields({"preacts.2": two, "maps.1": two})
