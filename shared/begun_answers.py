"""Answers that a teacher has begun to give, and what is said where a device cannot: for lack of memory, or for good.

Shape key: B images, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.errors import DeviceLostError, InputError, TeacherFailedError

if TYPE_CHECKING:
    from shared.models.transfers import OnTheirWay


class BegunAnswers:
    """What `TorchTeacher.start` gives: the answers, once the device has them."""

    def __init__(
        self,
        begun: Sequence[tuple[list[int], OnTheirWay]],
        *,
        count: int,
        widths: Mapping[str, int],
        device: str,
    ) -> None:
        """``begun``: places of images of one size, and their answers; ``widths`` of what is always said."""
        self._begun = begun
        self._count = count
        self._widths = widths
        self._device = device

    def result(self) -> dict[str, NDArray[np.float32]]:
        """Wait for ``logits`` [B, C], ``features`` [B, D] and what was asked for besides, in the order of the images.

        Raises `InputError` for images whose sizes give an output different shapes, and what the device could not do.
        """
        answers = {name: np.empty((self._count, width), np.float32) for name, width in self._widths.items()}
        for places, on_their_way in self._begun:
            with named_failures(self._device, images=self._count):
                arrived = on_their_way.arrived()
            for name, values in arrived.items():
                shape = (self._count, *values.shape[1:])
                if name not in answers:
                    answers[name] = np.empty(shape, dtype=np.float32)
                elif answers[name].shape != shape:
                    raise InputError(
                        f"images of different sizes give {name} of different shapes, such as "
                        f"{list(answers[name].shape[1:])} and {list(shape[1:])}: use images of one size"
                    )
                # Behind those may be answers to copies that filled up the batch.
                answers[name][places] = values[: len(places)]
        return answers


@contextmanager
def named_failures(device: str, *, images: int) -> Iterator[None]:
    """Say what a device could not do within.

    Raises `TeacherFailedError` that names a remedy where its memory does not suffice, `DeviceLostError` where it will
    do nothing for this process any more.
    """
    # torch takes seconds to import, and fake: teachers start without it.
    import torch

    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
        # Pinned memory and graphs run out of memory in words.
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
            remedy = f"use a smaller --batch, such as {images // 2}" if images > 1 else "use another --device"
            # Asked again it would be another attempt, so nobody tries smaller batches on their own.
            message = f"{device} has too little memory for a batch of {images} images: {remedy}"
            raise TeacherFailedError(message) from error
        if _works(device):
            raise
        said = (str(error).splitlines() or [""])[0][:200]
        raise DeviceLostError(f"{device} failed and answers nothing any more ({said}); start again") from error


def _works(device: str) -> bool:
    """Whether a CUDA device goes on after an error: most break all that a process has on it, for ever."""
    import torch  # imported by now; see named_failures

    try:
        torch.cuda.synchronize(device.split(maxsplit=1)[0])
    # AssertionError: torch was built without CUDA. ValueError: not a CUDA device.
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True
