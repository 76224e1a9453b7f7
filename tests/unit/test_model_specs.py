"""Networks by spec: the same weights for a seed, clear errors for names."""

import random
from pathlib import Path

import pytest
import torch

from shared.errors import InputError, UnknownNameError
from shared.models.build import build_model

PYTHON_MODEL = """
from torch import nn

WIDTH = 5

def sized(classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, WIDTH), nn.Linear(WIDTH, classes))

def fixed():
    return sized(4)

def wrong():
    return 3

def failing():
    raise KeyError("no weights\\nhere")
"""


@pytest.fixture
def python_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(PYTHON_MODEL)
    return path


@pytest.mark.parametrize("spec", ["zoo:wrn_16_1", "zoo:ShuffleV2", "torchvision:mobilenet_v3_small", "timm:resnet10t"])
def test_a_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(spec: str) -> None:
    torch.manual_seed(5)
    state, python_state = torch.get_rng_state(), random.getstate()
    first = build_model(spec, classes=4, seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == python_state
    torch.rand(7)
    again = build_model(spec, classes=4, seed=3).state_dict()
    other = build_model(spec, classes=4, seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("spec", ["zoo:WRN_16_2", "wrn-16-2", "zoo:mobilenetv2", "zoo:ShuffleNetV1", "zoo:wrn_10_3"])
def test_zoo_names_are_found_whatever_their_spelling(spec: str) -> None:
    model = build_model(spec, classes=4).eval()
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 4)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("zoo:wrn_16", "did you mean wrn_16_"),
        ("zoo:wrn_17_2", "did you mean wrn_1"),
        ("zoo:resnet9", "resnet8"),
        ("zoo:nothing-like-it", "known: resnet8"),
        ("torchvision:resnet19", "did you mean resnet1"),
        ("torchvision:fasterrcnn_resnet50_fpn", "unknown network torchvision"),
        ("timm:resnet10tt", "did you mean resnet10t"),
        ("timm:hf_hub:someone/model", "unknown network timm"),
        ("keras:resnet50", "known: zoo, torchvision, timm, export, python"),
        ("", "unknown network"),
    ],
)
def test_an_unknown_name_is_answered_with_close_ones(spec: str, said: str) -> None:
    with pytest.raises(UnknownNameError, match=said) as caught:
        build_model(spec, classes=4)
    assert "\n" not in str(caught.value)


def test_a_python_function_builds_with_or_without_a_number_of_classes(python_file: Path) -> None:
    assert build_model(f"python:{python_file}:sized", classes=6)(torch.zeros(2, 3, 4, 4)).shape == (2, 6)
    assert build_model(f"python:{python_file}:fixed", classes=6)(torch.zeros(2, 3, 4, 4)).shape == (2, 4)


def test_python_specs_that_cannot_work_say_why(python_file: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_module_here\n")
    for spec, said in (
        (f"python:{python_file}:nope", "it has sized, fixed, wrong"),
        (f"python:{python_file}:wrong", "returned int, not a torch.nn.Module"),
        (f"python:{python_file}:failing", r"mine.py \(line \d+\) failed with KeyError"),
        (f"python:{python_file}", "not python:FILE.py:FUNCTION"),
        (f"python:{tmp_path}/absent.py:f", "no file"),
        (f"python:{tmp_path}/broken.py:f", "no_such_module_here"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            build_model(spec, classes=2)
        assert "\n" not in str(caught.value)


def test_a_python_file_may_hold_dataclasses(tmp_path: Path) -> None:
    (tmp_path / "settings.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Settings:\n    width: int = 3\n"
        "def net():\n    return nn.Linear(Settings().width, 2)\n"
    )
    assert isinstance(build_model(f"python:{tmp_path}/settings.py:net", classes=2), torch.nn.Linear)


def test_no_classes_are_refused() -> None:
    with pytest.raises(InputError, match="1 or more"):
        build_model("zoo:resnet8", classes=0)
