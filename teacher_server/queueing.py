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
    queued_s: float = field(default_factory=perf_counter)
    """When it began to wait, by `time.perf_counter`."""


class FairQueue:
    """First in, first out within a run; round robin between runs, so that a large request holds up nobody."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[Item]] = {}
        self._turns: deque[str] = deque()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def push(self, items: Sequence[Item]) -> None:
        """Add items of any runs, each behind what its run already has waiting."""
        for item in items:
            if item.run not in self._waiting:
                self._waiting[item.run] = deque()
                self._turns.append(item.run)
            self._waiting[item.run].append(item)
        self._size += len(items)

    def take(self, most: int) -> list[Item]:
        """Up to ``most`` items, one per run and turn."""
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
