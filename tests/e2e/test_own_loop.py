"""Every loss in a training loop of the user's own, from a real cache."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from typer.testing import CliRunner

from cache.reader import CacheReader
from shared.datasets.base import ImageDataset
from shared.datasets.spec import open_dataset
from shared.errors import InputError
from shared.models.build import build_model
from student_trainer.data import CachedTeacherDataset, CachedTeacherLoader, TeacherBatch
from student_trainer.losses import LOSSES, DistillBatch, build_loss
from student_trainer.losses.base import DistillLoss
from student_trainer.student_outputs import StudentOutputs
from teacher_server.cli import app

ROWS = 24
KEPT = ",".join(
    [
        "logits,features,input_grad,constants,maps.0",
        *(f"{kind}.{number}" for kind in ("maps", "preacts", "attention") for number in (1, 2, 3)),
    ]
)
SUMS = ("review+fitnets", "fitnets+ab+ofd+at")
"""Of maps and of maps before their activation."""
SETTINGS: dict[str, dict[str, object]] = {"crd": {"negatives": 64}}


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return open_dataset("digits/train")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CacheReader]:
    path = tmp_path_factory.mktemp("own") / "cache"
    asked = ("--teacher", "zoo:resnet8", "--dataset", "digits/train", "--cache", str(path), "--outputs", KEPT)
    done = CliRunner().invoke(app, ["fill", *asked, "--sample", str(ROWS), "--device", "cpu", "--threads", "1"])
    if done.exception is not None:
        raise done.exception
    with CacheReader.open(path) as opened:
        yield opened


def to_input(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def dataset_of(reader: CacheReader, digits: ImageDataset) -> CachedTeacherDataset:
    own = [(digits.image(row), int(label)) for row, label in enumerate(digits.labels.tolist())]
    return CachedTeacherDataset(own, reader, transform=to_input)


def step(batch: TeacherBatch, *, student: nn.Module, loss: DistillLoss, constants: Any) -> Tensor:
    """The value of one batch."""
    images = batch.images
    mix = loss.mix(len(images), size=images.shape[2:])
    images = (images if mix is None else mix.images(images)).requires_grad_("student_inputs" in loss.needs)
    said = student(images)
    given = batch.distill(
        said.logits,
        student_features=said.features,
        student_maps=said.maps,
        student_inputs=images,
        mix=mix,
        teacher_constants=constants,
    )
    value: Tensor = loss(given)
    return value


@pytest.mark.parametrize("name", [*sorted(LOSSES), *SUMS])
def test_every_loss_trains_a_student_in_a_loop_of_ones_own(
    name: str, reader: CacheReader, digits: ImageDataset
) -> None:
    loss = build_loss(name, **SETTINGS.get(name, {}))
    student = StudentOutputs(build_model("zoo:resnet8", classes=10, seed=1), loss=loss, image_size=(8, 8))
    loader = CachedTeacherLoader.for_loss(loss, dataset_of(reader, digits), student=student, batch_size=8)
    trained = [*student.parameters(), *loss.parameters()]
    optimizer, before = SGD(trained, lr=1e-3), [one.detach().clone() for one in student.parameters()]
    loss.begin_epoch(0)
    for batch in loader:
        value = step(batch, student=student, loss=loss, constants=loader.constants)
        optimizer.zero_grad()
        torch.autograd.backward(value)
        assert value.isfinite()
        optimizer.step()
    moved = [not torch.equal(one, other) for one, other in zip(before, student.parameters(), strict=True)]
    assert any(moved)


def test_each_loss_of_a_sum_gets_maps_of_its_own_kind(reader: CacheReader, digits: ImageDataset) -> None:
    loss = build_loss("review+fitnets", **{"review.maps": "2,3"})
    student = StudentOutputs(build_model("zoo:resnet8", classes=10, seed=1), loss=loss, image_size=(8, 8))
    batch = next(iter(CachedTeacherLoader.for_loss(loss, dataset_of(reader, digits), student=student, batch_size=8)))
    images, _labels, rows, _views, teacher = batch
    given = batch._replace(images=images / 2).distill(torch.zeros(8, 10))
    kept = reader.gather(rows.numpy(), outputs=["preacts.2", "preacts.3", "maps.2", "features"])
    found = [*given.teacher_maps, given.teacher_features]
    for tensor, (name, array) in zip(found, kept.items(), strict=True):
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert teacher[name] is tensor


def test_a_batch_carries_all_that_the_loader_was_asked_for(reader: CacheReader, digits: ImageDataset) -> None:
    loader = CachedTeacherLoader(
        dataset_of(reader, digits), batch_size=8, outputs=["logits", "maps.1", "maps.3", "attention.2", "input_grad"]
    )
    batch = next(iter(loader))
    images = batch.images.requires_grad_()
    maps = (torch.zeros(8, 4, 8, 8), torch.zeros(8, 4, 2, 2))
    given = batch.distill(
        torch.zeros(8, 10), student_maps=list(maps), student_inputs=images, teacher_constants=loader.constants
    )
    kept = reader.gather(batch.rows.numpy(), outputs=["maps.1", "maps.3", "attention.2", "input_grad"])
    found = [*given.teacher_maps, *given.teacher_attention, given.teacher_input_grad]
    for tensor, array in zip(found, kept.values(), strict=True):
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert given.student_inputs is images
    assert given.student_maps == maps
    assert given.teacher_constants is not None
    assert given.teacher_constants["classifier.weight"].shape == (10, 64)
    assert loader.constants is loader.constants


def test_a_batch_lacks_what_was_not_given(reader: CacheReader, digits: ImageDataset) -> None:
    batch: DistillBatch = next(iter(CachedTeacherLoader(dataset_of(reader, digits), batch_size=8))).distill(
        torch.zeros(8, 10)
    )
    assert batch.teacher_constants is None
    with pytest.raises(InputError, match="needs teacher_input_grad, which this batch does not have; gather outputs"):
        build_loss("jacobian")(batch)
    lacks = "ofd needs teacher_constants, .*; give constants of the CachedTeacherLoader, or those of the CacheReader"
    maps = (torch.zeros(8, 4, 8, 8),)
    with pytest.raises(InputError, match=lacks):
        build_loss("ofd")(replace(batch, student_maps=maps, teacher_maps=maps))
