"""Takes a reading every second and keeps the last minutes: whoever opens the dashboard sees them at once."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import pairwise
from types import TracebackType
from typing import Self

from shared.errors import TeachonceError
from teacher_server.readings import Reading, Step

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
KEPT = 181
"""Readings: three minutes."""


class Pulse:
    """An async context manager that reads as long as it is open."""

    def __init__(self, read: Callable[[], Reading]) -> None:
        self.read = read
        """Takes a reading, in a thread of the caller's."""
        self._readings: deque[Reading] = deque(maxlen=KEPT)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._beat(), name="pulse")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _beat(self) -> None:
        while True:
            try:
                self._readings.append(await asyncio.to_thread(self.read))
            except TeachonceError as error:
                log.warning("the dashboard missed a second: %s", error)
            await asyncio.sleep(INTERVAL_S)

    def before(self, now: Reading, *, seconds: float) -> Reading:
        """The oldest reading of the last ``seconds``; ``now`` where there is none."""
        return next((reading for reading in self._readings if reading.at_s >= now.at_s - seconds), now)

    def rates(self) -> tuple[list[float], list[float]]:
        """Answers per second from each reading to the next, oldest first: the teacher's, and those without a call."""
        steps = [Step(before, after) for before, after in pairwise(list(self._readings))]
        return [step.teacher_per_second for step in steps], [step.cache_per_second for step in steps]
