"""One teacher on several devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.descriptions import TeacherDescription
from shared.outputs import OutputForm
from shared.teacher_protocol import Teacher


class ReplicatedTeacher:
    """Teachers of the same weights: each may be asked in a thread of its own; asked as one, the first answers."""

    def __init__(self, replicas: Sequence[Teacher]) -> None:
        self.replicas = tuple(replicas)
        self._first = replicas[0]
        self.input = self._first.input
        self.outputs = self._first.outputs

    @property
    def description(self) -> TeacherDescription:
        """See `Teacher`."""
        return self._first.description

    @property
    def id(self) -> str:
        """See `Teacher`."""
        return self._first.id

    @property
    def device(self) -> str:
        """All devices."""
        return ", ".join(replica.device for replica in self.replicas)

    def answer(
        self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()
    ) -> Mapping[str, NDArray[np.float32]]:
        """See `Teacher`."""
        return self._first.answer(images, outputs)

    def forms(self, size: tuple[int, int]) -> Mapping[str, OutputForm]:
        """See `Teacher`."""
        return self._first.forms(size)

    def constants(self) -> Mapping[str, NDArray[np.float32]]:
        """See `Teacher`."""
        return self._first.constants()

    def close(self) -> None:
        """Let go of all devices."""
        for replica in self.replicas:
            replica.close()


def replicas_of(teacher: Teacher) -> tuple[Teacher, ...]:
    """What may be asked side by side: the teacher itself, where there is one of it."""
    return teacher.replicas if isinstance(teacher, ReplicatedTeacher) else (teacher,)
