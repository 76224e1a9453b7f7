"""The report on a terminal."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from student_trainer.reporting.analysis import Analysis
from student_trainer.reporting.published import PublishedCalls
from student_trainer.reporting.tables import accuracy_rows
from student_trainer.reporting.texts import accuracy_text, reduction_text


def terminal_tables(analysis: Analysis) -> Iterator[Table]:
    """Accuracy per method and budget, a table per panel."""
    for part in analysis.panels:
        panel = part.panel
        caption = "".join(f"{cell.method}, 0 calls: {accuracy_text(cell)}. " for cell in panel.references)
        table = _table(
            f"{analysis.results.sweep.name} {panel.title}".strip(),
            head=(panel.axis, *(f"{budget:,} calls" for budget in panel.budgets)),
            caption=f"test accuracy in %: mean ± sample std over n = {analysis.seeds_text} seeds. {caption}",
        )
        for row in accuracy_rows(panel):
            # The number of seeds stands in the caption: four budgets are to fit into 80 columns.
            table.add_row(row[0], *(text.partition(" (")[0] for text in row[1:]))
        yield table


def published_tables(published: Sequence[PublishedCalls]) -> Iterator[Table]:
    """A published calls table with the reductions as computed here, and as printed there."""
    for pair in published:
        table = _table(pair.pair, head=("method", *pair.targets), caption=f"{pair.method} against the next best method")
        for method, calls in pair.calls.items():
            table.add_row(method, *("–" if calls[target] is None else f"{calls[target]:g}" for target in pair.targets))
        table.add_section()
        table.add_row("reduction in %, computed", *(_bare(pair.reduction(target)) for target in pair.targets))
        if pair.printed:
            table.add_row("reduction in %, printed", *(_bare(pair.printed[target]) for target in pair.targets))
        yield table


def _bare(reduction: float | None) -> str:
    return reduction_text(reduction).removesuffix(" %")


def _table(title: str, *, head: Sequence[str], caption: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, caption=caption, pad_edge=False)
    table.add_column(head[0], no_wrap=True)
    for heading in head[1:]:
        table.add_column(heading, justify="right")
    return table
