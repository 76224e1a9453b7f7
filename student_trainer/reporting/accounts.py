"""What the sweep cost, held against the ledger and against a teacher that runs online."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from student_trainer.reporting.results import LedgerRun, SweepResults, Trial


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerCheck:
    """One budget run, as the ledger counts it and as its trainings do."""

    name: str
    counts: LedgerRun | None
    """None: a training names a run that the ledger does not have."""
    consumed: int | None
    """Distinct answers that its trainings consumed, the most of any; None where no training names it.

    Of several views per image a training consumes those that its epochs drew, so it may be fewer than were charged.
    """
    trainings: int
    own: bool
    """Whether the ledger counts this sweep's calls only."""

    @property
    def problem(self) -> str | None:
        """What does not agree; None where all does."""
        if self.counts is None:
            return "not in the ledger"
        if self.counts.attempts < self.counts.teacher_calls:
            return "more calls than attempts"
        if self.counts.budget is not None and self.counts.teacher_calls > self.counts.budget:
            return "more calls than its budget"
        if self.own and self.consumed is not None and self.consumed > self.counts.charged:
            return f"trainings consumed {self.consumed:,}"
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Savings:
    """All finished trainings together."""

    trainings: int
    online_calls: int
    """Calls that these trainings would have made with the teacher in the loop: answered images forwarded."""
    charged: int
    """Distinct answers consumed, summed over the trainings: what they would pay without sharing a cache."""
    teacher_calls: int
    """What the ledger counts."""
    seconds: float
    """Training time, summed over the trainings."""
    student_forwards: int


def savings(results: SweepResults) -> Savings:
    """Sums over every finished training, chosen or not."""
    trials = results.trials
    return Savings(
        trainings=len(trials),
        online_calls=sum(trial.online_calls for trial in trials),
        charged=sum(trial.charged for trial in trials),
        teacher_calls=results.sweep.ledger.teacher_calls,
        seconds=sum(trial.seconds for trial in trials),
        student_forwards=sum(trial.student_forwards for trial in trials),
    )


def ledger_checks(results: SweepResults) -> list[LedgerCheck]:
    """Every run that the ledger or a training names."""
    trainings: dict[str, list[Trial]] = defaultdict(list)
    for trial in results.trials:
        if trial.ledger_run is not None:
            trainings[trial.ledger_run].append(trial)
    runs = results.sweep.ledger.runs
    return [
        LedgerCheck(
            name=name,
            counts=runs.get(name),
            consumed=max((trial.charged for trial in trainings[name]), default=None) if name in trainings else None,
            trainings=len(trainings.get(name, ())),
            own=results.sweep.ledger.own,
        )
        for name in dict.fromkeys([*runs, *trainings])
    ]


def ledger_problems(results: SweepResults) -> list[str]:
    """Where rows and ledger disagree, a sentence each; an empty list is what a reader wants to see."""
    ledger = results.sweep.ledger
    problems = [f"run {check.name}: {check.problem}" for check in ledger_checks(results) if check.problem]
    for field in ("attempts", "teacher_calls"):
        total, summed = getattr(ledger, field), sum(getattr(run, field) for run in ledger.runs.values())
        if summed > total:
            problems.append(f"the runs make {summed:,} {field.replace('_', ' ')}, the whole ledger {total:,}")
    return problems


def ledger_verdict(results: SweepResults) -> str:
    """What holding the ledger against the trainings came to, a sentence or two."""
    problems, ledger = ledger_problems(results), results.sweep.ledger
    if problems:
        return f"{len(problems)} disagreements, named at the top." if len(problems) > 1 else "One, named at the top."
    if not ledger.runs:
        return "This sweep asked nobody: its answers were found in a cache, and no run of the ledger belongs to it."
    if not ledger.own:
        return (
            "No run passed its budget. The ledger is that of a running server, which is asked for each answer once: a"
            " larger budget is charged for the rest only, so the runs are not held against what trainings consumed."
        )
    return (
        "The ledger and the trainings agree: no training consumed more distinct answers than its run was charged for,"
        " and no run passed its budget."
    )


def forwards_ratio(trials: Iterable[Trial]) -> float:
    """The largest ratio of student forwards between two methods of one setting and budget, means over seeds."""
    cells: dict[tuple[str, str, str, int], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        if trial.budget:
            cells[trial.student, trial.views, trial.select, trial.budget][trial.loss].append(trial.student_forwards)
    ratios = [1.0]
    for methods in cells.values():
        means = [sum(forwards) / len(forwards) for forwards in methods.values()]
        ratios.append(max(means) / max(1.0, min(means)))
    return max(ratios)


def uneven_tuning(results: SweepResults) -> list[str]:
    """Cells that tried another number of learning rates than the sweep says."""
    rates: dict[str, set[float]] = defaultdict(set)
    for trial in results.trials:
        rates[trial.cell].add(trial.lr)
    return [cell for cell, tried in rates.items() if len(tried) != results.sweep.trials_per_cell]
