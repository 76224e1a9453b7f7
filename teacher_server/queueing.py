"""Images that wait for the teacher, taken fairly: runs take turns, image by image."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from cache.writer import Reservation
from teacher_server.questions import Question


@dataclass(eq=False, kw_only=True, slots=True)
class Item:
    """One image whose call is reserved; nobody else computes its key meanwhile."""

    question: Question
    index: int
    """Position in the question."""
    key: bytes
    run: str
    """Who pays."""
    reservation: Reservation
    """The calls of which this one is part."""
    lane: str = ""
    """Whose turn it takes, where that is not its run's; see `Question.lane`."""
    queued_s: float = field(default_factory=perf_counter)
    """When it began to wait, by `time.perf_counter`."""


class FairQueue:
    """First in, first out within a run; round robin between runs, so that a large request holds up nobody.

    A long fill takes turns of its own, so that it does not hold up the requests of its run either.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Item]] = {}
        self._turns: deque[str] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, items: Sequence[Item]) -> None:
        """Add items of any runs, each behind what its run already has waiting."""
        for item in items:
            lane = item.lane or item.run
            if lane not in self._waiting:
                self._waiting[lane] = deque()
                self._turns.append(lane)
            self._waiting[lane].append(item)
        self._size += len(items)

    def take(self, most: int) -> list[Item]:
        """Up to ``most`` items, one per run (or fill) and turn."""
        taken: list[Item] = []
        while len(taken) < most and self._turns:
            run = self._turns.popleft()
            taken.append(self._waiting[run].popleft())
            if self._waiting[run]:
                self._turns.append(run)
            else:
                del self._waiting[run]
        self._size -= len(taken)
        return taken
