"""Accuracy of a student, and its logits over many rows.

Shape key: N rows, C classes.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from student_trainer.device_data import DeviceImages

EVALUATION_BATCH = 512
"""Images per forward pass in evaluation."""

Forward = Callable[[Tensor], Tensor]
"""Network input [B, 3, H, W] -> logits [B, C], in the run's precision."""


@torch.no_grad()
def logits_of(forward: Forward, model: nn.Module, images: DeviceImages, *, view: int = 0) -> Tensor:
    """Logits float32 [N, C] of all images in evaluation mode; the model's mode is as before afterwards."""
    was_training = model.training
    model.eval()
    parts = []
    for start in range(0, len(images), EVALUATION_BATCH):
        stop = min(start + EVALUATION_BATCH, len(images))
        positions = torch.arange(start, stop, device=images.labels.device)
        parts.append(forward(images.batch(positions, np.full(stop - start, view))).float())
    model.train(was_training)
    return torch.cat(parts)


def accuracy_of(forward: Forward, model: nn.Module, images: DeviceImages) -> float:
    """Top-1 accuracy on all images, 0 to 1."""
    return int(correct_of(logits_of(forward, model, images), images.labels)) / len(images)


def correct_of(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """How many have their largest logit at their label, int64 []; the device is not waited for.

    A torchmetrics object costs a small student as much as its forward pass, in every step and every validation.
    """
    return (logits_BC.argmax(dim=1) == labels_B).sum()
