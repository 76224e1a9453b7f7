"""What the numbers say, in plain words."""

from collections.abc import Iterator

from student_trainer.reporting.analysis import Analysis, PanelAnalysis
from student_trainer.reporting.divergence import divergence
from student_trainer.reporting.grid import Cell, Panel
from student_trainer.reporting.statistics import PairResult
from student_trainer.reporting.texts import (
    interval_text,
    no_claim_text,
    p_text,
    percent_text,
    points_text,
)

MIDPOINT = "midpoint"
"""In the name of the control that is closest to comparing: matching the midpoint of answer and label."""


def completeness(analysis: Analysis) -> str | None:
    """What is missing of the sweep; None where nothing is."""
    results, sweep = analysis.results, analysis.results.sweep
    if results.complete:
        return None
    return (
        f"This sweep is not complete: {results.finished_cells} of {sweep.cells} cells and {len(results.trials)} of"
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
    no_claim = no_claim_text([pair for _, pair in pairs])
    better = [pair for _, pair in pairs if pair.shown and pair.test.mean > 0]
    worse = [pair for _, pair in pairs if pair.shown and pair.test.mean < 0]
    if better:
        part = f", in {len(better)} of {len(pairs)} comparisons" if len(better) < len(pairs) else ""
        answer = f"It points to yes{part}{no_claim}." if no_claim else f"Yes{part}."
    elif len(worse) == len(pairs):
        answer = f"It points to no, it did worse{no_claim}." if no_claim else "No, it did worse."
    else:
        answer = "It could not be shown to help."
    return [answer, *(f"{_place(panel)}{pair.first} against {pair.second}: {_verdict(pair)}" for panel, pair in pairs)]


def findings(analysis: Analysis) -> list[str]:
    """What the sweep shows, a sentence each."""
    shown = [
        sentence
        for part in analysis.panels
        for sentence in (
            *_best(part, budgets=_told(analysis, part.panel)),
            *_unranked(part.panel),
            *_above_labels(part),
            *_all_labels(part.panel),
        )
    ]
    return [*shown, *divergence(analysis.results)]


def _closest(part: PanelAnalysis) -> list[PairResult]:
    """Against the control that is closest to comparing; where it is missing, against all."""
    return [pair for pair in part.averaged if MIDPOINT in pair.second] or list(part.averaged)


def _verdict(pair: PairResult) -> str:
    found, no_claim = f"no difference could be shown at n = {pair.test.n}", ""
    if pair.shown:
        direction = "better" if pair.test.mean > 0 else "worse"
        found = direction if pair.claim else f"points to {direction}"
        no_claim = "" if pair.claim else f"; n = {pair.test.n}, no claim"
    return (
        f"{found} ({points_text(pair.test.mean)} points{_where(pair)}, 95 % interval {interval_text(pair)},"
        f" corrected p {_equals(pair.p_holm)}{no_claim})."
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
        best, others = cells[0], [cell.method for cell in cells[1:]]
        yield _sentence(
            panel,
            f"with {budget:,} calls {best.method} is highest, {percent_text(best.mean)} (n = {len(best.trials)});"
            f" {_told_apart(part, best.method, others=others, budget=budget)}.",
        )


def _told_apart(part: PanelAnalysis, best: str, *, others: list[str], budget: int) -> str:
    family = [pair for pair in part.pairs if pair.budgets == (budget,)]
    if not family:
        return "there are no two seeds to test that by"
    alike = [method for method in others if not _shown(part, best, method, budget=budget)]
    if alike:
        tail = f"cannot be told apart from {', '.join(alike)}"
    else:
        no_claim = no_claim_text(family)
        tail = f"points to differing from all others{no_claim}" if no_claim else "differs from all others"
    return f"after correction for {len(family)} {'pair' if len(family) == 1 else 'pairs'} it {tail}"


def _unranked(panel: Panel) -> Iterator[str]:
    """Methods that those with fewer labels are not held against."""
    apart = [method for method in panel.methods if method not in panel.ranked]
    if apart:
        uses = "uses" if len(apart) == 1 else "use"
        yield _sentence(
            panel,
            f"not ranked: {', '.join(apart)}, which {uses} the labels of all images; the bar for that is cross-entropy"
            " on all labels.",
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
    count, no_claim = len(said["above"]), no_claim_text(part.lifted)
    if no_claim:
        beat = "points to beating" if count == 1 else "point to beating"
    else:
        beat = "is shown to beat" if count == 1 else "are shown to beat"
    yield _sentence(
        part.panel,
        f"{count} of {len(part.lifted)} losses {beat} cross-entropy on the labels of the same"
        f" images,{_where(part.lifted[0])}{no_claim}{names}.",
    )


def _is_better(pair: PairResult) -> bool:
    return pair.test.mean > 0


def _all_labels(panel: Panel) -> Iterator[str]:
    """Whether the calls buy more than all labels do without any; of several references, than the best."""
    if not panel.references:
        return
    bar = max(panel.references, key=lambda cell: cell.mean)
    name = (
        bar.method if len(panel.references) == 1 else f"the best of {len(panel.references)} references, {bar.method},"
    )
    above = [
        f"{method} at {cell.budget:,}"
        for method in panel.methods
        if panel.asks(method)
        for cell in panel.curve(method)
        if cell.mean > bar.mean
    ]
    who = f"in the mean that is passed by {', '.join(above)}" if above else "no method reaches that in the mean"
    yield _sentence(panel, f"without any teacher call {name} reaches {percent_text(bar.mean)}; {who}.")


def _at(panel: Panel, budget: int) -> list[Cell]:
    """The cells of a budget that may be held against each other."""
    return [panel.cells[method, budget] for method in panel.ranked if (method, budget) in panel.cells]


def _shown(part: PanelAnalysis, first: str, second: str, *, budget: int) -> bool:
    pair = part.pair(first, second, budget=budget) or part.pair(second, first, budget=budget)
    return pair is not None and pair.shown


def _place(panel: Panel) -> str:
    return f"{panel.title}: " if panel.title else ""


def _sentence(panel: Panel, text: str) -> str:
    """A text as a sentence about its panel."""
    return _place(panel) + text if panel.title else text[0].upper() + text[1:]
