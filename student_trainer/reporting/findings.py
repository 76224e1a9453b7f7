"""What the numbers say, in plain words."""

from collections.abc import Iterator

from student_trainer.reporting.analysis import Analysis, PanelAnalysis
from student_trainer.reporting.grid import Cell, Panel
from student_trainer.reporting.statistics import PairResult
from student_trainer.reporting.texts import interval_text, p_text, percent_text, points_text


def completeness(analysis: Analysis) -> str | None:
    """What is missing of the sweep; None where nothing is."""
    results, sweep = analysis.results, analysis.results.sweep
    if results.complete:
        return None
    return (
        f"This sweep is not complete: {results.cells} of {sweep.cells} cells and {len(results.trials)} of"
        f" {sweep.trials} trials are finished. The report shows what is there; more seeds may change it."
    )


def comparing_answers(analysis: Analysis) -> list[str]:
    """Whether comparing samples helps beyond each control: a sentence per comparing loss and control."""
    return [
        f"{_place(part.panel)}{pair.first} against {pair.second}: {_verdict(pair)}"
        for part in analysis.panels
        for pair in part.averaged
    ]


def headline(analysis: Analysis) -> list[str]:
    """The answer to the question the controls are for; empty where a sweep has none."""
    return [_headline(part) for part in analysis.panels if part.averaged]


def findings(analysis: Analysis) -> list[str]:
    """What the sweep shows, a sentence each."""
    return [
        sentence
        for part in analysis.panels
        for sentence in (*_best(part), *_above_labels(part), *_all_labels(part.panel))
    ]


def _headline(part: PanelAnalysis) -> str:
    """Against the control that is closest to comparing: matching the midpoint of answer and label."""
    against = [pair for pair in part.averaged if "midpoint" in pair.second] or list(part.averaged)
    better = [pair for pair in against if pair.shown and pair.test.mean > 0]
    worse = [pair for pair in against if pair.shown and pair.test.mean < 0]
    open_pairs = [pair for pair in against if not pair.shown]
    parts = []
    if better:
        parts.append(f"comparing samples helped: {_listed(better)}")
    if worse:
        parts.append(f"comparing samples did worse: {_listed(worse)}")
    if open_pairs:
        parts.append(f"no difference could be shown at n = {open_pairs[0].test.n}: {_listed(open_pairs)}")
    return _sentence(part.panel, "; ".join(parts) + ".")


def _listed(pairs: list[PairResult]) -> str:
    return ", ".join(
        f"{pair.first} against {pair.second}"
        f" ({points_text(pair.test.mean)} points, 95 % interval {interval_text(pair)})"
        for pair in pairs
    )


def _verdict(pair: PairResult) -> str:
    size = f"{points_text(pair.test.mean)} points on average over the budgets (95 % interval {interval_text(pair)},"
    size += f" corrected p {p_text(pair.p_holm)}, n = {pair.test.n})"
    if not pair.shown:
        return f"{size}: no difference could be shown."
    return f"{size}: {'better' if pair.test.mean > 0 else 'worse'}."


def _best(part: PanelAnalysis) -> Iterator[str]:
    """The highest mean at the smallest and the largest budget, and who cannot be told apart from it."""
    panel = part.panel
    for budget in dict.fromkeys((panel.budgets[0], panel.budgets[-1])):
        cells = sorted(_at(panel, budget), key=lambda cell: cell.mean, reverse=True)
        if len(cells) < 2:
            continue
        best, others = cells[0], cells[1:]
        apart = [cell.method for cell in others if _shown(part, best.method, cell.method, budget=budget)]
        alike = [cell.method for cell in others if cell.method not in apart]
        tail = f"it could not be told apart from {', '.join(alike)}" if alike else "it differs from all others"
        yield _sentence(
            panel,
            f"with {budget:,} calls {best.method} is highest, {percent_text(best.mean)} (n = {len(best.trials)});"
            f" {tail}.",
        )


def _above_labels(part: PanelAnalysis) -> Iterator[str]:
    """Which methods the teacher's answers lift above cross-entropy on the same labels."""
    panel = part.panel
    if panel.axis != "loss" or "ce" not in panel.methods:
        return
    asking = [method for method in panel.methods if panel.asks(method) and panel.group(method) == "loss"]
    for budget in dict.fromkeys((panel.budgets[0], panel.budgets[-1])):
        here = [method for method in asking if (method, budget) in panel.cells and ("ce", budget) in panel.cells]
        above = [
            method
            for method in here
            if _shown(part, method, "ce", budget=budget)
            and panel.cells[method, budget].mean > panel.cells["ce", budget].mean
        ]
        if here:
            names = f": {', '.join(above)}" if above else ""
            yield _sentence(
                panel,
                f"with {budget:,} calls {len(above)} of {len(here)} losses are shown to beat cross-entropy on the"
                f" labels of the same images{names}.",
            )


def _all_labels(panel: Panel) -> Iterator[str]:
    """Whether the calls buy more than all labels do without any."""
    for reference in panel.references:
        above = [
            f"{method} at {cell.budget:,}"
            for method in panel.methods
            if panel.asks(method)
            for cell in panel.curve(method)
            if cell.mean > reference.mean
        ]
        who = f"in the mean that is passed by {', '.join(above)}" if above else "no method reaches that in the mean"
        yield _sentence(
            panel, f"without any teacher call {reference.method} reaches {percent_text(reference.mean)}; {who}."
        )


def _at(panel: Panel, budget: int) -> list[Cell]:
    return [panel.cells[method, budget] for method in panel.methods if (method, budget) in panel.cells]


def _shown(part: PanelAnalysis, first: str, second: str, *, budget: int) -> bool:
    pair = part.pair(first, second, budget=budget) or part.pair(second, first, budget=budget)
    return pair is not None and pair.shown


def _place(panel: Panel) -> str:
    return f"{panel.title}: " if panel.title else ""


def _sentence(panel: Panel, text: str) -> str:
    """A text as a sentence about its panel."""
    return _place(panel) + text if panel.title else text[0].upper() + text[1:]
