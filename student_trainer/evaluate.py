"""Accuracy of a student, and its logits over many rows.

Shape key: N rows, C classes.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

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
    logits_NC = logits_of(forward, model, images)
    metric = accuracy_metric(logits_NC.shape[1], device=logits_NC.device)
    return float(metric(logits_NC, images.labels))


def accuracy_metric(classes: int, *, device: torch.device) -> MulticlassAccuracy:
    """Top-1 accuracy over all samples alike."""
    return MulticlassAccuracy(num_classes=classes, average="micro", validate_args=False).to(device)
