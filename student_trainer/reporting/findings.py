"""What the numbers say, in plain words."""

from collections.abc import Iterator

from student_trainer.reporting.analysis import Analysis, PanelAnalysis
from student_trainer.reporting.grid import Cell, Panel
from student_trainer.reporting.statistics import PairResult
from student_trainer.reporting.texts import interval_text, p_text, percent_text, points_text

MIDPOINT = "midpoint"
"""In the name of the control that is closest to comparing: matching the midpoint of answer and label."""


def completeness(analysis: Analysis) -> str | None:
    """What is missing of the sweep; None where nothing is."""
    results, sweep = analysis.results, analysis.results.sweep
    if results.complete:
        return None
    return (
        f"This sweep is not complete: {results.cells} of {sweep.cells} cells and {len(results.trials)} of"
        f" {sweep.trials} trials are finished. The report shows what is there; more seeds may change it."
    )


def main_question(analysis: Analysis) -> str:
    """What `headline` answers."""
    pairs = [pair for part in analysis.panels for pair in _closest(part)]
    midpoint = any(MIDPOINT in pair.second for pair in pairs)
    return f"Does comparing samples help beyond {'matching the midpoint' if midpoint else 'the controls'}?"


def headline(analysis: Analysis) -> list[str]:
    """The answer to the question that the controls are for, then its numbers; empty where a sweep has no controls."""
    pairs = [(part.panel, pair) for part in analysis.panels for pair in _closest(part)]
    if not pairs:
        return []
    better = [pair for _, pair in pairs if pair.shown and pair.test.mean > 0]
    worse = [pair for _, pair in pairs if pair.shown and pair.test.mean < 0]
    if better:
        answer = f"Yes, in {len(better)} of {len(pairs)} comparisons." if len(better) < len(pairs) else "Yes."
    else:
        answer = "No, it did worse." if len(worse) == len(pairs) else "It could not be shown to help."
    return [answer, *(f"{_place(panel)}{pair.first} against {pair.second}: {_verdict(pair)}" for panel, pair in pairs)]


def findings(analysis: Analysis) -> list[str]:
    """What the sweep shows, a sentence each."""
    return [
        sentence
        for part in analysis.panels
        for sentence in (
            *_best(part, budgets=_told(analysis, part.panel)),
            *_above_labels(part),
            *_all_labels(part.panel),
        )
    ]


def _closest(part: PanelAnalysis) -> list[PairResult]:
    """Against the control that is closest to comparing; where it is missing, against all."""
    return [pair for pair in part.averaged if MIDPOINT in pair.second] or list(part.averaged)


def _verdict(pair: PairResult) -> str:
    found = f"no difference could be shown at n = {pair.test.n}"
    if pair.shown:
        found = "better" if pair.test.mean > 0 else "worse"
    return (
        f"{found} ({points_text(pair.test.mean)} points{_where(pair)}, 95 % interval {interval_text(pair)},"
        f" corrected p {_equals(pair.p_holm)})."
    )


def _where(pair: PairResult) -> str:
    return f" at {pair.budgets[0]:,} calls" if len(pair.budgets) == 1 else " averaged over the budgets"


def _equals(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _told(analysis: Analysis, panel: Panel) -> tuple[int, ...]:
    """The smallest and the largest budget; of several panels, which would fill the page, the largest."""
    first = panel.budgets[:1] if len(analysis.panels) == 1 else ()
    return tuple(dict.fromkeys((*first, panel.budgets[-1])))


def _best(part: PanelAnalysis, *, budgets: tuple[int, ...]) -> Iterator[str]:
    """The highest mean at a budget, and who cannot be told apart from it."""
    panel = part.panel
    for budget in budgets:
        cells = sorted(_at(panel, budget), key=lambda cell: cell.mean, reverse=True)
        if len(cells) < 2:
            continue
        best, others = cells[0], cells[1:]
        apart = [cell.method for cell in others if _shown(part, best.method, cell.method, budget=budget)]
        alike = [cell.method for cell in others if cell.method not in apart]
        pairs = len(cells) * (len(cells) - 1) // 2
        tail = f"cannot be told apart from {', '.join(alike)}" if alike else "differs from all others"
        yield _sentence(
            panel,
            f"with {budget:,} calls {best.method} is highest, {percent_text(best.mean)} (n = {len(best.trials)});"
            f" after correction for {pairs} pairs it {tail}.",
        )


def _above_labels(part: PanelAnalysis) -> Iterator[str]:
    """Which methods the teacher's answers lift above cross-entropy on the same labels."""
    if not part.lifted:
        return
    said = {
        word: [f"{pair.first} ({points_text(pair.test.mean)})" for pair in part.lifted if pair.shown and above(pair)]
        for word, above in (("above", _is_better), ("below", lambda pair: not _is_better(pair)))
    }
    names = "".join(f"; {word} it: {', '.join(found)}" for word, found in said.items() if found)
    yield _sentence(
        part.panel,
        f"{len(said['above'])} of {len(part.lifted)} losses are shown to beat cross-entropy on the labels of the same"
        f" images,{_where(part.lifted[0])}{names}.",
    )


def _is_better(pair: PairResult) -> bool:
    return pair.test.mean > 0


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
