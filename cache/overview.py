"""What ``logit-cache info`` shows people: tables and a coverage picture on a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cache.catalog import read_catalog
from cache.coverage import PLAIN_SHADES, SHADES, CoverageLine, measure_coverage
from cache.history_report import describe_sums, history_line
from cache.layout import LEDGER
from cache.reader import CacheReader
from shared.sizes import readable_size

Described = dict[str, Any]
"""What `cache.info.describe_cache` says, or one entry of its caches."""


def headline(path: Path, described: Described) -> str:
    """The whole folder in one line."""
    return (
        f"{path}: {readable_size(described['bytes'])}, {described['teacher_calls']} teacher calls"
        f" ({described['attempts']} attempts), format {described['format']}"
    )


def plain_lines(path: Path, described: Described) -> Iterator[str]:
    """Everything as lines of text."""
    yield headline(path, described)
    for entry in described["caches"]:
        yield f"{entry['teacher']}  {entry['dataset']}"
        yield from (f"  {name}: {value}" for name, value in _properties(path, entry))
        yield from (
            f"  view {line.views:<9} [{line.draw(PLAIN_SHADES)}] {_percent(line)}" for line in _cover(path, entry)
        )
    for name, *numbers in _runs(described["budgets"]):
        budget, attempts, calls, charged = numbers
        yield f"run {name}: budget {budget}, {attempts} attempts, {calls} teacher calls, {charged} charged"
    sums = describe_sums(path)
    if sums is None:
        return
    for name, *numbers in _owners(sums["owners"]):
        budget, attempts, calls, hits, joined, charged = numbers
        yield (
            f"key owner {name}: budget {budget}, {attempts} attempts, {calls} teacher calls, {hits} hits, "
            f"{joined} joined, {charged} charged"
        )
    yield f"history: {history_line(sums)}"


def tables(path: Path, described: Described) -> Iterator[Table]:
    """A table per cache with its picture, and one of the runs."""
    for entry in described["caches"]:
        # One property per line: teacher ids are long, terminals are narrow.
        table = Table(show_header=False, title=f"{entry['teacher']}  {entry['dataset']}", title_justify="left")
        for name, value in _properties(path, entry):
            table.add_row(name, value)
        yield table
        picture = Table("view", "rows, from the first to the last", "present", title_justify="left")
        for line in _cover(path, entry):
            picture.add_row(line.views, Text(line.draw(SHADES), style="green"), _percent(line))
        if picture.row_count:
            yield picture
    runs = Table("run", "budget", "attempts", "teacher calls", "charged")
    for row in _runs(described["budgets"]):
        runs.add_row(*row)
    yield runs
    sums = describe_sums(path)
    if sums is None:
        return
    owners = Table("key owner", "budget", "attempts", "teacher calls", "hits", "joined", "charged")
    for row in _owners(sums["owners"]):
        owners.add_row(*row)
    yield owners
    history = Table(show_header=False)
    history.add_row("history", history_line(sums))
    yield history


def _properties(path: Path, entry: Described) -> Iterator[tuple[str, str]]:
    outputs = [f"{name} {output['dtype']} {output['shape']}" for name, output in entry["outputs"].items()]
    yield "answers", f"{entry['slots']} ({entry['folded']} of them in Zarr)"
    yield "rows", str(entry["rows"])
    yield "views", f"{_views(entry['present'], rows=entry['rows'])} (policy {entry['view_policy']})"
    yield "outputs", ", ".join(outputs)
    yield "teacher calls", f"{entry['teacher_calls']} ({entry['attempts']} attempts)"
    for one in _imports(path, entry):
        unfinished = "" if one["finished"] else "; interrupted, import it again"
        yield "imported", f"{one['answers']} answers from {one['file']} ({one['time']}{unfinished})"
    yield "size", readable_size(entry["bytes"])


def _imports(path: Path, entry: Described) -> list[Described]:
    """Where answers that no teacher here was asked for are from."""
    found: list[Described] = []
    for cache in read_catalog(path):
        if (cache.teacher.id, cache.dataset.name) == (entry["teacher"], entry["dataset"]):
            found += cache.attributes.get("imported", [])
    return found


def _runs(budgets: Described) -> Iterator[tuple[str, ...]]:
    for name, run in budgets.items():
        budget = "none" if run["budget"] is None else str(run["budget"])
        yield name, budget, str(run["attempts"]), str(run["teacher_calls"]), str(run["charged"])


def _owners(owners: Described) -> Iterator[tuple[str, ...]]:
    counted = ("attempts", "teacher_calls", "hits", "joined", "charged")
    for name, owner in owners.items():
        budget = "none" if owner["budget"] is None else str(owner["budget"])
        yield name, budget, *(str(owner[column]) for column in counted)


def _cover(path: Path, entry: Described) -> list[CoverageLine]:
    """What is committed now, folded or not."""
    views = sorted(int(view) for view in entry["present"])
    if not views:
        return []
    journal = (path / LEDGER).exists()
    with CacheReader.open(path, teacher=entry["teacher"], dataset=entry["dataset"], journal=journal) as reader:
        return measure_coverage(reader.present, rows=reader.num_rows, views=views)


def _percent(line: CoverageLine) -> str:
    # Rounded down: 100 % is said of everything only.
    return f"{int(line.share * 1000) / 10:.1f} %"


def _views(present: dict[str, int], *, rows: int) -> str:
    """Views with their coverage, the first few."""
    shown = [f"{view}: {count}/{rows}" for view, count in list(present.items())[:3]]
    more = [f"and {len(present) - 3} more"] if len(present) > 3 else []
    return ", ".join(shown + more) or "none"
