"""What teachers say besides logits and features: maps, attention, input gradients, constants."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shared.errors import InputError
from shared.models.build import build_model
from shared.models.maps import ofd_margin
from shared.teacher import TorchTeacher, load_teacher

SIZE = (8, 8)


@pytest.fixture(scope="module")
def teacher() -> TorchTeacher:
    loaded = load_teacher("zoo:resnet8", classes=5, device="cpu")
    assert isinstance(loaded, TorchTeacher)
    return loaded


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8))


def prepared(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def test_maps_are_what_hooks_on_the_stages_see_and_attention_is_made_of_them(
    teacher: TorchTeacher, images: list[np.ndarray]
) -> None:
    model = build_model("zoo:resnet8", classes=5, seed=0).eval()
    seen: dict[str, torch.Tensor] = {}
    for number, name in enumerate(("bn1", "layer1", "layer2", "layer3")):
        model.get_submodule(name).register_forward_hook(lambda _m, _i, out, n=number: seen.update({f"maps.{n}": out}))
    with torch.inference_mode():
        logits = model(prepared(images))
    seen["maps.0"] = seen["maps.0"].relu()
    names = [f"{kind}.{number}" for kind in ("maps", "preacts", "attention") for number in range(4)]
    said = teacher.answer(images, names)
    forms = teacher.forms(SIZE)
    assert [name for name in forms if name != "input_grad"] == ["logits", "features", *names]
    assert [name for name in said if name.startswith("preacts.")] == names[4:8]
    np.testing.assert_allclose(said["logits"], logits.numpy(), atol=1e-5)
    for number in range(4):
        expected = seen[f"maps.{number}"].numpy()
        np.testing.assert_allclose(said[f"maps.{number}"], expected, atol=1e-5)
        squares = np.square(expected.astype(np.float64)).mean(axis=1).reshape(len(images), -1)
        normalised = squares / np.linalg.norm(squares, axis=1, keepdims=True)
        np.testing.assert_allclose(said[f"attention.{number}"], normalised, atol=1e-5)
        side = 8 >> max(0, number - 1)
        attention = forms[f"attention.{number}"]
        assert (attention.attributes["height"], attention.attributes["width"]) == (side, side)
    assert all(forms[name].shape == values.shape[1:] for name, values in said.items())


def test_maps_before_activation_are_said_where_they_are_asked_for(
    teacher: TorchTeacher, images: list[np.ndarray]
) -> None:
    alone = teacher.answer(images, ["preacts.3", "preacts.0"])
    assert sorted(alone) == ["features", "logits", "preacts.0", "preacts.3"]
    both = teacher.answer(images, ["maps.3", "preacts.3", "attention.0", "input_grad"])
    assert sorted(both) == ["attention.0", "features", "input_grad", "logits", "maps.3", "preacts.3"]
    np.testing.assert_array_equal(both["preacts.3"], alone["preacts.3"])
    np.testing.assert_array_equal(np.maximum(both["preacts.3"], 0), both["maps.3"])
    assert (both["preacts.3"] < 0).any()


def test_an_input_gradient_is_the_slope_of_the_largest_logit(teacher: TorchTeacher, images: list[np.ndarray]) -> None:
    gradient = teacher.answer(images, ["input_grad"])["input_grad"]
    model = build_model("zoo:resnet8", classes=5, seed=0).eval().double()
    pixels, step = prepared(images).double(), 1e-6
    with torch.inference_mode():
        top = model(pixels).argmax(dim=1)
        for place in [(0, 0, 0), (1, 3, 5), (2, 7, 7)]:
            nudge = torch.zeros_like(pixels)
            nudge[(slice(None), *place)] = step
            slope = (model(pixels + nudge) - model(pixels - nudge)).gather(1, top[:, None])[:, 0] / (2 * step)
            np.testing.assert_allclose(gradient[(slice(None), *place)], slope.numpy(), rtol=1e-3, atol=1e-4)


def test_constants_are_the_classifier_and_margins_of_the_norm_before_each_map(teacher: TorchTeacher) -> None:
    model = build_model("zoo:resnet8", classes=5, seed=0)
    constants = teacher.constants()
    np.testing.assert_array_equal(constants["classifier.weight"], model.fc.weight.detach().numpy())
    np.testing.assert_array_equal(constants["classifier.bias"], model.fc.bias.detach().numpy())
    assert [constants[f"margins.{number}"].shape for number in range(4)] == [(16,), (16,), (32,), (64,)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet8", ["bn1", "layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]),
        ("wrn_10_1", ["block1.layer.0.bn1", "block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
        ("vgg8", ["block0.1", "block1.1", "block2.1", "block3.1", "block4.1"]),
    ],
)
def test_a_margin_is_of_the_norm_that_its_map_comes_from_or_goes_to(name: str, expected: list[str]) -> None:
    loaded = load_teacher(f"zoo:{name}", classes=3, device="cpu")
    assert isinstance(loaded, TorchTeacher)
    model = loaded._network.model.model
    norms = {name: module for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    for place, norm in enumerate(norms.values()):
        norm.bias.data.fill_(float(place))
    found = loaded.constants()
    margins = [ofd_margin(norms[norm]).numpy() for norm in expected]
    for number, margin in enumerate(margins):
        np.testing.assert_allclose(found[f"margins.{number}"], margin)


def test_margins_are_those_of_the_authors_code(golden_path: Path) -> None:
    vectors = np.load(golden_path / "ofd.margin.npz")
    norm = nn.BatchNorm2d(12)
    norm.weight.data = torch.from_numpy(vectors["in/x1/C12/bn_weight"])
    norm.bias.data = torch.from_numpy(vectors["in/x1/C12/bn_bias"])
    np.testing.assert_allclose(ofd_margin(norm).numpy(), vectors["001/margin"], rtol=1e-5)


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        ("torchvision:mobilenet_v3_small", [(16, 32, 32), (16, 16, 16), (24, 8, 8), (48, 4, 4), (576, 2, 2)]),
        ("timm:resnet10t", [(64, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]),
    ],
)
def test_stages_of_other_networks_are_found_by_their_size(spec: str, shapes: list[tuple[int, ...]]) -> None:
    forms = load_teacher(spec, classes=3, device="cpu").forms((64, 64))
    assert [form.shape for name, form in forms.items() if name.startswith("maps.")] == shapes


def test_what_a_teacher_cannot_give_is_refused_with_what_it_can(
    teacher: TorchTeacher, images: list[np.ndarray]
) -> None:
    with pytest.raises(InputError, match=r"cannot give 'maps.0'; it gives logits, features; it has no feature maps"):
        load_teacher("fake:3").answer(images, ["maps.0"])
    with pytest.raises(InputError, match=r"cannot give 'preacts.0'; it gives logits, features; it has no feature maps"):
        load_teacher("fake:3").answer(images, ["preacts.0"])
    with pytest.raises(InputError, match=r"cannot give 'maps.4'"):
        teacher.answer(images, ["maps.4"])
    with pytest.raises(InputError, match=r"cannot give 'preacts.4'; it gives .*maps.3, preacts.0, preacts.1"):
        teacher.answer(images, ["preacts.4"])
    with pytest.raises(InputError, match="images of one size"):
        teacher.answer([*images, np.zeros((16, 16, 3), np.uint8)], ["maps.1"])
