"""One copy of the teacher on one device, run from a thread of its own.

Shape key: B images of one batch.
"""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from cache.model_call import ModelCall
from shared.teacher import Teacher
from shared.teacher_protocol import Begun, DeviceTeacher
from teacher_server.questions import Pixels
from teacher_server.stopwatch import Stopwatch, running_versions

Said = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Forward:
    """One batch that the teacher was asked about."""

    said: asyncio.Future[Said]
    """What it says, or what it raised."""
    watch: Stopwatch
    """How long that took, once it is said."""


class Replica:
    """Asks one batch after another; on a device that works on its own, the next is brought while one is computed."""

    def __init__(self, teacher: Teacher, *, number: int) -> None:
        self._teacher = teacher
        self._on_device = teacher if isinstance(teacher, DeviceTeacher) and teacher.overlaps else None
        self._device, self._versions = teacher.device, running_versions(teacher)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"teacher-{number}")
        # Waits for the device, so that the thread that feeds it need not.
        self._waiting = ThreadPoolExecutor(1, thread_name_prefix=f"teacher-{number}-waits")
        self._free_s = 0.0
        self.name = f"replica {number} ({self._device})"
        self.failed_in_a_row = 0
        """Batches, since the last that was answered."""
        self.is_proven = False
        """Whether it has answered one."""

    @property
    def batches(self) -> int:
        """Batches under way that keep it busy: one or two on the device, one loaded, one being committed."""
        return 4 if self._on_device is not None else 3

    def note(self, *, failed: bool) -> None:
        """Remember how a batch ended."""
        self.failed_in_a_row = self.failed_in_a_row + 1 if failed else 0
        self.is_proven = self.is_proven or not failed

    def close(self) -> None:
        """Let the threads end after what they are doing."""
        for thread in (self._thread, self._waiting):
            thread.shutdown(wait=False, cancel_futures=True)

    async def ask(self, images: Sequence[Pixels], *, outputs: Sequence[str]) -> Forward:
        """Ask about a batch; returns when the next one can be asked about, which may be before this one is answered."""
        loop, watch = asyncio.get_running_loop(), Stopwatch()
        asked = (images, outputs) if outputs else (images,)
        if self._on_device is None:
            said = loop.run_in_executor(self._thread, watch.run, self._teacher.answer, *asked)
            await asyncio.wait([said])
            return Forward(said=said, watch=watch)
        begun = loop.run_in_executor(self._thread, watch.run, self._on_device.start, *asked)
        await asyncio.wait([begun])
        if (error := begun.exception()) is not None:
            said = loop.create_future()
            said.set_exception(error)
        else:
            said = loop.run_in_executor(self._waiting, self._wait, begun.result(), watch)
        return Forward(said=said, watch=watch)

    def _wait(self, begun: Begun, watch: Stopwatch) -> Said:
        try:
            return begun.result()
        finally:
            # Not counted: the time behind the batch before, which has counted it.
            watch.stop(not_before_s=self._free_s)
            self._free_s = perf_counter()

    def call(self, forward: Forward, *, images: int) -> ModelCall:
        """What the history is told of a batch that was answered or failed; ``images``: the calls that it is."""
        return forward.watch.call(images=images, device=self._device, versions=self._versions)
