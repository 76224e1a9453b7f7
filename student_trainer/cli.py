"""The command `student-trainer`."""

import logging
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from shared.command import run_command
from shared.errors import InputError
from shared.host_cores import usable_cores
from student_trainer import options
from student_trainer.config import TrainConfig
from student_trainer.reporting import options as report_options
from student_trainer.sweep import options as sweep_options

if TYPE_CHECKING:
    from student_trainer.results import RunResult

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def root() -> None:
    """Train students from cached teacher answers."""


@app.command()
def train(
    *,
    dataset: options.Dataset,
    student: options.Student,
    out: options.Out,
    loss: options.Loss = "kl",
    hyper: options.Hyper = None,
    ce_weight: options.CeWeight = None,
    kd_weight: options.KdWeight = None,
    cache: options.Cache = None,
    expect_teacher: options.ExpectTeacher = None,
    api_key_file: options.ApiKeyFile = None,
    run_name: options.RunName = "default",
    mirror: options.Mirror = None,
    teacher: options.Teacher = None,
    weights: options.Weights = None,
    sample: options.Sample = None,
    sample_seed: options.SampleSeed = 0,
    rows: options.RowsFile = None,
    answer_rows: options.AnswerRows = None,
    missing: options.MissingRows = None,
    val: options.Val = 0.1,
    val_rows: options.ValRows = None,
    test: options.Test = True,
    test_sample: options.TestSample = None,
    student_views: options.StudentViewsOption = None,
    teacher_views: options.TeacherViews = "0",
    view_policy: options.ViewPolicyOption = None,
    image_size: options.ImageSize = None,
    data_root: options.DataRoot = None,
    download: options.Download = False,
    epochs: options.Epochs = 60,
    batch: options.Batch = 64,
    lr: options.LearningRate = 0.05,
    momentum: options.Momentum = 0.9,
    nesterov: options.Nesterov = False,
    weight_decay: options.WeightDecay = 5e-4,
    schedule: options.ScheduleOption = "step",
    milestones: options.Milestones = "0.625,0.75,0.875",
    gamma: options.Gamma = 0.1,
    patience: options.Patience = 50,
    stages: options.Stages = 3,
    seed: options.Seed = 0,
    precision: options.PrecisionOption = "float32",
    compile: options.Compile = False,
    device: options.Device = "auto",
    devices: options.Devices = 1,
    threads: options.Threads = None,
    resume: options.Resume = False,
    checkpoint_every_s: options.CheckpointEvery = 1.0,
    tensorboard: options.Tensorboard = True,
) -> None:
    """Train one student, and leave its checkpoints, metrics and results in OUT.

    From a folder of a cache no server and no teacher is needed; from a server, rows are fetched once and then kept.
    """
    result = run_training(read_config(locals()))
    if is_first_process():
        show_result(result, out=out)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for everything the demo makes")] = Path("runs/demo"),
) -> None:
    """The whole way on bundled data: train a teacher, serve it, ask once per image, compare students."""
    # Deferred so that `student-trainer --help` and wrong input answer at once: torch takes seconds to import.
    from student_trainer.demo import DemoSettings, run_demo
    from student_trainer.reporting.comparison import terminal_table, write_page

    comparison = run_demo(DemoSettings(out=out, threads=default_threads(), command=typed_command()), say=print)
    Console().print(terminal_table(comparison))
    page = out / "report.html"
    write_page(comparison, page)
    print(f"report: {page}")


