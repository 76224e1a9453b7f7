"""Logits and penultimate features of any classifier, found by looking at one forward pass instead of knowing the model.

Shape key: B images, C classes, D feature width, H height, W width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.functional import relu

from shared.errors import InputError
from shared.models.exported import expose_features

TRIAL_SIZES = ((32, 32), (64, 64), (224, 224), (299, 299))
"""Image sizes to try, smallest first, where a network does not say which it takes."""
REMEDY = "wrap it in python:FILE.py:FUNCTION so that its last layer is one Linear (or 1x1 convolution, then pooled)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The module whose output is the logits."""

    name: str
    """Its place in the network, such as ``fc`` or ``classifier.3``."""
    classes: int
    """Width of the logits."""
    feature_width: int
    """Width of its input."""
    is_convolution: bool
    """Whether its input is a map, averaged over places, rather than a vector."""
    image_size: tuple[int, int] | None
    """The size (H, W) at which it was found; None for an exported program, which says its size itself."""


class LogitsAndFeatures(nn.Module):
    """Any classifier of float [B, 3, H, W], giving ``(logits [B, C], features [B, D])``.

    The features are the input of the module whose output is the logits; a 1x1 convolution's are averaged over places.
    Gradients, training mode and the wrapped model's own tensors are as without it. Raises `InputError` for a model with
    several heads, or with none that is a Linear or a 1x1 convolution.
    """

    def __init__(self, model: nn.Module, *, image_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.is_export = isinstance(model, GraphModule)
        if isinstance(model, GraphModule):
            model, classes, width, is_map = expose_features(model)
            self.head = Head(name="", classes=classes, feature_width=width, is_convolution=is_map, image_size=None)
        else:
            self.head = find_head(model, image_size=image_size)
        self.model = model

    @property
    def classes(self) -> int:
        """C, the width of the logits."""
        return self.head.classes

    @property
    def feature_width(self) -> int:
        """D, the width of the features."""
        return self.head.feature_width

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, C] and features [B, D]."""
        if self.is_export:
            logits, features = self.model(images_B3HW)
            return logits, _vectors(features, of_map=self.head.is_convolution)
        inputs: list[Tensor] = []
        # Attached for this call only, so that copies of this module capture their own head's input.
        handle = self.model.get_submodule(self.head.name).register_forward_pre_hook(
            lambda _module, arguments: inputs.append(arguments[0])
        )
        try:
            logits = self.model(images_B3HW)
        finally:
            handle.remove()
        return logits, _vectors(inputs[-1], of_map=self.head.is_convolution)


def find_head(model: nn.Module, *, image_size: tuple[int, int] | None = None) -> Head:
    """Run ``model`` once on zeros and find the module whose output is the logits; `InputError` if there is none."""
    known_size = image_size or _declared_size(model)
    sizes = (known_size,) if known_size else TRIAL_SIZES
    failure = ""
    for size in sizes:
        try:
            return _head_at(model, size=size)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            failure = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
    tried = ", ".join(f"{height}x{width}" for height, width in sizes)
    raise InputError(f"{type(model).__name__} cannot run on a float [1, 3, H, W] image of size {tried}: {failure}")


def _declared_size(model: nn.Module) -> tuple[int, int] | None:
    """The one size that a network takes, where it says so (torchvision's and timm's vision transformers do)."""
    size = getattr(model, "image_size", None) or getattr(getattr(model, "patch_embed", None), "img_size", None)
    if isinstance(size, int):
        return (size, size)
    if isinstance(size, tuple | list) and len(size) == 2:
        return (int(size[0]), int(size[1]))
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    """One call of a module that may be the head."""

    name: str
    features: Tensor
    output: Tensor


def _head_at(model: nn.Module, *, size: tuple[int, int]) -> Head:
    first = next((tensor for tensor in model.parameters() if tensor.is_floating_point()), torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    # Two different images: with one, a head and its copy could not be told apart, and some layers refuse a batch of 1.
    images = torch.rand(2, 3, *size, generator=generator).to(device=first.device, dtype=first.dtype)
    calls: list[_Call] = []
    with evaluating(model), _recording(model, calls), torch.no_grad():
        logits = model(images)
    if not isinstance(logits, Tensor):
        raise InputError(f"{type(model).__name__} answers {type(logits).__name__}, not one tensor of logits; {REMEDY}")
    if logits.ndim != 2 or len(logits) != 2:
        raise InputError(
            f"{type(model).__name__} answers {list(logits.shape)} for 2 images; logits must be [B, C]; {REMEDY}"
        )
    heads = [call for call in calls if _is_head(call, logits=logits)]
    if not heads:
        widest = [call.name for call in calls if call.output.shape[1] == logits.shape[1]]
        several = (
            f"its logits combine the heads {', '.join(widest[:4])}" if len(widest) > 1 else "no layer gives its logits"
        )
        raise InputError(f"{type(model).__name__} has no last Linear or 1x1 convolution: {several}; {REMEDY}")
    head = heads[-1]
    is_convolution = isinstance(model.get_submodule(head.name), nn.Conv2d)
    features = _vectors(head.features, of_map=is_convolution)
    return Head(
        name=head.name,
        classes=logits.shape[1],
        feature_width=features.shape[1],
        is_convolution=is_convolution,
        image_size=size,
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within; afterwards every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _recording(model: nn.Module, calls: list[_Call]) -> Iterator[None]:
    """Append every call of a Linear or 1x1 convolution to ``calls``."""

    def recorder(name: str) -> object:
        def record(_module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append(_Call(name=name, features=arguments[0], output=output))

        return record

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and set(module.kernel_size) == {1}):
            handles.append(module.register_forward_hook(recorder(name)))  # type: ignore[arg-type]  # returns None
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_head(call: _Call, *, logits: Tensor) -> bool:
    """Whether the logits are this call's output: the same memory, or a convolution's average over places."""
    output = call.output
    if output.numel() == logits.numel() and output.data_ptr() == logits.data_ptr():
        return True
    if output.ndim != 4 or output.shape[:2] != logits.shape:
        return False
    # SqueezeNet: the classes' maps pass a ReLU before they are averaged.
    averages = (output.mean(dim=(2, 3)), relu(output).mean(dim=(2, 3)))
    return any(torch.allclose(average, logits, rtol=1e-4, atol=1e-6) for average in averages)


def _vectors(features: Tensor, *, of_map: bool) -> Tensor:
    """[B, D]: a map [B, D, H, W] averaged over places, anything else with its empty dimensions dropped."""
    return features.mean(dim=(2, 3)) if of_map else features.flatten(1)
