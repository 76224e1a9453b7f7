"""How a training shows itself: a bar on a terminal, one line per epoch elsewhere, or nothing."""

import time
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochMetrics:
    """What one epoch did; a line of metrics.jsonl."""

    epoch: int
    """1 for the first."""
    loss: float
    """Mean total loss over the epoch's images."""
    train_accuracy: float
    """Of the student in training mode, on the pixels it was trained on, 0 to 1."""
    val_accuracy: float | None
    """On the held-out rows after the epoch, 0 to 1; None where there are none."""
    lr: float
    """Learning rate of the last step."""
    images_per_second: float
    """Training images per second, validation left out."""
    teacher_calls: int
    """Teacher calls so far: 0 from a folder of a cache."""


class ProgressView(Protocol):
    """Where a training reports to."""

    def begin(self, *, epochs: int, steps: int, done_epochs: int) -> None:
        """Training starts, or goes on after ``done_epochs``; ``steps`` are per epoch."""

    def fetch(self, *, done: int, total: int, teacher_calls: int) -> None:
        """Rows come from a server before training: ``done`` of ``total``, which caused ``teacher_calls`` so far."""

    def step(self, *, images: int, loss: float) -> None:
        """One step is done."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """One epoch is done."""

    def end(self) -> None:
        """Nothing more comes, after an error too."""


class Quiet:
    """Shows nothing."""

    def begin(self, *, epochs: int, steps: int, done_epochs: int) -> None:
        """Nothing."""

    def fetch(self, *, done: int, total: int, teacher_calls: int) -> None:
        """Nothing."""

    def step(self, *, images: int, loss: float) -> None:
        """Nothing."""

    def epoch(self, metrics: EpochMetrics) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""


class Lines(Quiet):
    """One plain line per epoch."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._epochs = 0
        self._began_s = 0.0
        self._done_at_start = 0

    def begin(self, *, epochs: int, steps: int, done_epochs: int) -> None:
        """Remember the lengths."""
        self._epochs, self._done_at_start, self._began_s = epochs, done_epochs, time.monotonic()

    def fetch(self, *, done: int, total: int, teacher_calls: int) -> None:
        """Write a line per request."""
        self._stream.write(f"fetched {done:,}/{total:,} answers, {teacher_calls:,} teacher calls\n")

    def epoch(self, metrics: EpochMetrics) -> None:
        """Write the line."""
        per_epoch_s = (time.monotonic() - self._began_s) / (metrics.epoch - self._done_at_start)
        left_s = per_epoch_s * (self._epochs - metrics.epoch)
        self._stream.write(f"epoch {metrics.epoch}/{self._epochs} {summary(metrics)}, {left_s:.0f} s left\n")
        self._stream.flush()


class Bar(Quiet):
    """A bar over all steps with loss, accuracy, images/s and time left."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console)
        self._task: TaskID | None = None
        self._fetching: TaskID | None = None
        self._steps = 1
        self._epochs = 1
        self._text = ""
        self._shown_s = 0.0

    def begin(self, *, epochs: int, steps: int, done_epochs: int) -> None:
        """Draw the bar."""
        self._steps, self._epochs = steps, epochs
        self._task = self._progress.add_task(
            "train", total=epochs * steps, completed=done_epochs * steps, epoch=f"{done_epochs}/{epochs}", text=""
        )
        self._progress.start()

    def fetch(self, *, done: int, total: int, teacher_calls: int) -> None:
        """A bar of its own."""
        if self._fetching is None:
            self._fetching = self._progress.add_task("fetch", total=total, epoch="fetch", text="")
            self._progress.start()
        self._progress.update(self._fetching, completed=done, text=f"{teacher_calls:,} teacher calls")

    def step(self, *, images: int, loss: float) -> None:
        """Move on."""
        self._update(advance=1, text=f"loss {loss:.4f} {self._text}" if self._due() else None)

    def epoch(self, metrics: EpochMetrics) -> None:
        """Show accuracies and speed."""
        self._text = summary(metrics).split(", ", 1)[1]
        self._update(
            text=summary(metrics), epoch=f"{metrics.epoch}/{self._epochs}", completed=metrics.epoch * self._steps
        )

    def end(self) -> None:
        """Leave the bar as it is."""
        self._progress.stop()

    def _due(self) -> bool:
        # Formatting every step would cost more than a small network's step.
        now_s = time.monotonic()
        if now_s - self._shown_s < 0.2:
            return False
        self._shown_s = now_s
        return True

    def _update(self, **changes: Any) -> None:
        if self._task is not None:
            self._progress.update(self._task, **{name: value for name, value in changes.items() if value is not None})


def summary(metrics: EpochMetrics) -> str:
    """The metrics as one short text."""
    val = "" if metrics.val_accuracy is None else f", val {100 * metrics.val_accuracy:.2f} %"
    calls = f", {metrics.teacher_calls:,} teacher calls" if metrics.teacher_calls else ""
    train = f"loss {metrics.loss:.4f}, train {100 * metrics.train_accuracy:.2f} %"
    return f"{train}{val}, {metrics.images_per_second:,.0f} images/s{calls}"
