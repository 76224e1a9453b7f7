"""What every kind of teacher keeps: form, identity, independence of the batch, and clear errors."""

import io
import json
import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.export import Dim

from shared.answers import check_answers
from shared.errors import IdentityError, InputError, UnknownNameError
from shared.models.build import build_model
from shared.models.checkpoint import CheckpointMetadata, save_checkpoint
from shared.teacher import Teacher, load_teacher

CLASSES = 4


@dataclass(frozen=True)
class Statistics:
    mean: tuple[float, float, float] = (0.5, 0.4, 0.3)
    std: tuple[float, float, float] = (0.2, 0.3, 0.4)


def load(spec: str, **options: object) -> Teacher:
    return load_teacher(spec, **({"classes": CLASSES, "normalisation": Statistics(), "device": "cpu"} | options))  # type: ignore[arg-type]


def export(path: Path, *, batch: Dim | None) -> Path:
    model = build_model("zoo:wrn_10_1", classes=CLASSES, seed=0).eval()
    shapes = ({0: batch},) if batch else None
    torch.export.save(torch.export.export(model, (torch.rand(3, 3, 12, 12),), dynamic_shapes=shapes), path)
    return path


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A spec of each kind."""
    folder = tmp_path_factory.mktemp("teachers")
    (folder / "mine.py").write_text(
        "from shared.models.build import build_model\n\ndef net(classes):\n"
        "    return build_model('zoo:resnet8', classes=classes, seed=9)\n"
    )
    metadata = CheckpointMetadata(
        architecture="zoo:resnet8", classes=CLASSES, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), image_size=(10, 10)
    )
    save_checkpoint(folder / "a.safetensors", build_model("zoo:resnet8", classes=CLASSES, seed=7), metadata=metadata)
    return {
        "fake": f"fake:{CLASSES}",
        "zoo": "zoo:wrn_10_1",
        "torchvision": "torchvision:mobilenet_v3_small",
        "timm": "timm:resnet10t",
        "python": f"python:{folder / 'mine.py'}:net",
        "checkpoint": str(folder / "a.safetensors"),
        "export": f"export:{export(folder / 'any.pt2', batch=Dim('batch'))}",
        "export of one batch size": f"export:{export(folder / 'three.pt2', batch=None)}",
    }


KINDS = ["fake", "zoo", "torchvision", "timm", "python", "checkpoint", "export", "export of one batch size"]


def images(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


@pytest.mark.parametrize("kind", KINDS)
def test_a_teachers_answers_have_the_form_it_describes(kind: str, specs: dict[str, str]) -> None:
    teacher = load(specs[kind])
    batch = images((32, 32), (32, 32), (32, 32), (32, 32))
    answers = teacher.answer(batch)
    assert tuple(answers) == teacher.outputs == ("logits", "features")
    check_answers(answers, description=teacher.description, names=["image"] * 4)
    assert teacher.description.classes == CLASSES
    assert teacher.answer([])["features"].shape == (0, teacher.description.features)
    assert json.loads(json.dumps(teacher.description.attributes())) == teacher.description.attributes()
    teacher.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_does_not_depend_on_the_other_images_of_its_batch(kind: str, specs: dict[str, str]) -> None:
    teacher = load(specs[kind])
    batch = images((32, 32), (40, 33), (32, 32), (64, 32), (40, 33), (32, 32), (32, 32))
    together = teacher.answer(batch)
    for place, image in enumerate(batch):
        alone = teacher.answer([image])
        for name in teacher.outputs:
            np.testing.assert_allclose(alone[name][0], together[name][place], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_has_the_same_id_at_every_start(kind: str, specs: dict[str, str]) -> None:
    first, again = load(specs[kind]), load(specs[kind])
    assert first.id == again.id == first.description.id
    assert first.description.arch == first.id.rpartition("-")[0]
    assert all(letter.isascii() and (letter.isalnum() or letter in "._-") for letter in first.id)
    assert first.id == first.id.lower()


def test_weights_preprocessing_precision_and_classes_are_all_in_the_id(specs: dict[str, str], tmp_path: Path) -> None:
    metadata = CheckpointMetadata(architecture="resnet8", classes=CLASSES)
    save_checkpoint(tmp_path / "b.safetensors", build_model("resnet8", classes=CLASSES, seed=8), metadata=metadata)
    ids = {
        load("zoo:resnet8").id,
        load("zoo:resnet8", classes=5).id,
        load("zoo:resnet8", precision="bfloat16").id,
        load("zoo:resnet8", normalisation=Statistics(mean=(0.5, 0.4, 0.31))).id,
        load("zoo:resnet8", weights=tmp_path / "b.safetensors").id,
        load("zoo:resnet14").id,
    }
    assert len(ids) == 6
    assert load("zoo:resnet8", device="auto").id in ids


def test_the_same_weights_in_another_file_are_the_same_teacher(tmp_path: Path) -> None:
    model = build_model("resnet8", classes=CLASSES, seed=8)
    model.get_buffer("bn1.num_batches_tracked").fill_(5)
    save_checkpoint(tmp_path / "w.safetensors", model, metadata=CheckpointMetadata(classes=CLASSES))
    torch.save({name: t for name, t in model.state_dict().items() if "num_batches" not in name}, tmp_path / "w.pth")
    first = load("zoo:resnet8", weights=tmp_path / "w.safetensors")
    assert first.id == load("zoo:resnet8", weights=tmp_path / "w.pth").id
    assert first.id != load("zoo:resnet8").id


def test_a_checkpoint_loads_from_its_path_with_its_own_preprocessing(specs: dict[str, str]) -> None:
    teacher = load_teacher(specs["checkpoint"], device="cpu")
    assert teacher.description.arch == "resnet8"
    assert teacher.description.preprocessing["mean"] == [0.1, 0.2, 0.3]
    assert teacher.input == (10, 10)
    model = build_model("zoo:resnet8", classes=CLASSES, seed=7).eval()
    image = images((10, 10))[0]
    normalised = (image / 255.0 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    with torch.inference_mode():
        expected = model(torch.from_numpy(normalised.astype(np.float32)).permute(2, 0, 1)[None])
    np.testing.assert_allclose(teacher.answer([image])["logits"], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_the_trained_reference_network_classifies_real_images(shared_path: Path) -> None:
    folder = shared_path / "data" / "cifar100"
    teacher = load_teacher(str(folder / "wrn_16_2.safetensors"), device="cpu")
    with zipfile.ZipFile(folder / "test.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        classes = sorted({name.split("/")[-2] for name in names})
        chosen = names[::40]
        pixels = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB")) for name in chosen]
    labels = [classes.index(name.split("/")[-2]) for name in chosen]
    accuracy = (teacher.answer(pixels)["logits"].argmax(axis=1) == labels).mean()
    # 67.28 % of all 10,000; 250 of them are within four standard errors.
    assert 0.55 < accuracy < 0.79
    assert (teacher.description.classes, teacher.description.features) == (100, 128)


def test_a_teacher_without_weights_warns_and_starts_from_seed_0(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        teacher = load("zoo:resnet8")
    assert "zoo:resnet8 has no weights: initialised from seed 0" in caplog.text
    model = build_model("zoo:resnet8", classes=CLASSES, seed=0).eval()
    assert teacher.answer(images((8, 8)))["logits"].shape == (1, CLASSES)
    with torch.inference_mode():
        pixels = torch.from_numpy(images((8, 8))[0] / 255.0).float()
        normalised = (pixels - torch.tensor(Statistics().mean)) / torch.tensor(Statistics().std)
        expected = model(normalised.permute(2, 0, 1)[None]).numpy()
    np.testing.assert_allclose(teacher.answer(images((8, 8)))["logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("precision", "error"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_lower_precision_is_close_to_float32_and_answers_float32(precision: str, error: float) -> None:
    batch = images(*[(16, 16)] * 4)
    exact = load("zoo:resnet8").answer(batch)["logits"]
    rough = load("zoo:resnet8", precision=precision).answer(batch)["logits"]
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < error * np.abs(exact).max()


def test_a_network_of_one_size_gets_every_image_at_it() -> None:
    teacher = load("timm:vit_tiny_patch16_224")
    assert teacher.input == (224, 224)
    assert teacher.description.preprocessing["resize"] == [224, 224]
    assert teacher.answer(images((8, 8), (300, 200)))["logits"].shape == (2, CLASSES)


def published_file(folder: Path) -> Path:
    """A file that has torchvision's name and shapes, not its numbers."""
    model = build_model("torchvision:shufflenet_v2_x0_5", classes=1000, seed=6)
    (folder / "checkpoints").mkdir(parents=True)
    path = folder / "checkpoints" / "shufflenetv2_x0.5-f707e7126e.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def hub_folder(tmp_path: Path) -> object:
    before = torch.hub.get_dir()
    torch.hub.set_dir(tmp_path / "hub")
    yield tmp_path / "hub"
    torch.hub.set_dir(before)


