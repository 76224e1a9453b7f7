"""What encodings cost: against the losses that train students, and against formulas written another way."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cache.fidelity import measure_fidelity, seen
from cache.writer import CacheWriter
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.errors import InputError
from student_trainer.losses import DistillBatch, build_loss

CLASSES = 20


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    teacher = TeacherDescription(
        id="fake-000000000000",
        arch="fake",
        weights="",
        preprocessing={},
        precision="float32",
        classes=CLASSES,
        features=0,
    )
    dataset = DatasetDescription(
        name="toy/train", rows=1000, classes=tuple(map(str, range(CLASSES))), fingerprint="f", view_policy="crop1"
    )
    with CacheWriter.open(tmp_path / "store") as writer:
        cache = writer.open_cache(teacher, dataset, {"logits": "float32"})
        rng = np.random.default_rng(0)
        writer.adopt(
            cache,
            keys=rng.integers(0, 256, (200, 32), dtype=np.uint8),
            rows=range(200),
            views=[0] * 200,
            labels=[0] * 200,
            outputs={"logits": logits()},
        )
    return tmp_path / "store"


def logits() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 3, (200, CLASSES)).astype(np.float32)


def test_what_a_cache_keeps_costs_nothing_and_less_costs_more(store_path: Path) -> None:
    by_name = {one.encoding: one for one in measure_fidelity(store_path)}
    assert {name: one.bytes_per_row for name, one in by_name.items()} == {"float16": 40, "float32": 80, "int8": 28}
    same = by_name["float32"]
    assert (same.top1_agreement, same.kl_tau1, same.kl_tau4, same.mse, same.ckd) == (1, 0, 0, 0, 0)
    assert same.dist == pytest.approx(0, abs=1e-6)
    for name in ("kl_tau1", "kl_tau4", "mse", "ckd"):
        assert 0 < getattr(by_name["float16"], name) < getattr(by_name["int8"], name) < 1e-2


def test_errors_are_the_values_of_the_losses(store_path: Path) -> None:
    """The student is what a reader of int8 sees; one batch, so that order plays no part."""
    found = next(one for one in measure_fidelity(store_path) if one.encoding == "int8")
    kept = torch.from_numpy(logits()).double()
    batch = DistillBatch(student_logits=torch.from_numpy(seen(logits(), encoding="int8")), teacher_logits=kept)
    assert found.kl_tau1 == pytest.approx(float(build_loss("kl", temperature=1.0)(batch)), rel=1e-3)
    assert found.kl_tau4 == pytest.approx(float(build_loss("kl", temperature=4.0)(batch)) / 16, rel=1e-3)
    assert found.mse == pytest.approx(float(build_loss("mse")(batch)), rel=1e-3)
    assert found.dist == pytest.approx(float(build_loss("dist")(batch)), rel=0.05, abs=2e-6)
    assert found.ckd == pytest.approx(float(build_loss("ckd", w_cls=0.0)(batch)), rel=1e-3)


def test_ckd_is_the_mean_over_every_pair(store_path: Path) -> None:
    found = next(one for one in measure_fidelity(store_path) if one.encoding == "float16")
    error = logits().astype(np.float64) - logits().astype(np.float16)
    pairs = [np.square(one - other) for i, one in enumerate(error) for j, other in enumerate(error) if i != j]
    assert found.ckd == pytest.approx(np.mean(pairs), rel=1e-9)


def test_a_cache_with_nothing_to_compare_is_refused(store_path: Path, tmp_path: Path) -> None:
    with CacheWriter.open(tmp_path / "empty") as writer:
        description = TeacherDescription(
            id="fake-1", arch="fake", weights="", preprocessing={}, precision="float32", classes=3, features=0
        )
        data = DatasetDescription(name="a/b", rows=1, classes=("a",), fingerprint="", view_policy="crop0")
        writer.open_cache(description, data)
    with pytest.raises(InputError, match="0 folded answers"):
        measure_fidelity(tmp_path / "empty")
