"""What anything that answers for images offers.

Shape key: B images, C classes, D feature width, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from shared.descriptions import TeacherDescription
from shared.outputs import OutputForm


class Teacher(Protocol):
    """Anything that answers for images."""

    @property
    def description(self) -> TeacherDescription:
        """What a cache records about it."""

    @property
    def id(self) -> str:
        """``{arch}-{12 hex}``: the description's id."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `answer` always returns."""

    @property
    def input(self) -> tuple[int, int] | None:
        """The (H, W) that every image is resized to; None where the network takes any size."""

    @property
    def device(self) -> str:
        """What computes, such as ``cpu`` or ``cuda:0 NVIDIA H200``; for the history of calls."""

    def answer(
        self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()
    ) -> Mapping[str, NDArray[np.float32]]:
        """``logits`` [B, C] and ``features`` [B, D] of canonical uint8 [H, W, 3] images, whose sizes may differ.

        ``outputs`` are given besides; where `forms` says so, only for images of one size.
        """

    def forms(self, size: tuple[int, int]) -> Mapping[str, OutputForm]:
        """All that it can say about an image of (H, W), by name."""

    def constants(self) -> Mapping[str, NDArray[np.float32]]:
        """What it says once for all images; empty where nothing is known."""

    def close(self) -> None:
        """Let go of memory and device."""


class Begun(Protocol):
    """Answers that a device may still be working on."""

    def result(self) -> Mapping[str, NDArray[np.float32]]:
        """Wait for them; raises what `Teacher.answer` raises."""


@runtime_checkable
class DeviceTeacher(Protocol):
    """What a teacher that computes on a device offers besides."""

    overlaps: bool
    """Whether `start` returns before the device is done, so that the next batch may be brought meanwhile."""

    def start(self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()) -> Begun:
        """Begin to answer, as `Teacher.answer` does; in the order of the calls, which come from one thread."""

    def warm_up(self, batch_sizes: Sequence[int], *, size: tuple[int, int]) -> None:
        """Answer blank images of (H, W), so many at a time: no calls, nothing is learned about any image."""
