"""Penultimate features are found in networks nobody prepared for it."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from shared.errors import InputError
from shared.models.build import build_model
from shared.models.features import LogitsAndFeatures

LINEAR_HEADS = [
    ("torchvision:resnet18", 32, 512, "fc"),
    ("torchvision:mobilenet_v3_small", 32, 1024, "classifier.3"),
    ("torchvision:swin_t", 32, 768, "head"),
    ("torchvision:densenet121", 32, 1024, "classifier"),
    ("torchvision:googlenet", 32, 1024, "fc"),
    ("torchvision:efficientnet_b0", 32, 1280, "classifier.1"),
    ("torchvision:convnext_tiny", 32, 768, "classifier.2"),
    ("timm:vit_tiny_patch16_224", 224, 192, "head"),
    ("timm:resnet10t", 32, 512, "fc"),
]


@pytest.mark.parametrize(("spec", "size", "width", "head"), LINEAR_HEADS)
def test_the_features_of_a_classifier_give_its_logits_through_its_head(
    spec: str, size: int, width: int, head: str
) -> None:
    model = LogitsAndFeatures(build_model(spec, classes=7)).eval()
    images = torch.rand(2, 3, size, size)
    with torch.inference_mode():
        logits, features = model(images)
        expected = model.model(images)
        through_head = model.model.get_submodule(head)(features)
    assert (model.classes, model.feature_width) == (7, width)
    assert features.shape == (2, width)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(through_head, logits)


def test_a_convolutional_head_gives_pooled_features() -> None:
    model = LogitsAndFeatures(build_model("torchvision:squeezenet1_1", classes=7)).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        logits, features = model(images)
        maps = model.model.features(images)  # type: ignore[operator]  # torchvision's SqueezeNet has it
    assert logits.shape == (2, 7)
    torch.testing.assert_close(features, adaptive_avg_pool2d(maps, 1).flatten(1))


class Cut(nn.Module):
    """A tiny network whose end is the test's."""

    def __init__(self, end: str) -> None:
        super().__init__()
        self.end = end
        self.stem = nn.Conv2d(3, 6, 3)
        self.head, self.second, self.wide = nn.Linear(6, 4), nn.Linear(6, 4), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> object:
        maps = self.stem(x)
        pooled = adaptive_avg_pool2d(maps, 1).flatten(1)
        return {
            "plain": lambda: self.head(pooled),
            "squeezed": lambda: self.head(pooled[:, None]).squeeze(1),
            "pooled first": lambda: self.wide(adaptive_avg_pool2d(maps, 1)).flatten(1),
            "pooled last": lambda: adaptive_avg_pool2d(self.wide(maps), 1)[:, :, 0, 0],
            "sum": lambda: self.head(pooled) + self.second(pooled),
            "softmax": lambda: self.head(pooled).softmax(dim=1),
            "tuple": lambda: (self.head(pooled), self.second(pooled)),
            "map": lambda: self.wide(maps),
        }[self.end]()


@pytest.mark.parametrize("end", ["plain", "squeezed", "pooled first", "pooled last"])
def test_heads_of_every_usual_form_are_found(end: str) -> None:
    cut = Cut(end)
    images = torch.rand(3, 3, 9, 9)
    logits, features = LogitsAndFeatures(cut)(images)
    torch.testing.assert_close(logits, cut(images))
    torch.testing.assert_close(features, cut.stem(images).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("sum", "combine the heads head, second"),
        ("softmax", "no layer gives its logits"),
        ("tuple", "answers tuple, not one tensor"),
        ("map", r"answers \[2, 4, 30, 30\]"),
    ],
)
def test_several_heads_or_none_are_refused_with_the_remedy(end: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        LogitsAndFeatures(Cut(end))
    assert "python:FILE.py:FUNCTION" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_looking_for_the_head_changes_no_state_of_the_model() -> None:
    model = build_model("zoo:resnet8", classes=4).train()
    frozen = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d)).eval()
    before = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    LogitsAndFeatures(model)
    assert model.training and not frozen.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gradients_flow_through_logits_and_features_alike() -> None:
    model = LogitsAndFeatures(build_model("zoo:resnet8", classes=4)).train()
    logits, features = model(torch.rand(4, 3, 8, 8))
    features.sum().backward(retain_graph=True)
    assert model.model.get_parameter("conv1.weight").grad is not None
    assert model.model.get_parameter("fc.weight").grad is None
    logits.sum().backward()
    assert model.model.get_parameter("fc.weight").grad is not None


def test_a_copy_captures_its_own_features() -> None:
    model = LogitsAndFeatures(Cut("plain"))
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.model.get_parameter("stem.weight"))
    nn.init.zeros_(twin.model.get_parameter("stem.bias"))
    assert twin(torch.rand(2, 3, 9, 9))[1].abs().max() == 0
    assert model(torch.rand(2, 3, 9, 9))[1].abs().max() > 0


def test_a_network_that_cannot_take_an_image_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="cannot run on a float"):
        LogitsAndFeatures(nn.Linear(5, 3))
