"""The zoo's perceptron: its layers, its beginning and what others read from it."""

import math

import numpy as np
import pytest
import torch

from shared.models.build import build_model
from shared.models.features import LogitsAndFeatures


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (5, 7)])
def test_the_mlp_takes_images_of_any_size(size: tuple[int, int]) -> None:
    assert build_model("zoo:mlp", classes=7)(torch.rand(3, 3, *size)).shape == (3, 7)


def test_the_mlp_computes_what_its_layers_say() -> None:
    model = build_model("mlp", classes=4, seed=1).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    tensors = {name: tensor.detach().numpy() for name, tensor in model.named_parameters()}
    hidden = images.numpy().reshape(2, 3, 8, 2, 8, 2).mean(axis=(3, 5)).reshape(2, 192)
    for layer in ("fc1", "fc2"):
        hidden = np.maximum(hidden @ tensors[f"{layer}.weight"].T + tensors[f"{layer}.bias"], 0)
    expected = hidden @ tensors["classifier.weight"].T + tensors["classifier.bias"]
    np.testing.assert_allclose(model(images).detach(), expected, rtol=1e-12)
    assert sum(tensor.size for tensor in tensors.values()) == 192 * 128 + 128 + 128 * 128 + 128 + 128 * 4 + 4


def test_the_mlp_begins_as_documented() -> None:
    tensors = dict(build_model("zoo:mlp", classes=100, seed=0).named_parameters())
    assert tensors["fc1.weight"].std().item() == pytest.approx(math.sqrt(2 / 192), rel=0.03)
    assert tensors["fc2.weight"].std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.03)
    assert tensors["classifier.weight"].std().item() == pytest.approx(0.01, rel=0.03)
    assert all(not tensors[f"{layer}.bias"].any() for layer in ("fc1", "fc2", "classifier"))


def test_the_mlps_features_and_last_map_are_its_last_hidden_layer() -> None:
    model = build_model("zoo:mlp", classes=7)
    images = torch.rand(3, 3, 8, 8)
    logits, features = LogitsAndFeatures(model)(images)
    maps = model.maps(images)  # type: ignore[operator]  # every network of the zoo has it
    assert [tuple(each.shape) for each in maps] == [(3, 128, 1, 1), (3, 128, 1, 1)]
    torch.testing.assert_close(features, maps[-1].flatten(1))
    torch.testing.assert_close(model.get_submodule("classifier")(features), logits)
