"""Every network of the zoo is the published one: same tensors, same numbers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from shared.models.features import LogitsAndFeatures
from shared.models.zoo_registry import ZOO, find_network

GOLDEN_NAMES = [name for name in ZOO if name not in {"vgg16", "vgg19", "mlp"}]
"""Networks whose numbers the golden file holds; `mlp` is nobody's published network."""
INPUT_INDEX = 1_000_003


@pytest.fixture(scope="module")
def golden(golden_path: Path) -> dict[str, Any]:
    models: dict[str, Any] = json.loads((golden_path / "models.json").read_text())["models"]
    return models


def uniform(index: int, *, count: int) -> NDArray[np.float64]:
    """The golden file's hash of (tensor number, element) to [0, 1)."""
    j = np.arange(count, dtype=np.uint64)
    x = (np.uint64(index) * np.uint64(0x9E3779B1) + j * np.uint64(0x85EBCA77) + np.uint64(0xC2B2AE3D)) & MASK
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x2C1B3C6D)) & MASK
    x ^= x >> np.uint64(12)
    x = (x * np.uint64(0x297A2D39)) & MASK
    x ^= x >> np.uint64(15)
    return x.astype(np.float64) / 2.0**32


MASK = np.uint64(0xFFFFFFFF)


def fill(model: nn.Module) -> None:
    """Give every parameter its value of the golden file's deterministic fill."""
    for index, (name, parameter) in enumerate(model.named_parameters()):
        u = uniform(index, count=parameter.numel())
        if parameter.ndim >= 2:
            values = (2 * u - 1) * np.sqrt(6.0 / (parameter.numel() // parameter.shape[0]))
        elif name.endswith("weight"):
            values = 0.7 + 0.2 * (u - 0.5)
        else:
            values = 0.1 * (2 * u - 1)
        parameter.data = torch.from_numpy(values.reshape(parameter.shape))


def golden_input(count: int) -> torch.Tensor:
    values = 2 * (2 * uniform(INPUT_INDEX, count=4 * 3 * 32 * 32) - 1)
    return torch.from_numpy(values.reshape(4, 3, 32, 32)[:count])


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_zoo_network_has_the_published_tensors_in_their_order(name: str, golden: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = find_network(name)[1](classes=100)
        small = find_network(name)[1](classes=10)
    found = [[tensor_name, list(tensor.shape)] for tensor_name, tensor in model.named_parameters()]
    assert found == golden[name]["params"]
    assert sum(tensor.numel() for tensor in model.parameters()) == golden[name]["param_count"]
    assert sum(tensor.numel() for tensor in small.parameters()) == golden[name]["param_count_10_classes"]


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_a_zoo_network_computes_the_published_logits_maps_and_features(name: str, golden: dict[str, Any]) -> None:
    expected = golden[name]
    model = find_network(name)[1](classes=100).double().eval()
    fill(model)
    with torch.inference_mode():
        maps = model.maps(golden_input(1))
        logits, features = LogitsAndFeatures(model)(golden_input(1))
    np.testing.assert_allclose(logits[0].numpy(), expected["logits_eval_float64"], rtol=1e-9, atol=1e-12)
    stats = expected["feature_stats_eval_float64"]
    assert len(maps) == len(stats) - 1
    for found, stat in zip((*maps, features), stats, strict=True):
        assert list(found.shape) == stat["shape"]
        assert found.mean().item() == pytest.approx(stat["mean"], rel=1e-9, abs=1e-12)
        assert found.norm().item() == pytest.approx(stat["l2"], rel=1e-9)
        np.testing.assert_allclose(found.flatten()[:3].numpy(), stat["first3"], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_a_zoo_network_trains_as_published(name: str, golden: dict[str, Any]) -> None:
    expected = golden[name]["train_mode_batch4_float64"]
    model = find_network(name)[1](classes=100).double().train()
    fill(model)
    logits = model(golden_input(4))
    loss = nn.functional.cross_entropy(logits, torch.arange(4))
    loss.backward()
    np.testing.assert_allclose(logits[:, :10].detach(), expected["logits_first10_per_sample"], rtol=1e-8, atol=1e-10)
    assert loss.item() == pytest.approx(expected["cross_entropy_labels_0123"], rel=1e-9)
    gradients = [parameter.grad.norm().item() for parameter in model.parameters() if parameter.grad is not None]
    assert np.linalg.norm(gradients) == pytest.approx(expected["grad_l2_total"], rel=1e-7)


@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
@pytest.mark.parametrize(
    "name", ["resnet8", "wrn_10_1", "vgg8", "vgg16", "vgg19", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
)
def test_a_zoo_network_takes_images_of_8_pixels_and_fewer(name: str, size: tuple[int, int]) -> None:
    model = find_network(name)[1](classes=10).eval()
    with torch.inference_mode():
        assert model(torch.zeros(2, 3, *size)).shape == (2, 10)


def test_wide_residual_networks_of_any_size_have_the_published_number_of_weights(golden_path: Path) -> None:
    counts = json.loads((golden_path / "models.json").read_text())["extra_param_counts_100_classes"]
    assert len(counts) == 5
    for described, expected in counts.items():
        name = described.split(" ")[0].replace("-", "_")
        with torch.device("meta"):
            model = find_network(name)[1](classes=100)
        assert sum(tensor.numel() for tensor in model.parameters()) == expected, name
