"""The command ``logit-cache``: what a cache holds."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cache.info import describe_cache
from cache.verify import find_damage
from cache.writer import CacheWriter
from shared.command import run_command
from shared.errors import CorruptCacheError
from shared.sizes import readable_size

app = typer.Typer(
    name="logit-cache",
    help="Look at a cache of teacher answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CachePath = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of the cache.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def info(path: CachePath = Path(), as_json: AsJson = False) -> None:
    """Show what a cache holds and what it cost; works while a server writes it."""
    described = describe_cache(path)
    if as_json:
        print(json.dumps(described, indent=2))
        return
    console = Console()
    console.print(
        f"{path}: {readable_size(described['bytes'])}, {described['teacher_calls']} teacher calls"
        f" ({described['attempts']} attempts), format {described['format']}"
    )
    for entry in described["caches"]:
        console.print(_cache_table(entry))
    console.print(_runs_table(described["budgets"]))


@app.command("ls")
def list_caches(path: CachePath = Path(), as_json: AsJson = False) -> None:
    """List the caches in a folder: one line per teacher and data set."""
    caches = describe_cache(path)["caches"]
    if as_json:
        print(json.dumps(caches, indent=2))
        return
    for entry in caches:
        print(f"{entry['teacher']}  {entry['dataset']}  {entry['slots']} answers  {readable_size(entry['bytes'])}")


@app.command()
def fold(path: CachePath) -> None:
    """Move answers that only the ledger holds into Zarr; no server may be running."""
    # Checked first, so that a wrong path does not become a new cache.
    describe_cache(path)
    with CacheWriter.open(path) as writer:
        writer.fold()


@app.command()
def verify(path: CachePath) -> None:
    """Re-read every checksum; ends with exit code 5 where something is damaged. Stop the server first."""
    findings = list(find_damage(path))
    for finding in findings:
        print(finding)
    if findings:
        raise CorruptCacheError(f"{len(findings)} findings in {path}: restore what they name from a copy of the cache")
    print(f"{path} is sound")


def _cache_table(entry: dict[str, Any]) -> Table:
    """One cache, one property per line: teacher ids are long, terminals are narrow."""
    table = Table(show_header=False, title=f"{entry['teacher']}  {entry['dataset']}", title_justify="left")
    present, rows = entry["present"], entry["rows"]
    outputs = [f"{name} {output['dtype']} {output['shape']}" for name, output in entry["outputs"].items()]
    table.add_row("answers", f"{entry['slots']} ({entry['folded']} of them in Zarr)")
    table.add_row("rows", str(rows))
    table.add_row("views", f"{_views(present, rows=rows)} (policy {entry['view_policy']})")
    table.add_row("outputs", ", ".join(outputs))
    table.add_row("teacher calls", f"{entry['teacher_calls']} ({entry['attempts']} attempts)")
    table.add_row("size", readable_size(entry["bytes"]))
    return table


def _runs_table(runs: dict[str, dict[str, Any]]) -> Table:
    table = Table("run", "budget", "attempts", "teacher calls", "charged")
    for name, run in runs.items():
        budget = "none" if run["budget"] is None else str(run["budget"])
        table.add_row(name, budget, str(run["attempts"]), str(run["teacher_calls"]), str(run["charged"]))
    return table


def _views(present: dict[str, int], *, rows: int) -> str:
    """Views with their coverage, the first few."""
    shown = [f"{view}: {count}/{rows}" for view, count in list(present.items())[:3]]
    more = [f"and {len(present) - 3} more"] if len(present) > 3 else []
    return ", ".join(shown + more) or "none"


def main() -> None:
    """Entry point of ``logit-cache``."""
    run_command(app)
