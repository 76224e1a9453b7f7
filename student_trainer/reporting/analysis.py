"""Everything that a report says about a sweep, computed once for all its forms."""

from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import InputError
from student_trainer.reporting.grid import Panel, arrange
from student_trainer.reporting.reaching import Reach, reach_table, sensible_targets
from student_trainer.reporting.results import SweepResults
from student_trainer.reporting.statistics import PairResult, all_pairs, averaged_pairs

COMPARING = "ckd"
"""Losses whose name begins so compare samples with each other; the controls show what is left without comparing."""


LABELS_ALONE = "ce"
"""The loss that no teacher takes part in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelAnalysis:
    """One panel with its tests."""

    panel: Panel
    reach: tuple[Reach, ...]
    pairs: tuple[PairResult, ...]
    """All pairs at each budget; each budget is a family of tests of its own."""
    averaged: tuple[PairResult, ...]
    """Comparing losses against controls, averaged over the budgets: the main question, one family of tests."""
    lifted: tuple[PairResult, ...]
    """Losses against cross-entropy on the labels of the same images, averaged over the budgets: one family of tests."""

    def pair(self, first: str, second: str, *, budget: int) -> PairResult | None:
        """The test of two methods at one budget, if both have two seeds there."""
        wanted = (first, second, (budget,))
        return next((pair for pair in self.pairs if (pair.first, pair.second, pair.budgets) == wanted), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """A whole sweep."""

    results: SweepResults
    panels: tuple[PanelAnalysis, ...]
    targets: tuple[float, ...]
    """Accuracies of the calls-to-reach table, 0 to 1."""

    @property
    def seeds(self) -> tuple[int, int]:
        """The smallest and the largest number of seeds of a cell."""
        counts = [len(cell.trials) for part in self.panels for cell in part.panel.cells.values()]
        return min(counts), max(counts)

    @property
    def seeds_text(self) -> str:
        """``5`` or ``3 to 5``."""
        low, high = self.seeds
        return str(low) if low == high else f"{low} to {high}"


def analyse(results: SweepResults, *, targets: Sequence[float] = (), compare: str | None = None) -> Analysis:
    """Arrange, test and interpolate; ``targets`` are accuracies in %, none: chosen from the range."""
    wrong = [target for target in targets if not 0 < target <= 100]
    if wrong:
        raise InputError(f"no accuracy: {', '.join(map(str, wrong))}; give targets in %, above 0 and up to 100")
    panels = arrange(results.tested, compare=compare, order=results.sweep.names)
    chosen = tuple(sorted({target / 100 for target in targets})) or sensible_targets(panels)
    return Analysis(results=results, panels=tuple(_analyse(panel, targets=chosen) for panel in panels), targets=chosen)


def _analyse(panel: Panel, *, targets: tuple[float, ...]) -> PanelAnalysis:
    comparing = [name for name in panel.ranked if name.startswith(COMPARING) and panel.group(name) == "loss"]
    controls = [name for name in panel.ranked if panel.group(name) == "control"]
    return PanelAnalysis(
        panel=panel,
        reach=reach_table(panel, targets=targets),
        pairs=tuple(pair for budget in panel.budgets for pair in all_pairs(panel, budget=budget)),
        averaged=averaged_pairs(panel, firsts=comparing, seconds=controls),
        lifted=averaged_pairs(panel, firsts=_taught(panel), seconds=[LABELS_ALONE]),
    )


def _taught(panel: Panel) -> list[str]:
    """Losses that use the teacher's answers on the images whose labels cross-entropy uses, and no other labels."""
    if panel.axis != "loss" or LABELS_ALONE not in panel.ranked:
        return []
    return [method for method in panel.ranked if panel.asks(method) and panel.group(method) == "loss"]
