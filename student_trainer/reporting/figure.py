"""The figures: accuracy against charged calls, and comparing losses against their controls."""

import io
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator
from scipy.optimize import isotonic_regression

from student_trainer.reporting.analysis import Analysis, PanelAnalysis
from student_trainer.reporting.grid import Panel
from student_trainer.reporting.palette import Style, Theme, panel_styles, reference_style

LABEL_GAP = 0.042
"""Distance between the labels beside a panel, in heights of the panel."""
DODGE_OCTAVES = 0.22
"""Width over which the methods of one budget are spread, so that their error bars stand side by side."""
STRETCHED_TICKS = (0, 20, 40, 50, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99, 99.5, 100)


def accuracy_figure(analysis: Analysis, *, theme: Theme) -> Figure:
    """A panel per setting, a line per method, bars of one sample standard deviation, references across."""
    panels = tuple(part.panel for part in analysis.panels)
    columns = min(2, len(panels))
    rows = ceil(len(panels) / columns)
    with _rc(theme):
        figure = Figure(figsize=(7.6 if columns == 1 else 12.4, 4.9 * rows), layout="constrained")
        all_axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        looks = panel_styles(panels, theme=theme)
        teacher = analysis.results.sweep.teacher.test_accuracy
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(all_axes, panels, strict=False):
            _draw_lines(axes, panel, looks=looks, theme=theme)
            _draw_references(axes, panel, teacher=teacher, theme=theme)
            axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
        _set_scales(all_axes[0], panels=panels, teacher=teacher)
        for axes, panel in zip(all_axes, panels, strict=False):
            _label_lines(axes, panel, looks=looks, teacher=teacher, theme=theme)
            axes.tick_params(labelbottom=True, labelleft=True)
        return _settle(figure)


def difference_figure(analysis: Analysis, *, theme: Theme) -> Figure | None:
    """Comparing losses against controls: a row per loss, a column per control; None where there are no such pairs."""
    parts = [part for part in analysis.panels if part.averaged]
    if not parts:
        return None
    rows = [(part, first) for part in parts for first in dict.fromkeys(pair.first for pair in part.averaged)]
    seconds = list(dict.fromkeys(pair.second for part in parts for pair in part.averaged))
    looks = panel_styles(tuple(part.panel for part in analysis.panels), theme=theme)
    with _rc(theme):
        figure = Figure(figsize=(1.2 + 2.25 * len(seconds), 0.5 + 1.75 * len(rows)), layout="constrained")
        grid = figure.subplots(len(rows), len(seconds), squeeze=False, sharex="row", sharey="row")
        for line, (part, first) in zip(grid, rows, strict=True):
            for axes, second in zip(line, seconds, strict=True):
                _draw_differences(axes, part, first=first, second=second, look=looks[first], theme=theme)
                axes.set_title(f"against {second}", fontsize=8.5, loc="left")
            line[0].set_ylabel(_place(part, first), fontsize=8.5, fontweight="bold", color=looks[first].colour)
        for axes in grid[-1]:
            axes.set_xlabel("difference, points", fontsize=8.5)
        return _settle(figure)


def png_bytes(figure: Figure) -> bytes:
    """The figure as PNG, fine enough for print."""
    return _bytes(figure, format="png", dpi=200)


def svg_bytes(figure: Figure) -> bytes:
    """The figure as SVG; the same figure gives the same bytes."""
    return _bytes(figure, format="svg", metadata={"Date": None})


def _bytes(figure: Figure, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "report"}):
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def _settle(figure: Figure) -> Figure:
    """Lay out once: else every form of the figure, twice each, would."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure


def spread(positions: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as possible (least squares) so that they are ``gap`` apart, in the order given."""
    order = np.argsort(positions, kind="stable")
    steps = gap * np.arange(len(order))
    fitted = isotonic_regression(np.asarray(positions, dtype=np.float64)[order] - steps).x
    moved = np.empty(len(order))
    moved[order] = np.clip(fitted, low, max(low, high - (steps[-1] if len(steps) else 0))) + steps
    return [float(position) for position in moved]


def _rc(theme: Theme) -> Any:
    return rc_context(
        {
            "figure.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "savefig.facecolor": theme.paper,
            "text.color": theme.ink,
            "axes.labelcolor": theme.ink,
            "axes.edgecolor": theme.soft,
            "xtick.color": theme.soft,
            "ytick.color": theme.soft,
            "xtick.labelcolor": theme.ink,
            "ytick.labelcolor": theme.ink,
            "grid.color": theme.line,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "font.size": 10,
            "text.parse_math": False,
        }
    )


def _draw_lines(axes: Axes, panel: Panel, *, looks: Mapping[str, Style], theme: Theme) -> None:
    shifts = np.linspace(-DODGE_OCTAVES / 2, DODGE_OCTAVES / 2, len(panel.methods)) if len(panel.methods) > 1 else [0.0]
    for method, shift in zip(panel.methods, shifts, strict=True):
        curve, look = panel.curve(method), looks[method]
        percent = np.array([100 * cell.mean for cell in curve])
        std = np.array([100 * (cell.std or 0.0) for cell in curve])
        axes.errorbar(
            [cell.calls * 2**shift for cell in curve],
            percent,
            # A mean plus its spread may pass 100 %, an accuracy cannot.
            yerr=[np.minimum(std, percent), np.minimum(std, 100 - percent)],
            elinewidth=0.8,
            capsize=2,
            zorder=2 + look.width,
            **_drawing(look, paper=theme.paper),
        )


