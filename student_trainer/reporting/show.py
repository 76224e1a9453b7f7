"""`student-trainer report`: write the report of a sweep and say what it found."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from shared.errors import InputError
from student_trainer.reporting.results import SweepResults, read_sweep

Say = Callable[[str], None]


def report_and_show(source: Path, *, targets: str | None, compare: str | None, console: Console, say: Say) -> None:
    """Report on a sweep's folder, or compute the reductions of a published table."""
    if source.is_file():
        show_published(source, console=console)
        return
    if not source.exists():
        raise InputError(f"there is no {source}; give the --out folder of a sweep, or a CSV file of published calls")
    chosen = read_targets(targets or "")
    show_sweep(read_sweep(source), targets=chosen, compare=compare, console=console, say=say)


def show_published(path: Path, *, console: Console) -> None:
    """A published table with our reductions."""
    from student_trainer.reporting.published import read_published
    from student_trainer.reporting.terminal import published_tables

    for table in published_tables(read_published(path)):
        console.print(table)


def show_sweep(
    results: SweepResults, *, targets: tuple[float, ...], compare: str | None, console: Console, say: Say
) -> None:
    """Write the report and say what it found."""
    # Files that cannot be read were found above; scipy and matplotlib take seconds to import.
    from student_trainer.reporting.accounts import ledger_problems
    from student_trainer.reporting.analysis import analyse
    from student_trainer.reporting.findings import completeness, findings, headline
    from student_trainer.reporting.terminal import terminal_tables
    from student_trainer.reporting.writing import write_report

    analysis = analyse(results, targets=targets, compare=compare)
    paths = write_report(analysis)
    for table in terminal_tables(analysis):
        console.print(table)
    for sentence in (*headline(analysis), *findings(analysis)):
        say(sentence)
    for problem in ledger_problems(results):
        say(f"ledger and trainings disagree: {problem}")
    if (missing := completeness(analysis)) is not None:
        say(missing)
    for path in paths:
        say(f"wrote {path}")


def read_targets(text: str) -> tuple[float, ...]:
    """Numbers between commas."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"cannot read --targets {text!r}; write accuracies in % such as 40,45,50") from None
