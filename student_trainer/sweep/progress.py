"""How a sweep shows itself: a bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 5.0
"""Least time between two plain lines of one step."""
NAMES_SHOWN = 4


class SweepView(Protocol):
    """Where a sweep reports to. Steps follow each other: a teacher, its answers, trials, tests."""

    def say(self, sentence: str) -> None:
        """Something that stays on the screen."""

    def begin(self, what: str, *, tasks: int, work: int) -> None:
        """A step begins: ``tasks`` pieces, ``work`` (student forwards or answers) in all."""

    def move(self, name: str, *, done: int) -> None:
        """A task runs, and has done this much of its work."""

    def finish(self, name: str, *, work: int, outcome: str) -> None:
        """A task ended; it was planned to take this much work."""


class Tally:
    """Work done in one step."""

    def __init__(self, what: str, *, tasks: int, work: int) -> None:
        self.what = what
        self.tasks = tasks
        self.work = work
        self.finished = 0
        self._finished_work = 0
        self._running: dict[str, int] = {}
        self._began_s = time.monotonic()

    def move(self, name: str, *, done: int) -> None:
        """A running task's work so far."""
        self._running[name] = done

    def finish(self, name: str, *, work: int) -> None:
        """A task is over."""
        self._running.pop(name, None)
        self.finished += 1
        self._finished_work += work

    @property
    def done(self) -> int:
        """Work done so far, of running tasks too."""
        return min(self.work, self._finished_work + sum(self._running.values()))

    @property
    def left_s(self) -> float | None:
        """Seconds left at the pace so far; None before there is one."""
        passed_s = time.monotonic() - self._began_s
        return passed_s * (self.work - self.done) / self.done if self.done else None

    @property
    def running(self) -> str:
        """Names of what runs now."""
        names = list(self._running)
        more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
        return ", ".join(names[:NAMES_SHOWN]) + more


class Lines:
    """Plain lines, not more often than every few seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._tally = Tally("", tasks=0, work=0)
        self._wrote_s = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def say(self, sentence: str) -> None:
        """Write the line."""
        self._stream.write(sentence + "\n")
        self._stream.flush()

    def begin(self, what: str, *, tasks: int, work: int) -> None:
        """Start counting."""
        self._tally = Tally(what, tasks=tasks, work=work)

    def move(self, name: str, *, done: int) -> None:
        """Write where a step is."""
        self._tally.move(name, done=done)
        self._write(name)

    def finish(self, name: str, *, work: int, outcome: str) -> None:
        """Write what ended."""
        self._tally.finish(name, work=work)
        self._write(f"{name}: {outcome}", last=self._tally.finished == self._tally.tasks)

    def _write(self, text: str, *, last: bool = False) -> None:
        now_s = time.monotonic()
        if last or now_s - self._wrote_s >= LINE_EVERY_S:
            self._wrote_s = now_s
            tally, left_s = self._tally, self._tally.left_s
            left = "" if left_s is None else f", {left_s:.0f} s left"
            part = 100 * tally.done / max(1, tally.work)
            self.say(f"{tally.what} {tally.finished}/{tally.tasks} ({part:.0f} %){left}, {text}")


class Bar:
    """A bar per step: pieces done, time left by the work in them, what runs."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[what]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[text]}", style="dim"),
            console=console,
            speed_estimate_period=120,
        )
        self._tally = Tally("", tasks=0, work=0)
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, sentence: str) -> None:
        """Above the bars."""
        self._progress.console.print(sentence, highlight=False, markup=False)

    def begin(self, what: str, *, tasks: int, work: int) -> None:
        """A new bar."""
        self._tally = Tally(what, tasks=tasks, work=work)
        self._task = self._progress.add_task(what, total=work, what=what, count=f"0/{tasks}", text="")

    def move(self, name: str, *, done: int) -> None:
        """Move on."""
        self._tally.move(name, done=done)
        self._show()

    def finish(self, name: str, *, work: int, outcome: str) -> None:
        """Count it."""
        self._tally.finish(name, work=work)
        self._show()

    def _show(self) -> None:
        if self._task is not None:
            tally = self._tally
            count = f"{tally.finished}/{tally.tasks}"
            self._progress.update(self._task, completed=tally.done, count=count, text=tally.running)
