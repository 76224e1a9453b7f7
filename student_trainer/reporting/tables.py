"""The report's tables as CSV, Markdown and LaTeX."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from math import isfinite

from student_trainer.reporting.analysis import Analysis
from student_trainer.reporting.grid import Cell, Panel
from student_trainer.reporting.reaching import Reach
from student_trainer.reporting.statistics import PairResult
from student_trainer.reporting.texts import accuracy_text, calls_text, duration_text

COST_HEADINGS = (
    "charged",
    "consumed",
    "teacher calls",
    "online calls",
    "student forwards",
    "epochs",
    "wall-clock",
    "images/s",
    "learning rate",
)
"""Means over the seeds of the chosen learning rate."""

LATEX_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "–": "--",
        "×": r"$\times$",
    }
)


def cost_texts(cell: Cell) -> tuple[str, ...]:
    """What a run of this cell cost, under COST_HEADINGS."""
    return (
        f"{cell.average('paid'):,.0f}",
        f"{cell.average('charged'):,.0f}",
        f"{cell.average('teacher_calls'):,.0f}",
        f"{cell.average('online_calls'):,.0f}",
        f"{cell.average('student_forwards'):,.0f}",
        f"{cell.average('epochs'):,.0f}",
        duration_text(cell.average("seconds")),
        f"{cell.average('images_per_second'):,.0f}",
        f"{cell.lr:g}",
    )


def accuracy_rows(panel: Panel) -> list[tuple[str, ...]]:
    """A row per method: its name, then mean ± std (n) per budget."""
    return [
        (method, *(accuracy_text(panel.cells.get((method, budget))) for budget in panel.budgets))
        for method in panel.methods
    ]


def ordered_cells(panel: Panel) -> list[Cell]:
    """Cells by budget, then method; references first."""
    found = [panel.cells.get((method, budget)) for budget in panel.budgets for method in panel.methods]
    return [*panel.references, *(cell for cell in found if cell is not None)]


def accuracy_csv(analysis: Analysis) -> str:
    """A line per cell, with everything that was averaged."""
    # Beside the ledger's word, "charged", the report calls what a training's line has under it consumed.
    counts = {name: name for name in ("rows", "answered_rows", "val_rows", "test_rows")}
    counts |= {"charged": "paid", "consumed": "charged", "teacher_calls": "teacher_calls"}
    costs = ("online_calls", "student_forwards", "epochs", "seconds", "images_per_second")
    head = ("student", "views", "select", "budget", "loss", "group", "n", "seeds", "lr")
    measured = ("test_accuracy_mean", "test_accuracy_std", "val_accuracy_mean")
    # With the losses not compared, panels share their references.
    cells = {cell.trials: cell for part in analysis.panels for cell in ordered_cells(part.panel)}
    lines = []
    for trials, cell in cells.items():
        trial = trials[0]
        validated = [trial.val_accuracy for trial in trials if trial.val_accuracy is not None]
        lines.append(
            (
                trial.student,
                trial.views,
                trial.select,
                trial.budget,
                trial.loss,
                trial.group,
                len(trials),
                " ".join(str(trial.seed) for trial in trials),
                trial.lr,
                cell.mean,
                "" if cell.std is None else cell.std,
                sum(validated) / len(validated) if validated else "",
                *(cell.average(name) for name in (*counts.values(), *costs)),
            )
        )
    return _csv((*head, *measured, *counts, *costs), lines)


def calls_csv(analysis: Analysis) -> str:
    """A line per method and target; ``state`` says whether the number is censored."""
    measured = ("calls", "state", "low", "high", "uses_teacher", "uses_all_labels", "reduction_percent")
    head = ("panel", "method", "target", *measured)
    return _csv(head, (_calls_line(reach) for part in analysis.panels for reach in part.reach))


def differences_csv(analysis: Analysis) -> str:
    """A line per test: all pairs at each budget, then the comparing losses against the controls over all budgets."""
    head = (
        "panel",
        "budgets",
        "first",
        "second",
        "n",
        "difference",
        "low",
        "high",
        "p_paired_t",
        "p_holm",
        "p_wilcoxon",
        "family",
    )
    lines = [
        line
        for part in analysis.panels
        for pairs, family in (
            (part.pairs, "all pairs at this budget"),
            (part.averaged, "comparing against controls"),
            (part.lifted, "teacher against labels"),
        )
        for line in _test_lines(pairs, family=family)
    ]
    return _csv(head, lines)


def markdown(analysis: Analysis) -> str:
    """Accuracy, calls to reach an accuracy, and costs."""
    sweep = analysis.results.sweep
    parts = [f"# {sweep.name}\n\n{sweep.question}\n"]
    for part in analysis.panels:
        panel = part.panel
        parts.append(f"## Test accuracy in %{_of(panel)}: mean ± sample std (seeds)\n")
        parts.append(_markdown_table(_budget_headings(panel), accuracy_rows(panel)))
        for cell in panel.references:
            parts.append(f"{cell.method}, without teacher calls: {accuracy_text(cell)}\n")
        parts.append(f"## Teacher calls to reach an accuracy{_of(panel)}\n")
        parts.append(_markdown_table(_target_headings(analysis), reach_rows(part.reach)))
        parts.append(f"## What a run cost{_of(panel)}\n")
        parts.append(_markdown_table(("budget", panel.axis, *COST_HEADINGS), cost_rows(panel)))
    return "\n".join(parts)


def latex(analysis: Analysis) -> str:
    """The accuracy and the cost tables for booktabs."""
    parts = [r"% \usepackage{booktabs}"]
    for part in analysis.panels:
        panel = part.panel
        caption = f"Test accuracy in %{_of(panel)}, mean ± sample standard deviation (seeds), by teacher calls."
        references = [(cell.method, accuracy_text(cell)) for cell in panel.references]
        rows = accuracy_rows(panel)
        rows += [(f"{name}, 0 calls", text, *[""] * (len(panel.budgets) - 1)) for name, text in references]
        parts.append(_latex_table(_budget_headings(panel), rows, caption=caption))
        parts.append(_latex_table(("budget", panel.axis, *COST_HEADINGS), cost_rows(panel), caption="Cost of a run."))
    return "\n".join(parts)


def cost_rows(panel: Panel) -> list[tuple[str, ...]]:
    """A row per cell: budget, method, and COST_HEADINGS."""
    return [(f"{cell.budget:,}", cell.method, *cost_texts(cell)) for cell in ordered_cells(panel)]


def reach_rows(reach: Sequence[Reach]) -> list[tuple[str, ...]]:
    """A row per method: its name, then the calls per target."""
    methods = dict.fromkeys(entry.method for entry in reach)
    return [(method, *(calls_text(entry) for entry in reach if entry.method == method)) for method in methods]


def _target_headings(analysis: Analysis) -> tuple[str, ...]:
    return ("method", *(f"{100 * target:g} %" for target in analysis.targets))


def _budget_headings(panel: Panel) -> tuple[str, ...]:
    return (panel.axis, *(f"{budget:,}" for budget in panel.budgets))


def _of(panel: Panel) -> str:
    return f" ({panel.title})" if panel.title else ""


def _calls_line(reach: Reach) -> tuple[object, ...]:
    state = "reached" if isfinite(reach.calls) else f"{calls_text(reach)}"
    ends = ("" if not isfinite(end) else end for end in (reach.low, reach.high))
    return (
        reach.panel,
        reach.method,
        reach.target,
        reach.calls if isfinite(reach.calls) else "",
        state,
        *ends,
        reach.asks,
        reach.all_labels,
        "" if reach.reduction is None else reach.reduction,
    )


def _test_lines(pairs: Iterable[PairResult], *, family: str) -> Iterator[tuple[object, ...]]:
    for pair in pairs:
        budgets = " ".join(str(budget) for budget in pair.budgets)
        test = pair.test
        numbers = (test.n, test.mean, test.low, test.high, test.p, pair.p_holm, test.p_rank)
        yield (pair.panel, budgets, pair.first, pair.second, *numbers, family)


def _csv(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return buffer.getvalue()


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |\n" for line in lines)


def _latex_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str) -> str:
    def line(texts: Sequence[str]) -> str:
        return " & ".join(text.translate(LATEX_SPECIAL) for text in texts) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            rf"\caption{{{caption.translate(LATEX_SPECIAL)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            line(head),
            r"\midrule",
            *(line(row) for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
