"""Shows how far a fill is: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from teacher_server.fill import FillCounts

LINE_EVERY_S = 5.0


class FillProgress:
    """A context manager; call it with the counts as they grow. Writes to standard error."""

    def __init__(self, title: str, *, budget_left: int | None) -> None:
        self._title = title
        self._budget_left = budget_left
        """Calls that the run could still make when the fill began; None = no limit."""
        self._began_s = time.monotonic()
        self._line_s = self._began_s
        console = Console(stderr=True)
        self._bar = _bar(console) if console.is_terminal else None
        self._task = self._bar.add_task(title, total=None, rate="", calls="", left="") if self._bar else None

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, counts: FillCounts) -> None:
        """Show ``counts``."""
        now_s = time.monotonic()
        rate = counts.done / max(now_s - self._began_s, 1e-9)
        calls = f"{counts.teacher_calls} teacher calls"
        left = "no budget" if self._budget_left is None else f"{self._budget_left - counts.teacher_calls} calls left"
        if self._bar is not None and self._task is not None:
            self._bar.update(
                self._task,
                total=counts.total,
                completed=counts.done,
                rate=f"{rate:.0f} images/s",
                calls=calls,
                left=left,
            )
        elif now_s - self._line_s >= LINE_EVERY_S or counts.done == counts.total:
            self._line_s = now_s
            remaining_s = (counts.total - counts.done) / rate if rate else 0.0
            sys.stderr.write(
                f"{self._title}: {counts.done}/{counts.total}, {rate:.0f} images/s, {remaining_s:.0f} s left, "
                f"{calls}, {left}\n"
            )
            sys.stderr.flush()


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[calls]}"),
        TextColumn("{task.fields[left]}"),
        console=console,
    )
