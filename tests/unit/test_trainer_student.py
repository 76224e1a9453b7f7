"""Students that could not be trained are refused in one line, before any teacher is asked."""

from pathlib import Path

import pytest
import torch

from shared.errors import InputError
from shared.models.build import build_model
from student_trainer.student import build_student

NETWORKS = """
from torch import nn

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(192, 10)

    def forward(self, images):
        logits = self.last(images.flatten(1))
        return logits, logits

def five(): return nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
def pair(): return Pair()
def large(): return nn.Sequential(nn.Conv2d(3, 8, 11), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
def nothing(): return nn.Sequential(nn.Flatten(), nn.Softmax(1))
"""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("five", r"answers \[2, 5\] for 2 images; it must give one tensor of logits \[2, 10\]"),
        ("pair", r"answers tuple for 2 images"),
        ("large", r"cannot take images of 8 x 8 \(.*Kernel size.*--image-size N"),
        ("nothing", "has no weights to train"),
    ],
)
def test_a_student_that_cannot_learn_the_data_set_is_refused(tmp_path: Path, function: str, message: str) -> None:
    file = tmp_path / "networks.py"
    file.write_text(NETWORKS)
    with pytest.raises(InputError, match=message):
        build_student(f"python:{file}:{function}", classes=10, image_shape=(8, 8), seed=0)


def test_an_exported_program_is_refused_as_a_student(tmp_path: Path) -> None:
    model = build_model("zoo:resnet8", classes=10).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(2, 3, 8, 8),)), tmp_path / "net.pt2")
    with pytest.raises(InputError, match=r"cannot be trained.*use zoo:, torchvision:, timm: or python:"):
        build_student(f"export:{tmp_path / 'net.pt2'}", classes=10, image_shape=(8, 8), seed=0)


def test_trying_a_student_leaves_its_tensors_and_mode_as_they_were() -> None:
    tried = build_student("zoo:resnet8", classes=10, image_shape=(8, 8), seed=3)
    fresh = build_model("zoo:resnet8", classes=10, seed=3)
    assert all(torch.equal(tensor, fresh.state_dict()[name]) for name, tensor in tried.state_dict().items())
    assert all(module.training for module in tried.modules())
