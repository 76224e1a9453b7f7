"""The student before training: built from its spec, and tried once on the images that it will see.

Shape key: B images, C classes, H height, W width.
"""

import torch
from torch import Tensor, nn

from shared.errors import InputError
from shared.models.build import build_model


def build_student(spec: str, *, classes: int, image_shape: tuple[int, int], seed: int) -> nn.Module:
    """An untrained network that gives logits [B, ``classes``] for images of ``image_shape`` (H, W).

    Raises `InputError` for one that does not, or that cannot be trained, besides the errors of `build_model`.
    """
    student = build_model(spec, classes=classes, seed=seed)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise InputError(f"--student {spec} has no weights to train; give a network with parameters")
    logits = _tried(student, spec=spec, image_shape=image_shape)
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if found != [2, classes]:
        raise InputError(
            f"--student {spec} answers {found} for 2 images; it must give one tensor of logits [2, {classes}],"
            " one per class of the data set"
        )
    return student


def _tried(student: nn.Module, *, spec: str, image_shape: tuple[int, int]) -> object:
    """What the student answers for two black images, in evaluation mode: its own tensors stay as they are."""
    height, width = image_shape
    try:
        # A program of torch.export has no training mode.
        student.eval()
        with torch.no_grad():
            answer: object = student(torch.zeros(2, 3, height, width))
        student.train()
    except NotImplementedError as error:
        raise InputError(
            f"--student {spec} cannot be trained ({error}); use zoo:, torchvision:, timm: or python:"
        ) from error
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(
            f"--student {spec} cannot take images of {height} x {width} ({reason}); give another size with"
            " --image-size N, or another student"
        ) from error
    return answer
