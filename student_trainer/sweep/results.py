"""What a sweep publishes: a line for every trial, and the header over all of them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from shared.datasets.base import ImageDataset
from student_trainer.sweep.asking import Asked
from student_trainer.sweep.cells import Grid, Trial
from student_trainer.sweep.tasks import Result
from student_trainer.sweep.trials import Setting

FORMAT = 1
TIMING = ("seconds", "images_per_second")
"""Fields of a line that differ from machine to machine; all others are the same wherever and however often it runs."""


def result_row(trial: Trial, result: Result, *, setting: Setting, chosen: bool) -> dict[str, Any]:
    """A line of results.jsonl."""
    cell = trial.cell
    return {
        "cell": str(cell.path),
        "student": cell.student,
        "views": cell.views.name,
        "select": cell.select,
        "budget": cell.budget,
        "loss": cell.loss.label,
        "group": cell.loss.group,
        "seed": trial.seed,
        "lr": trial.lr,
        "chosen": chosen,
        "diverged": "diverged" in result,
        "val_accuracy": result.get("val_accuracy_best"),
        "test_accuracy": _test_accuracy(result) if chosen else None,
        "rows": result.get("rows", setting.rows_of(cell)),
        "answered_rows": result.get("answered_rows", 0),
        "val_rows": result.get("val_rows", 0),
        "test_rows": result.get("test_rows", 0) if chosen else 0,
        "teacher_calls": result.get("teacher_calls", 0),
        "charged": result.get("charged", 0),
        "ledger_run": setting.ledger_run(trial) if result.get("teacher") is not None else None,
        "student_forwards": result.get("student_forwards", 0),
        "online_calls": result.get("online_calls_equivalent", 0),
        "seconds": result.get("seconds", 0.0),
        "images_per_second": result.get("images_per_second", 0.0),
        "epochs": result.get("epochs", 0),
        "run": f"runs/{trial.path}",
    }


def score_of(result: Result) -> float | None:
    """What a learning rate is chosen by: the validation accuracy, 0 where none was measured, None where it diverged."""
    return None if "diverged" in result else float(result["val_accuracy_best"] or 0.0)


def is_tested(result: Result) -> bool:
    """Whether nothing is left to do for a trial that was chosen."""
    return "diverged" in result or result["test_accuracy_last"] is not None


def _test_accuracy(result: Result) -> float | None:
    """At the best validation, else at the end; None before the test."""
    best: float | None = result.get("test_accuracy_best")
    return result.get("test_accuracy_last") if best is None else best


def sweep_header(
    grid: Grid,
    *,
    setting: Setting,
    asked: Asked,
    teacher_accuracy: float | None,
    dataset: ImageDataset,
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """sweep.json."""
    recipe = grid.recipe
    teacher = recipe.teacher
    return {
        "format": FORMAT,
        "name": recipe.name,
        "question": recipe.question,
        "dataset": recipe.dataset,
        "command": setting.command,
        "recipe": recipe.resolved(),
        "teacher": {
            "id": asked.teacher,
            "spec": teacher.spec or teacher.server or str(teacher.cache),
            "test_accuracy": teacher_accuracy,
        },
        "classes": len(dataset.classes),
        "train_rows": dataset.num_rows,
        "cells": len(grid.cells),
        "trials": len(list(grid.trials())),
        "trials_per_cell": len(recipe.lr),
        "machine": dict(machine),
        "ledger": {
            "attempts": asked.attempts,
            "teacher_calls": asked.teacher_calls,
            # That of a running server, or of a cache that somebody else filled, counts the calls of others as well.
            "own": teacher.spec is not None,
            "runs": {name: asdict(run) for name, run in asked.runs.items()},
        },
    }