def test_published_weights_bring_their_classes_and_preprocessing(hub_folder: Path) -> None:
    path = published_file(hub_folder)
    by_name = load("torchvision:shufflenet_v2_x0_5", weights=Path("DEFAULT"))
    by_file = load("torchvision:shufflenet_v2_x0_5", weights=path)
    assert by_name.id == by_file.id
    assert by_name.description.classes == 1000
    assert by_name.description.preprocessing == {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "resize": 256,
        "crop": [224, 224],
        "interpolation": "bilinear",
    }
    assert by_name.answer(images((30, 40)))["logits"].shape == (1, 1000)


def test_a_download_that_fails_is_one_line_with_a_remedy(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_arguments: object, **_options: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(InputError, match=r"cannot download torchvision:resnet18 DEFAULT .*--weights FILE") as caught:
        load("torchvision:resnet18", weights=Path("DEFAULT"))
    assert "\n" not in str(caught.value)


def refusals(tmp_path: Path) -> dict[str, tuple[type[InputError], Callable[[], Teacher]]]:
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, build_model("zoo:wrn_10_1", classes=CLASSES), metadata=CheckpointMetadata(classes=CLASSES))
    python = tmp_path / "python.safetensors"
    metadata = CheckpointMetadata(architecture="python:net.py:build", classes=CLASSES)
    save_checkpoint(python, build_model("zoo:wrn_10_1", classes=CLASSES), metadata=metadata)
    return {
        "other.safetensors does not hold the weights of this CifarResNet: missing": (
            IdentityError,
            lambda: load("zoo:resnet8", weights=other),
        ),
        "does not say its architecture; use --teacher zoo:NAME": (InputError, lambda: load(str(other))),
        "no weights file": (InputError, lambda: load("zoo:resnet8", weights=tmp_path / "absent.pth")),
        "has only IMAGENET1K_V1": (InputError, lambda: load("torchvision:resnet18", weights=Path("BEST"))),
        "nothing says how many classes; give --classes": (InputError, lambda: load("zoo:resnet8", classes=None)),
        "unknown precision 'int4'; known: float32": (InputError, lambda: load("zoo:resnet8", precision="int4")),
        "unknown device 'tpu'; use auto, cpu": (InputError, lambda: load("zoo:resnet8", device="tpu")),
        "did you mean resnet8": (UnknownNameError, lambda: load("zoo:resnet88")),
        "brings its own weights": (InputError, lambda: load("export:x.pt2", weights=other)),
        "holds weights already": (InputError, lambda: load(str(other), weights=other)),
        "use --teacher python:net.py:build --weights": (InputError, lambda: load(str(python))),
        "no weights file nowhere.safetensors": (InputError, lambda: load("nowhere.safetensors")),
    }


@pytest.mark.parametrize("number", range(12))
def test_what_cannot_be_loaded_is_refused_in_one_line_with_the_remedy(number: int, tmp_path: Path) -> None:
    said, (kind, attempt) = list(refusals(tmp_path).items())[number]
    with pytest.raises(kind) as caught:
        attempt()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"device cuda is not there.*use cpu"):
        load("zoo:resnet8", device="cuda")
