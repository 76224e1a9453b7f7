"""Answers kept on the device are the cache's own, and only as many as there is room for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from cache.reader import CacheReader
from cache.writer import CacheWriter
from shared.datasets.spec import open_dataset
from shared.fake_teacher import FakeTeacher
from shared.host_memory import host_free_bytes
from shared.identity import pixel_keys
from student_trainer import placed_answers
from student_trainer.config import TrainConfig
from student_trainer.lacking import Origin
from student_trainer.loop import train
from student_trainer.memory import free_bytes
from student_trainer.placed_answers import place_answers
from student_trainer.targets import CacheTargets

CPU = torch.device("cpu")
ROWS = np.random.default_rng(0).permutation(1437)[:70]
VIEWS = (0, 3, 7)
OUTPUTS = ("logits", "features")


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "cache"
    digits, teacher = open_dataset("digits/train"), FakeTeacher(classes=10)
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(teacher.description, digits.description, dict.fromkeys(OUTPUTS, "float16"))
        for view in VIEWS:
            images = [digits.rendered(row, view) for row in ROWS.tolist()]
            writer.adopt(
                cache,
                keys=pixel_keys(images),
                rows=ROWS,
                views=[view] * len(ROWS),
                labels=digits.labels[ROWS],
                outputs=teacher.answer(images),
            )
    return path


def no_pixels() -> Sequence[NDArray[np.uint8]]:
    raise AssertionError("a cache needs no pixels")


def test_placed_answers_have_the_bytes_of_the_cache(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placed_answers, "ROWS_AT_ONCE", 32)  # several copies, the last one short
    reader = CacheReader.open(store_path)
    placed = place_answers(reader, rows=ROWS, views=VIEWS, outputs=OUTPUTS, device=CPU)
    assert placed is not None
    generator = np.random.default_rng(1)
    rows, views = generator.choice(ROWS, 500), generator.choice(VIEWS, 500)
    found, expected = placed.gather(rows, views), reader.gather(rows, view=views, outputs=OUTPUTS)
    assert found is not None
    assert list(found) == list(OUTPUTS)
    for name, array in expected.items():
        assert found[name].dtype == torch.float16
        assert found[name].numpy().tobytes() == array.tobytes()


def test_what_was_not_placed_is_read_from_the_cache(store_path: Path) -> None:
    reader = CacheReader.open(store_path)
    targets = CacheTargets(reader, origin=Origin(), device=CPU)
    targets.choose(["logits"])
    targets.place(ROWS[:10], views=(0, 7))
    for rows, view in ((ROWS[:10], 7), (ROWS[5:15], 0), (ROWS[:10], 3)):
        found = targets.gather(rows, np.full(10, view), pixels=no_pixels)["logits"]
        assert found.numpy().tobytes() == reader.gather(rows, view=view)["logits"].tobytes()
    assert place_answers(reader, rows=ROWS[:0], views=(0,), outputs=OUTPUTS, device=CPU) is None


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-4, False)])
def test_answers_take_a_quarter_of_the_free_memory_at_most(
    spare: int, fits: bool, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 70 * 3 * 10 * 2  # rows x views x classes x bytes of float16
    monkeypatch.setattr(placed_answers, "free_bytes", lambda _device: 4 * needed + spare)
    reader = CacheReader.open(store_path)
    placed = place_answers(reader, rows=ROWS, views=VIEWS, outputs=("logits",), device=CPU)
    assert (placed is not None) == fits


def test_a_training_has_the_same_bits_with_placed_answers_and_without(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        dataset="digits",
        student="zoo:mlp",
        cache=str(store_path),
        loss="kl",
        missing="skip",
        teacher_views="0,3,7",
        epochs=3,
        batch=16,
        tensorboard=False,
        out=tmp_path / "placed",
    )
    train(config)
    monkeypatch.setattr(placed_answers, "free_bytes", lambda _device: 0)
    train(replace(config, out=tmp_path / "read"))
    placed, read = (load_file(tmp_path / name / "last.safetensors") for name in ("placed", "read"))
    assert all(torch.equal(tensor, read[name]) for name, tensor in placed.items())


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, 1000 * 1024),
        # 800 kB allowed, 500 kB taken, of which 100 kB could be dropped.
        ({"job": (800, 500, 100)}, 400 * 1024),
        # The group around it is tighter.
        ({"job": (800, 500, 100), "": (600, 590, 0)}, 10 * 1024),
        ({"job": (2000, 100, 0)}, 1000 * 1024),
        ({"job": (800, 900, 0)}, 0),
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_knows_the_limits_of_groups(
    version: int, limits: dict[str, tuple[int, int, int]], expected: int, tmp_path: Path
) -> None:
    write(tmp_path / "meminfo", "MemTotal: 4000 kB\nMemAvailable:    1000 kB\n")
    write(tmp_path / "self", "0::/job\n" if version == 2 else "4:memory:/job\n1:cpu:/other\n0::/\n")
    root = tmp_path / "groups" if version == 2 else tmp_path / "groups" / "memory"
    limit_name, used_name, idle_name = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    write(root / "other" / limit_name, "1")
    write(root / limit_name, "max")
    for group, (limit, used, idle) in limits.items():
        write(root / group / limit_name, f"{limit * 1024}\n")
        write(root / group / used_name, f"{used * 1024}\n")
        write(root / group / "memory.stat", f"anon 5\n{idle_name} {idle * 1024}\n")
    paths = {"meminfo": tmp_path / "meminfo", "cgroups": tmp_path / "groups", "membership": tmp_path / "self"}
    assert host_free_bytes(droppable=("inactive_file",), **paths) == expected


def test_this_machine_has_free_memory() -> None:
    assert free_bytes(CPU) > 2**20
