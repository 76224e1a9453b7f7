"""Trainings whose loss left the numbers: which cells miss seeds for it, and which miss all."""

from collections import Counter
from collections.abc import Sequence

from student_trainer.reporting.results import SweepResults, Trial


def divergence(results: SweepResults) -> list[str]:
    """A sentence on cells whose means leave seeds out, and one on cells without any result; none if all went well."""
    sentences = []
    chosen = Counter(trial.cell for trial in results.trials if trial.chosen)
    gone = Counter(trial.cell for trial in results.trials if trial.chosen and trial.diverged)
    if gone:
        firsts = {trial.cell: trial for trial in results.trials if trial.chosen}
        told = "; ".join(
            f"{_name(firsts[cell], results.trials)} ({count} of {chosen[cell]} seeds)" for cell, count in gone.items()
        )
        sentences.append(
            f"Diverged at the chosen learning rate: {told}. The means of these cells are over the other seeds, which"
            " flatters them."
        )
    if results.lost:
        told = "; ".join(_name(trial, results.trials) for trial in results.lost)
        sentences.append(f"Every training diverged, whatever the seed and learning rate: {told}. There is no number.")
    return sentences


def _name(trial: Trial, trials: Sequence[Trial]) -> str:
    """A cell, by what tells it from others."""
    fields = ("student", "views", "select")
    varying = [field for field in fields if len({getattr(other, field) for other in trials if other.budget}) > 1]
    place = "".join(f", {getattr(trial, field)}" for field in varying)
    return f"{trial.loss}{place} at {trial.budget:,} calls"
