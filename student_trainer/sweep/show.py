"""What `student-trainer sweep` does once its recipe is read: it runs and says so, or shows the plan."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from rich.console import Console

from shared.errors import UnknownNameError
from student_trainer.sweep.opening import open_plan
from student_trainer.sweep.planning import plan_lines
from student_trainer.sweep.progress import Bar, Lines
from student_trainer.sweep.recipe import Recipe
from student_trainer.sweep.run import Outcome, SweepSettings, default_jobs, run_sweep, visible_gpus

Say = Callable[[str], None]


def show_plan(recipe: Recipe, *, out: Path, device: str, say: Say) -> None:
    """Say what the sweep would do and cost."""
    for line in plan_lines(open_plan(recipe, out=out.absolute(), device=device, command="")):
        say(line)


def run_and_show(
    recipe: Recipe,
    *,
    out: Path,
    jobs: int | None,
    device: str,
    environment: Mapping[str, str],
    command: str,
    say: Say,
) -> None:
    """Run the sweep with its progress on standard error, and say what came of it."""
    if device not in {"auto", "cpu", "cuda"}:
        raise UnknownNameError(f"unknown device {device!r}; known: auto, cpu, cuda")
    gpus = visible_gpus(environment, device=device)
    settings = SweepSettings(
        recipe=recipe, out=out, jobs=jobs or default_jobs(gpus), device=device, gpus=gpus, command=command
    )
    console = Console(stderr=True)
    with Bar(console) if console.is_terminal else Lines(sys.stderr) as view:
        outcome = run_sweep(settings, view=view)
    for line in outcome_lines(outcome, out=out):
        say(line)


def outcome_lines(outcome: Outcome, *, out: Path) -> list[str]:
    """The end of a sweep in a few lines."""
    lines = [f"{outcome.trials:,} trials of {outcome.cells:,} cells, {outcome.teacher_calls:,} teacher calls in all"]
    if outcome.diverged:
        lines.append(f"diverged: {outcome.diverged:,} trials; results.jsonl names them")
    if outcome.lost:
        named = ", ".join(outcome.lost[:3]) + (", ..." if len(outcome.lost) > 3 else "")
        lines.append(f"without any result, all their trials diverged: {len(outcome.lost):,} cells ({named}); lower lr")
    return [*lines, f"results: {out}/results.jsonl; student-trainer report {out} makes the table"]
