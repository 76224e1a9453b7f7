"""Shows how far many answers have come: a bar on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

LINE_EVERY_S = 5.0
TEXT_WIDTH = 80
"""Characters of all but title and bar, where there are a million images and calls."""
SHORTEST_BAR, LONGEST_BAR = 10, 40


class Counts(Protocol):
    """How far it is."""

    @property
    def total(self) -> int:
        """Answers asked for."""

    @property
    def done(self) -> int:
        """Answers that are there now."""

    @property
    def teacher_calls(self) -> int:
        """Calls that they have caused."""


class FillProgress:
    """A context manager; call it with the counts as they grow. Writes to standard error."""

    def __init__(self, title: str, *, budget_left: int | None = None, budget_known: bool = True) -> None:
        self._title = title
        self._budget_left = budget_left
        """Calls that the run could still make when it began; None = no limit."""
        self._budget_known = budget_known
        """Whether to say so."""
        self._began_s = time.monotonic()
        self._line_s = self._began_s
        console = Console(stderr=True)
        self._bar = _bar(console, title=title) if console.is_terminal else None
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

    def __call__(self, counts: Counts) -> None:
        """Show ``counts``."""
        now_s = time.monotonic()
        rate = counts.done / max(now_s - self._began_s, 1e-9)
        calls = f"{counts.teacher_calls} teacher calls"
        left = self._left(counts)
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
                f"{calls}{left and f', {left}'}\n"
            )
            sys.stderr.flush()

    def _left(self, counts: Counts) -> str:
        if not self._budget_known:
            return ""
        return "no budget" if self._budget_left is None else f"{self._budget_left - counts.teacher_calls} calls left"


def _bar(console: Console, *, title: str) -> Progress:
    """Without room for all: first no bar, then no teacher calls; how far it is and how long it takes always fit."""
    room = console.width - len(title) - TEXT_WIDTH
    columns: list[ProgressColumn] = [TextColumn("{task.description}")]
    if room > SHORTEST_BAR:
        columns.append(BarColumn(min(LONGEST_BAR, room - 1)))
    columns += [
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[rate]}", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
    ]
    if room >= 0:
        columns.append(TextColumn("{task.fields[calls]}"))
    return Progress(*columns, TextColumn("{task.fields[left]}"), console=console)


@contextmanager
def shown(progress: bool | Callable[[Any], object] | None, *, title: str) -> Iterator[Callable[[Any], object]]:
    """What to call with counts as they grow: `FillProgress` for True, nothing for None or False, else ``progress``."""
    if progress is True:
        with FillProgress(title, budget_known=False) as bar:
            yield bar
    else:
        yield progress or _unseen


def _unseen(_: Counts) -> None:
    """Show nothing."""
