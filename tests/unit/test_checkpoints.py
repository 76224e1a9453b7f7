"""Checkpoints that describe themselves, and weights that do not fit."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from shared.errors import IdentityError, InputError
from shared.models.build import build_model
from shared.models.checkpoint import CheckpointMetadata, load_weights, read_metadata, save_checkpoint
from shared.models.features import LogitsAndFeatures

METADATA = CheckpointMetadata(
    architecture="zoo:resnet8",
    classes=3,
    class_names=("cat", "dog, small", "emu"),
    mean=(0.1, 0.2, 1 / 3),
    std=(0.4, 0.5, 0.6),
    image_size=(12, 16),
    extra={"test_accuracy": "0.5"},
)


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_metadata_and_tensors_come_back_as_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = build_model("zoo:resnet8", classes=3, seed=1)
    save_checkpoint(path, LogitsAndFeatures(model), metadata=METADATA)
    other = build_model("zoo:resnet8", classes=3, seed=2)
    assert not equal(model, other)
    load_weights(LogitsAndFeatures(other), path)
    assert read_metadata(path) == METADATA
    assert equal(model, other)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("wrapped", [lambda state: state, lambda state: {"epoch": 3, "model": state}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_plain_state_dict_loads_also_from_a_training_checkpoint(tmp_path: Path, wrapped: object, prefix: str) -> None:
    assert callable(wrapped)
    model = build_model("zoo:resnet8", classes=3, seed=1)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}
    torch.save(wrapped(state), tmp_path / "model.pth")
    other = build_model("zoo:resnet8", classes=3, seed=2)
    load_weights(other, tmp_path / "model.pth")
    assert equal(model, other)


def test_weights_of_another_architecture_are_refused_naming_few_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build_model("zoo:wrn_16_1", classes=3), metadata=METADATA)
    model = build_model("zoo:resnet8", classes=3)
    before = model.state_dict()["fc.weight"].clone()
    with pytest.raises(
        IdentityError, match=r"CifarResNet: missing bn1\.num|missing layer1\.0\.conv1\.weight"
    ) as caught:
        load_weights(model, path)
    message = str(caught.value)
    assert "unexpected block1.layer.0.bn1" in message and " more" in message
    assert len(message) < 900 and "\n" not in message
    assert torch.equal(model.state_dict()["fc.weight"], before)


def test_another_number_of_classes_is_refused_with_both_shapes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, build_model("zoo:resnet8", classes=5), metadata=METADATA)
    with pytest.raises(IdentityError, match=r"wrong shape fc.weight \[5, 64\] instead of \[3, 64\]"):
        load_weights(build_model("zoo:resnet8", classes=3), path)


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("PICKLE RAN",))


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_model("zoo:resnet8", classes=3)
    torch.save({"state_dict": model.state_dict(), "x": RunsCode()}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(RunsCode(), protocol=2))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(InputError, match="not a state dict of plain tensors"):
            load_weights(model, tmp_path / name)
    assert "PICKLE RAN" not in capsys.readouterr().out


def test_files_that_hold_no_weights_are_refused_in_one_line(tmp_path: Path) -> None:
    model = build_model("zoo:resnet8", classes=3)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "text.pt").write_text("hello")
    torch.save([1, 2], tmp_path / "list.pt")
    save_checkpoint(tmp_path / "odd.safetensors", model, metadata=CheckpointMetadata(extra={"mean": "a,b"}))
    for name in ("absent.safetensors", "absent.pt", "cut.safetensors", "text.pt", "list.pt"):
        with pytest.raises(InputError, match=name) as caught:
            load_weights(model, tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="malformed metadata"):
        read_metadata(tmp_path / "odd.safetensors")
