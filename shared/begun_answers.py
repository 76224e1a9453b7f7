"""Answers that a teacher has begun to give, and what is said where a device's memory does not suffice.

Shape key: B images, C classes, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError, TeacherFailedError

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
            with named_memory(self._device, images=self._count):
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
def named_memory(device: str, *, images: int) -> Iterator[None]:
    """Raise `TeacherFailedError` that names a remedy where a device's memory does not suffice within."""
    # torch takes seconds to import, and fake: teachers start without it.
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        remedy = f"use a smaller --batch, such as {images // 2}" if images > 1 else "use another --device"
        # Asked again it would be another attempt, so nobody tries smaller batches on their own.
        raise TeacherFailedError(f"{device} has too little memory for a batch of {images} images: {remedy}") from error