def _draw_references(axes: Axes, panel: Panel, *, teacher: float | None, theme: Theme) -> None:
    for _, accuracy in _references(panel, teacher=teacher):
        axes.axhline(100 * accuracy, color=theme.ink, linewidth=0.9, zorder=1)
    axes.grid(axis="y", linewidth=0.6)
    axes.set_axisbelow(True)


def _references(panel: Panel, *, teacher: float | None) -> list[tuple[str, float]]:
    """Horizontal lines: name and accuracy."""
    lines = [(f"{cell.method}, 0 calls", cell.mean) for cell in panel.references]
    return lines if teacher is None else [("teacher", teacher), *lines]


def _set_scales(axes: Axes, *, panels: Sequence[Panel], teacher: float | None) -> None:
    """Shared by all panels: logarithmic calls; accuracy stretched towards 100 % where errors differ fivefold."""
    calls = sorted({cell.calls for panel in panels for cell in panel.cells.values()})
    axes.set_xscale("log", base=2)
    axes.set_xlim(calls[0] / 2**0.25, calls[-1] * 2**0.25)
    # Budgets, not calls: where images repeat, methods of one budget were charged a few calls more or less.
    axes.xaxis.set_major_locator(FixedLocator(sorted({float(budget) for panel in panels for budget in panel.budgets})))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    cells = [cell for panel in panels for cell in panel.cells.values()]
    low = 100 * min(cell.mean - (cell.std or 0.0) for cell in cells)
    lines = [value for panel in panels for _, value in _references(panel, teacher=teacher)]
    high = 100 * max([cell.mean for cell in cells] + lines)
    if (100 - low + 1) / (100 - high + 1) >= 5:
        axes.set_yscale("function", functions=(_stretch, _unstretch))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(max(0.0, low - 0.08 * (100 - low)), min(100.0, high + 0.4 * (100 - high) + 0.1))
        axes.yaxis.set_major_locator(FixedLocator([tick for tick in STRETCHED_TICKS if tick >= low - 15]))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        stretched = ", stretched towards 100"
    else:
        room = 0.08 * (high - low) + 0.5
        axes.set_ylim(max(0.0, low - room), min(100.5, high + room))
        stretched = ""
    for other in axes.figure.axes:
        other.set_xlabel("teacher calls (images × views)")
        other.set_ylabel(f"test accuracy in %{stretched}")


def _stretch(percent: Any) -> Any:
    """Minus the logarithm of the error, which 1 point keeps finite at 100 %."""
    return -np.log10(np.maximum(101 - np.asarray(percent, dtype=np.float64), 1e-3))


def _unstretch(value: Any) -> Any:
    return 101 - 10 ** -np.asarray(value, dtype=np.float64)


def _label_lines(axes: Axes, panel: Panel, *, looks: Mapping[str, Style], teacher: float | None, theme: Theme) -> None:
    """A name beside the end of every line, joined to it by a hair line."""
    ends = [(method, 100 * panel.curve(method)[-1].mean, looks[method]) for method in panel.methods]
    ends += [(name, 100 * accuracy, reference_style(theme)) for name, accuracy in _references(panel, teacher=teacher)]
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(to_axes.transform((1.0, percent))[1]) for _, percent, _ in ends]
    places = spread(heights, gap=LABEL_GAP, low=0.0, high=1.0)
    for (name, _, look), height, place in zip(ends, heights, places, strict=True):
        # The stretch of line before the name shows marker and dashes: colour is never the only key.
        axes.plot(
            [1.0, 1.03], [height, place], transform=axes.transAxes, clip_on=False, color=look.colour, linewidth=0.5
        )
        axes.plot(
            [1.03, 1.055, 1.08],
            [place] * 3,
            transform=axes.transAxes,
            clip_on=False,
            markevery=[1],
            **_drawing(look, paper=theme.paper),
        )
        axes.text(1.09, place, name, transform=axes.transAxes, color=look.colour, fontsize=8.5, va="center")


def _drawing(look: Style, *, paper: str) -> dict[str, Any]:
    """A style as matplotlib's keyword arguments for a line."""
    return {
        "color": look.colour,
        "linestyle": look.dashes,
        "linewidth": look.width,
        "marker": look.marker,
        "markersize": 4.5,
        "markerfacecolor": look.colour if look.filled else paper,
    }


def _draw_differences(axes: Axes, part: PanelAnalysis, *, first: str, second: str, look: Style, theme: Theme) -> None:
    """A 95 % interval per budget, and below them the one of the average."""
    axes.axvline(0, color=theme.soft, linewidth=1)
    average = next((pair for pair in part.averaged if (pair.first, pair.second) == (first, second)), None)
    tests = [part.pair(first, second, budget=budget) for budget in part.panel.budgets]
    for place, pair in enumerate([*tests, average]):
        if pair is not None:
            test, last = pair.test, place == len(tests)
            axes.plot(
                [100 * test.low, 100 * test.high], [place, place], color=look.colour, linewidth=2.4 if last else 1.4
            )
            axes.plot(
                [100 * test.mean],
                [place],
                marker="D" if last else "o",
                markersize=7 if last else 5,
                color=look.colour,
                markerfacecolor=look.colour if pair.shown else theme.paper,
            )
    names = [*(f"{budget:,}" for budget in part.panel.budgets), "average"]
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(labelsize=8.5)
    axes.grid(axis="x", linewidth=0.6)


def _place(part: PanelAnalysis, first: str) -> str:
    return f"{first}\n{part.panel.title}" if part.panel.title else first
