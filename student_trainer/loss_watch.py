"""Reads a step's loss without making the device wait, and stops a training before a bad one moves the weights."""

import math

import torch
from torch import Tensor

from shared.errors import TeachonceError


class DivergedError(TeachonceError):
    """The loss is no longer a number."""

    code = "diverged"


class LossWatch:
    """Copies the loss to the host behind the forward pass, to be read after the backward pass is queued."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._host = torch.zeros((), pin_memory=self._on_cuda)
        self._copied = torch.cuda.Event() if self._on_cuda else None  # type: ignore[no-untyped-call]

    def put(self, loss: Tensor) -> None:
        """Queue the copy of a scalar."""
        self._host.copy_(loss.detach(), non_blocking=self._on_cuda)
        if self._copied is not None:
            self._copied.record()

    def take(self, *, where: str) -> float:
        """The loss; DivergedError, with ``where``, if it is not finite."""
        if self._copied is not None:
            self._copied.synchronize()
        value = float(self._host)
        if not math.isfinite(value):
            raise DivergedError(
                f"the loss is {value} at {where}; the weights were not changed: lower --lr, or look at the data"
            )
        return value
