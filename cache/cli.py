"""The command ``logit-cache``: what a cache holds, and what is done to it beside answering."""

import json
import re
import sys
from dataclasses import asdict
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cache.backup import back_up
from cache.brought import BroughtAnswers, DatasetFacts, LabelledDataset
from cache.export import export_answers
from cache.fidelity import measure_fidelity
from cache.history_report import closing_line, describe_history, history_table, plain_rows
from cache.importing import import_answers
from cache.info import describe_cache
from cache.layout import OUTPUT_DTYPES
from cache.merge import merge_caches
from cache.overview import headline, plain_lines, tables
from cache.provenance import TeacherFacts
from cache.removal import plan_removal, remove
from cache.repair import repair_cache
from cache.tensor_file import TensorFile
from cache.verify import find_damage
from cache.writer import CacheWriter
from shared.command import run_command
from shared.errors import CorruptCacheError, InputError
from shared.sizes import readable_size
from shared.view_policy import DEFAULT_POLICY, read_policy

app = typer.Typer(
    name="logit-cache",
    help="Look at a cache of teacher answers, check and mend it, copy it, bring answers in and take them out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SHOWN_ROWS = 8
"""Lost rows that are listed one by one."""

CachePath = Annotated[Path, typer.Argument(metavar="CACHE", help="Folder of the cache.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Teacher = Annotated[str | None, typer.Option("--teacher", help="Id of the teacher, or its beginning.")]
Dataset = Annotated[str | None, typer.Option("--dataset", help="NAME/SPLIT, where the cache holds several.")]


ERRORS = {"kl_tau1": "KL tau 1", "kl_tau4": "KL tau 4", "mse": "MSE", "dist": "DIST", "ckd": "CKD"}
"""Fields of `Fidelity` and their columns."""


@app.command()
def info(path: CachePath = Path(), as_json: AsJson = False) -> None:
    """Show what a cache holds, under which views and rows, and what it cost; works while a server writes it."""
    described = describe_cache(path)
    console = Console()
    if as_json:
        print(json.dumps(described, indent=2))
    elif console.is_terminal:
        console.print(headline(path, described))
        for table in tables(path, described):
            console.print(table)
    else:
        for line in plain_lines(path, described):
            print(line)


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
def history(
    path: CachePath = Path(),
    run: Annotated[str | None, typer.Option(help="Only batches of this run.")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="Only the last N rows.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show every batch that a teacher computed: when, for whom, on what, how long; works while a server writes it."""
    described = describe_history(path, run=run, last=last)
    console = Console()
    if as_json:
        print(json.dumps(described, indent=2))
        return
    if console.is_terminal:
        console.print(history_table(described))
    else:
        for line in plain_rows(described):
            print(line)
    print(closing_line(described))


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
        raise CorruptCacheError(
            f"{len(findings)} findings in {path}: restore what they name from a backup, "
            f"or take it out with `logit-cache repair {path}`"
        )
    print(f"{path} is sound")


@app.command()
def fidelity(
    *,
    path: CachePath = Path(),
    teacher: Annotated[str | None, typer.Option(help="Whose answers, where there are several.")] = None,
    dataset: Annotated[str | None, typer.Option(help="About which data set, where there are several.")] = None,
    samples: Annotated[int, typer.Option(min=2, help="Answers to measure on, drawn at random.")] = 8192,
    seed: Annotated[int, typer.Option(min=0, help="Which answers to draw.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Say what each encoding would take per row, and how far its logits would be from those kept here."""
    found = measure_fidelity(path, teacher=teacher, dataset=dataset, samples=samples, seed=seed)
    if as_json:
        print(json.dumps([asdict(one) for one in found], indent=2))
        return
    print(f"{'encoding':10s}{'bytes/row':>10s}{'top-1':>9s}" + "".join(f"{name:>11s}" for name in ERRORS.values()))
    for one in found:
        errors = "".join(f"{getattr(one, name):11.2e}" for name in ERRORS)
        print(f"{one.encoding:10s}{one.bytes_per_row:10d}{one.top1_agreement:9.2%}{errors}")


@app.command()
def repair(
    path: CachePath,
    keep_unchecked: Annotated[
        bool, typer.Option("--keep-unchecked", help="Keep answers whose checksums cannot be read, and check them anew.")
    ] = False,
) -> None:
    """Take damaged answers out and keep the damaged files aside; asking again is a teacher call again.

    Stop the server first. Where there is a backup without the damage, restore that instead: nothing is lost then.
    """
    losses = repair_cache(path, keep_unchecked=keep_unchecked)
    for loss in losses:
        for reason in loss.reasons:
            print(reason)
        print(f"{loss.teacher}  {loss.dataset}: {loss.answers} answers lost, {loss.kept} kept")
        if loss.rows:
            shown = ", ".join(f"{row} view {view}" for row, view in loss.rows[:SHOWN_ROWS])
            more = f" and {len(loss.rows) - SHOWN_ROWS} more" if len(loss.rows) > SHOWN_ROWS else ""
            print(f"  lost: rows {shown}{more}")
        if loss.quarantine:
            print(f"  what was there is kept in {loss.quarantine}: delete it when it is not needed")
    print(f"{path} is sound again" if losses else f"{path} is sound: nothing to repair")


@app.command()
def backup(
    path: CachePath, target: Annotated[Path, typer.Argument(metavar="TARGET", help="Folder to make; absent or empty.")]
) -> None:
    """Copy a whole cache, also while a server writes it; the copy is verified before it appears."""
    back_up(path, target)
    described = describe_cache(target)
    answers = sum(entry["slots"] for entry in described["caches"])
    print(
        f"{target}: {answers} answers, {described['teacher_calls']} teacher calls, {readable_size(described['bytes'])}"
    )


@app.command("rm")
def remove_answers(
    path: CachePath,
    what: Annotated[str, typer.Argument(metavar="TEACHER[/NAME/SPLIT]", help="A teacher, or one of its data sets.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a teacher's answers, about one data set or all; what they cost stays counted. Stop the server first."""
    for removal in plan_removal(path, what=what):
        print(
            f"{removal.record.teacher.id}  {removal.record.dataset.name}: {removal.answers} answers of "
            f"{removal.teacher_calls} teacher calls, {readable_size(removal.size_bytes)}"
        )
    if not yes:
        if not sys.stdin.isatty():
            raise InputError("nothing was removed: nobody can be asked here, say --yes")
        if not typer.confirm("Remove them for ever?"):
            print("nothing was removed")
            return
    removed = remove(path, what=what)
    calls = sum(removal.teacher_calls for removal in removed)
    print(f"removed {sum(removal.answers for removal in removed)} answers; their {calls} teacher calls stay counted")


@app.command("export")
def export(
    path: CachePath,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to make: .safetensors, .npz or .parquet.")],
    teacher: Teacher = None,
    dataset: Dataset = None,
) -> None:
    """Write rows, views, labels, keys and outputs of one cache to a file, with where they come from."""
    count = export_answers(path, file, teacher=teacher, dataset=dataset)
    print(f"{file}: {count} answers, {readable_size(file.stat().st_size)}")


@app.command("import")
def bring_in(  # noqa: PLR0917, typer gives options by position
    path: CachePath,
    file: Annotated[Path, typer.Argument(metavar="FILE", help=".safetensors or .npz with logits and rows.")],
    dataset: Annotated[
        str | None, typer.Option(help="What the answers are about, [NAME=]KIND:ARG/SPLIT; checks rows and labels.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where torchvision keeps its files.")] = None,
    name: Annotated[str | None, typer.Option(help="NAME/SPLIT, where the file holds all keys and labels.")] = None,
    view_policy: Annotated[
        str | None, typer.Option(help="What its views are; default: the data set's own, crop4flip for one only named.")
    ] = None,
    view: Annotated[int | None, typer.Option(help="View of all answers, for a file without views.")] = None,
    arch: Annotated[str | None, typer.Option(help="Architecture of the teacher that answered.")] = None,
    weights: Annotated[
        str | None, typer.Option(help="Its weights: their file, a SHA-256, or words that tell them from others.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Arithmetic of its forward pass.")] = "float32",
    dtype: Annotated[str, typer.Option(help="What a new cache keeps the outputs in.")] = "float16",
) -> None:
    """Keep answers that were computed elsewhere; they are marked as imported, and count as no teacher calls."""
    if dtype not in OUTPUT_DTYPES:
        raise InputError(f"outputs cannot be kept as {dtype!r}; use one of {', '.join(OUTPUT_DTYPES)}")
    opened = TensorFile(file)
    answers = BroughtAnswers(
        opened,
        teacher=TeacherFacts(arch=arch, weights=_weights(weights), precision=precision),
        facts=DatasetFacts(name=name, view_policy=str(read_policy(view_policy or DEFAULT_POLICY))),
        dataset=_open(dataset, root=data_root, view_policy=view_policy) if dataset else None,
        view=view,
        dtype=dtype,
    )
    imported = import_answers(answers, file=file, target=path)
    print(f"{path}: {imported.teacher}  {imported.dataset}: {imported.adopted.new} answers imported")
    if imported.adopted.known:
        print(f"  {imported.adopted.known} were there already")
    if imported.shared:
        print(f"  {imported.shared} show the pixels of an earlier answer of the file: that one counts")
    if imported.top1 is not None:
        print(f"  {imported.top1:.1%} of the file's answers agree with the labels")


@app.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="CACHE...", help="Folders of the caches to merge.")],
    into: Annotated[Path, typer.Option("--into", help="Folder of the cache to make, or one that exists.")],
    teacher: Teacher = None,
) -> None:
    """Merge what one teacher said in several caches; contradictions are errors, calls and budgets add up."""
    for merged in merge_caches(sources, into, teacher=teacher):
        added = merged.added
        print(
            f"{merged.source}: {merged.new} answers, {merged.known} were there already; "
            f"{added.teacher_calls} teacher calls ({added.attempts} attempts) added"
        )
        for note in merged.notes:
            print(f"  {note}")


def _open(dataset: str, *, root: Path | None, view_policy: str | None) -> LabelledDataset:
    # Other commands need no data set, and none of the libraries that one may bring.
    from shared.datasets.spec import open_dataset

    return open_dataset(dataset, root=root).with_views(view_policy)


def _weights(given: str | None) -> str | None:
    """SHA-256 (hex) of a file, as given, or of the words."""
    if given is None or re.fullmatch(r"[0-9a-f]{64}", given):
        return given
    if Path(given).is_file():
        with Path(given).open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    return sha256(given.encode()).hexdigest()


def main() -> None:
    """Entry point of ``logit-cache``."""
    run_command(app)


if __name__ == "__main__":
    main()