@app.command()
def sweep(
    *,
    recipe: sweep_options.RecipeFile,
    out: sweep_options.Out,
    changes: sweep_options.Changes = None,
    dataset: sweep_options.Dataset = None,
    weights: sweep_options.Weights = None,
    seeds: sweep_options.Seeds = None,
    jobs: sweep_options.Jobs = None,
    device: sweep_options.Device = "auto",
    plan: sweep_options.PlanOnly = False,
) -> None:
    """Train every student of a table or figure: losses x budgets x seeds; each teacher answer is asked for once.

    Killed and started again with the same command, it goes on where it was.
    """
    # Recipes are checked by pydantic, which the other commands do without.
    from student_trainer.sweep.reading import read_recipe

    given = {"dataset": dataset, "teacher.weights": None if weights is None else str(weights), "seeds": seeds}
    read = read_recipe(recipe, changes=changes or (), options=given)
    # A mistake in the recipe was found above; torch takes seconds to import.
    from student_trainer.sweep.show import run_and_show, show_plan

    if plan:
        show_plan(read, out=out, device=device, say=print)
        return
    run_and_show(read, out=out, jobs=jobs, device=device, environment=os.environ, command=typed_command(), say=print)


@app.command()
def report(
    source: report_options.Source,
    *,
    targets: report_options.Targets = None,
    compare: report_options.Compare = None,
) -> None:
    """Tables, figures, tests and a page from what a sweep left, finished or not, in DIR/report.

    Of a CSV file of published calls (pair, method, a column per accuracy) it computes the reductions.
    """
    # Deferred so that `student-trainer --help` answers at once: scipy takes a second to import.
    from student_trainer.reporting.show import report_and_show

    report_and_show(source, targets=targets, compare=compare, console=Console(), say=print)


def read_config(given: Mapping[str, Any]) -> TrainConfig:
    """The options as a config; raises InputError and UnknownNameError."""
    read = dict(given)
    read["hyper"] = read_settings(given["hyper"] or ())
    read["milestones"] = read_milestones(given["milestones"])
    read["threads"] = given["threads"] if given["threads"] is not None else default_threads()
    return TrainConfig(**read, command=typed_command())


def read_settings(texts: Sequence[str]) -> dict[str, object]:
    """``name=value`` texts as a mapping; the loss reads the values."""
    settings: dict[str, object] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"cannot read --set {text!r}; write name=value, such as temperature=4")
        if name.strip() in settings:
            raise InputError(f"--set {name.strip()} is given twice")
        settings[name.strip()] = value.strip()
    return settings


def read_milestones(text: str) -> tuple[float, ...]:
    """Numbers between commas; an empty text is none."""
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputError(f"cannot read --milestones {text!r}; write numbers such as 150,180,210 or 0.5,0.75") from None


def default_threads() -> int:
    """All cores that this process may use but one, which gathers and reports."""
    return max(1, usable_cores() - 1)


def typed_command() -> str:
    """The command as it was typed."""
    return shlex.join(["student-trainer", *sys.argv[1:]])


def run_training(config: TrainConfig) -> "RunResult":
    """Train with a bar on a terminal, plain lines elsewhere, both on standard error."""
    # Wrong names and numbers were found above; torch takes seconds to import.
    from student_trainer.loop import train as train_student
    from student_trainer.progress import Bar, Lines

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    console = Console(stderr=True)
    return train_student(config, progress=Bar(console) if console.is_terminal else Lines(sys.stderr))


def is_first_process() -> bool:
    """Whether this is the process that speaks, of those that --devices started."""
    from torch import distributed  # loaded by the training anyway

    return not distributed.is_initialized() or distributed.get_rank() == 0


def show_result(result: "RunResult", *, out: Path) -> None:
    """The result in a few lines."""
    if result.test_accuracy_last is not None:
        best = "" if result.test_accuracy_best is None else f", best {100 * result.test_accuracy_best:.2f} %"
        print(f"test accuracy: last {100 * result.test_accuracy_last:.2f} %{best} ({result.test_rows:,} images)")
    if result.val_accuracy_best is not None:
        print(f"validation accuracy: {100 * result.val_accuracy_best:.2f} % ({result.val_rows:,} images)")
    print(f"trained on {result.rows:,} rows at {result.images_per_second:,.0f} images/s")
    print(
        f"teacher calls {result.teacher_calls:,}, distinct answers used {result.charged:,},"
        f" calls of an online run {result.online_calls_equivalent:,}"
    )
    print(f"run: {out}")


def main() -> None:
    """Entry point."""
    run_command(app)


if __name__ == "__main__":
    main()
