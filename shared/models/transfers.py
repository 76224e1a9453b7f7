"""Batches to a device and answers back; on CUDA through pinned memory, beside what it computes.

Shape key: B images, H height, W width.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Transfers:
    """Copies of one device.

    torch keeps pinned buffers and gives one out again only when the copies from or to it have ended. So a batch may be
    written and copied while the one before is computed, and there are as many buffers as batches under way.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._copies = torch.cuda.Stream(device) if self._is_cuda else None  # type: ignore[no-untyped-call]  # torch has no types for it

    def to_device(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """uint8 [B, H, W, 3] of images of one size; what the device is told to compute from now on waits for it."""
        if self._copies is None:
            return _stacked(images, pinned=False)
        with torch.cuda.stream(self._copies):
            moved_BHW3 = _stacked(images, pinned=True).to(self._device, non_blocking=True)
        computing = torch.cuda.current_stream(self._device)
        computing.wait_stream(self._copies)
        # Else its memory would be given out again by the order of the other stream.
        moved_BHW3.record_stream(computing)
        return moved_BHW3

    def to_host(self, said: Mapping[str, Tensor]) -> "OnTheirWay":
        """Begin to copy answers, as float32, behind what computes them."""
        if not self._is_cuda:
            return OnTheirWay({name: tensor.detach().float() for name, tensor in said.items()})
        tensors = {}
        for name, tensor in said.items():
            pinned = torch.empty(tensor.shape, dtype=torch.float32, pin_memory=True)
            tensors[name] = pinned.copy_(tensor.detach().float(), non_blocking=True)
        # A thread that waits sleeps.
        copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch has no types for it
        copied.record(torch.cuda.current_stream(self._device))
        return OnTheirWay(tensors, copied=copied)


def _stacked(images: Sequence[NDArray[np.uint8]], *, pinned: bool) -> Tensor:
    pixels_BHW3 = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=pinned)
    np.stack(images, out=pixels_BHW3.numpy())
    return pixels_BHW3


class OnTheirWay:
    """Answers of one batch, some of them perhaps still being computed."""

    def __init__(self, tensors: Mapping[str, Tensor], *, copied: torch.cuda.Event | None = None) -> None:
        self._tensors = tensors
        self._copied = copied

    def arrived(self) -> dict[str, NDArray[np.float32]]:
        """Wait, then give them; raises what the device could not do."""
        if self._copied is not None:
            self._copied.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}
