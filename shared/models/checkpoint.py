"""Weights on disk: safetensors files that say what they are, and plain state dicts read without running code."""

import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from shared.errors import IdentityError, InputError
from shared.models.features import LogitsAndFeatures

Triple = tuple[float, float, float]
NAMES_SHOWN = 4
COUNTER = "num_batches_tracked"
"""Batch norm's step counter: never used for an answer, left out of some published files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointMetadata:
    """What a checkpoint says about itself; with an architecture and classes, its path alone is enough to load it."""

    architecture: str = ""
    """A model spec such as ``zoo:wrn_16_2``; a bare name is of the zoo. Empty where the file does not say."""
    classes: int = 0
    """Width of the logits; 0 where the file does not say."""
    class_names: tuple[str, ...] = ()
    """Class names by label."""
    mean: Triple | None = None
    """Mean of pixels / 255 per channel that the network was trained with."""
    std: Triple | None = None
    """Standard deviation, likewise."""
    image_size: tuple[int, int] | None = None
    """(H, W) of the images it was trained on; None where the file does not say.

    Other images are resized: to a square by their shorter side and a cut of the middle, else to exactly (H, W).
    """
    extra: Mapping[str, str] = field(default_factory=dict)
    """Anything else worth keeping, such as the accuracy reached."""

    def to_strings(self) -> dict[str, str]:
        """As safetensors keeps it."""
        found = {**self.extra, "architecture": self.architecture, "classes": str(self.classes)}
        if self.class_names:
            found["class_names"] = json.dumps(list(self.class_names))
        for name, numbers in (("mean", self.mean), ("std", self.std), ("image_size", self.image_size)):
            if numbers is not None:
                found[name] = ",".join(str(number) for number in numbers)
        return found


def save_checkpoint(path: Path, model: nn.Module, *, metadata: CheckpointMetadata) -> None:
    """Write the model's tensors and metadata as safetensors; complete or not at all.

    A `LogitsAndFeatures` is saved as the model that it wraps.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _inner(model).state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(save(tensors, metadata=metadata.to_strings()))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_metadata(path: Path) -> CheckpointMetadata:
    """What a safetensors file says about itself; `InputError` if it cannot be read or says something malformed."""
    check_is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            strings: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a complete safetensors file: {error}") from error
    known = {"architecture", "classes", "class_names", "mean", "std", "image_size"}
    try:
        size = [int(side) for side in strings.get("image_size", "").split(",") if side]
        return CheckpointMetadata(
            architecture=strings.get("architecture", ""),
            classes=int(strings.get("classes", "0")),
            class_names=tuple(str(name) for name in json.loads(strings.get("class_names", "[]"))),
            mean=_triple(strings.get("mean")),
            std=_triple(strings.get("std")),
            image_size=(size[0], size[1]) if size else None,
            extra={name: text for name, text in strings.items() if name not in known},
        )
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{path} has malformed metadata ({error}); save it with save_checkpoint") from error


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a safetensors file, or a ``.pt``/``.pth`` state dict, into ``model``.

    Raises `InputError` for a file that is neither, `IdentityError` naming the tensors for weights of another network.
    """
    fill(model, read_tensors(path), origin=str(path))


def fill(model: nn.Module, tensors: Mapping[str, Tensor], *, origin: str) -> None:
    """Load tensors by name into ``model``; `IdentityError` names the first that do not fit."""
    inner = _inner(model)
    wanted = inner.state_dict()
    problems = []
    missing = [name for name in wanted if name not in tensors and not name.endswith(COUNTER)]
    unexpected = [name for name in tensors if name not in wanted]
    shapes = [
        f"{name} {list(tensors[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes)):
        if names:
            problems.append(f"{what} {_first(names)}")
    if problems:
        raise IdentityError(
            f"{origin} does not hold the weights of this {type(inner).__name__}: {'; '.join(problems)}; "
            "name the architecture and number of classes that it was saved with"
        )
    inner.load_state_dict(tensors, strict=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, of a safetensors file or a state dict; never runs code from the file."""
    check_is_file(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a complete safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a state dict of plain tensors (nothing else is loaded from a pickle); "
            "save torch's model.state_dict(), or convert it to safetensors"
        ) from error
    return _state_dict(content, path=path)


def _state_dict(content: object, *, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, also where it lies under a usual key of a training checkpoint."""
    if isinstance(content, Mapping):
        for key in ("state_dict", "model", "model_state_dict", "net"):
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
    if not isinstance(content, Mapping) or not content or not all(isinstance(t, Tensor) for t in content.values()):
        raise InputError(f"{path} holds no state dict (tensors by name); save torch's model.state_dict()")
    # DataParallel puts every name under module.
    prefix = "module." if all(str(name).startswith("module.") for name in content) else ""
    return {str(name).removeprefix(prefix): tensor for name, tensor in content.items()}


def _inner(model: nn.Module) -> nn.Module:
    return model.model if isinstance(model, LogitsAndFeatures) else model


def check_is_file(path: Path) -> None:
    """Raise `InputError` unless there is a file to load."""
    if not path.is_file():
        raise InputError(f"no weights file {path}; give a .safetensors file or a .pt/.pth state dict")


def _triple(text: str | None) -> Triple | None:
    if text is None:
        return None
    red, green, blue = (float(number) for number in text.split(","))
    return (red, green, blue)


def _first(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
