"""One comparison of losses as a table on the terminal and as a self-contained HTML page with a plot."""

import io
import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from student_trainer.reporting.templates import page_template


@dataclass(frozen=True, kw_only=True, slots=True)
class LossResult:
    """What several seeds of one loss reached."""

    label: str
    """The loss with the hyper-parameters that tell it apart, such as ``ckd offset=calibrate``."""
    accuracies: tuple[float, ...]
    """Test accuracy per seed, 0 to 1."""
    images_per_second: float
    """Training speed, mean over seeds."""
    teacher_calls: int
    """Teacher calls that training all its seeds caused: 0 from a cache."""
    charged: int
    """Distinct teacher answers it consumed."""
    online_calls: int
    """Teacher calls that an online run of the same length would have made, per seed."""

    @property
    def mean(self) -> float:
        """Mean test accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; 0 for one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """A finished comparison with everything a reader needs to judge or repeat it."""

    title: str
    question: str
    """What the comparison asks, one sentence."""
    results: tuple[LossResult, ...]
    facts: tuple[tuple[str, str], ...]
    """Setting by setting: data, networks, calls, versions, command."""
    teacher_accuracy: float
    """Test accuracy of the teacher, 0 to 1: the reference line."""
    notes: tuple[str, ...] = ()
    """What the table shows and what it cannot show."""


def terminal_table(comparison: Comparison) -> Table:
    """The comparison as a rich table."""
    seeds = len(comparison.results[0].accuracies)
    table = Table(
        title=comparison.title, box=SIMPLE_HEAD, caption=f"test accuracy: mean and sample std over n = {seeds} seeds"
    )
    table.add_column("loss", no_wrap=True)
    table.add_column("test acc. %", justify="right", no_wrap=True)
    for heading in ("images\n/s", "teacher calls", "charged", "online calls"):
        table.add_column(heading, justify="right")
    for result in comparison.results:
        table.add_row(*row_texts(result))
    return table


def row_texts(result: LossResult) -> tuple[str, ...]:
    """The cells of one row, as terminal and page show them."""
    return (
        result.label,
        f"{100 * result.mean:.2f} ± {100 * result.std:.2f}",
        f"{result.images_per_second:,.0f}",
        f"{result.teacher_calls:,}",
        f"{result.charged:,}",
        f"{result.online_calls:,}",
    )


def accuracy_plot(comparison: Comparison) -> str:
    """Accuracy per loss as an SVG element: a dot per seed, mean and std beside it, the teacher as a line."""
    # Imported here: pyplot costs half a second that no other command should pay.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.55 * len(comparison.results) + 1.2), layout="constrained")
    axes = figure.subplots()
    for place, result in enumerate(comparison.results):
        percent = [100 * accuracy for accuracy in result.accuracies]
        axes.plot(percent, [place - 0.14] * len(percent), "o", color="#8a94a6", markersize=4, alpha=0.8)
        axes.errorbar(100 * result.mean, place + 0.1, xerr=100 * result.std, fmt="D", color="#1f5fbf", capsize=4)
    axes.axvline(100 * comparison.teacher_accuracy, color="#c2571a", linestyle="--", linewidth=1.2)
    axes.annotate(
        "teacher",
        (100 * comparison.teacher_accuracy, -0.62),
        color="#c2571a",
        ha="right",
        xytext=(-4, 0),
        textcoords="offset points",
        va="center",
    )
    axes.set_yticks(range(len(comparison.results)), [result.label for result in comparison.results])
    axes.set_ylim(len(comparison.results) - 0.5, -0.9)
    axes.set_xlabel("test accuracy in % (grey: one seed; blue: mean and std)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the comparison as one HTML file that needs nothing else."""
    page = page_template("comparison.html").render(
        title=comparison.title,
        question=comparison.question,
        comparison=comparison,
        rows=[row_texts(result) for result in comparison.results],
        plot=accuracy_plot(comparison),
    )
    path.write_text(page, encoding="utf-8")
