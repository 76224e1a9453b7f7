"""Where tests find the golden vectors and real data, and a sweep's output as the report reads it."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_path() -> Path:
    """The folder of golden vectors, published tables and real data; tests that need it skip without it."""
    path = Path(os.environ.get("TEACHONCE_SHARED", REPOSITORY.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no reference data at {path}: set TEACHONCE_SHARED")
    return path


@pytest.fixture(scope="session")
def golden_path(shared_path: Path) -> Path:
    """The golden vectors, numbers from the authors' own code."""
    return shared_path / "golden"


METHODS = {
    # Accuracy in % at 50 images, gain per doubling, spread over seeds, group; shaped like runs on digits.
    "kl": (91.0, 1.5, 0.7, "loss"),
    "mse": (90.6, 1.7, 0.7, "loss"),
    "dist": (89.8, 1.8, 0.7, "loss"),
    "ckd": (72.0, 6.0, 4.0, "loss"),
    "ckd offset=calibrate": (90.9, 1.6, 0.7, "loss"),
    "rkd": (87.0, 2.4, 0.9, "loss"),
    "crd": (87.8, 2.2, 0.9, "loss"),
    "mixup": (90.2, 1.7, 0.8, "loss"),
    "ce": (86.4, 2.5, 1.0, "loss"),
    "mse midpoint": (90.9, 1.6, 0.7, "control"),
    "mse + label mse": (90.7, 1.6, 0.7, "control"),
    "ckd no label + ce": (90.2, 1.7, 0.8, "control"),
    "label mse": (86.0, 2.6, 1.0, "control"),
}
WITHOUT_TEACHER = ("ce", "label mse", "ce (all labels)")
LEARNING_RATES = (0.1, 0.05, 0.025)


def trial_lines(
    *,
    student: str = "zoo:mlp",
    views: str = "clean",
    select: str = "random",
    budgets: Sequence[int] = (50, 100, 200, 400),
    seeds: int = 5,
    methods: Mapping[str, tuple[float, float, float, str]] = METHODS,
) -> list[dict[str, object]]:
    """What a sweep of one setting writes: method x budget x seed x learning rate, and the reference without calls."""
    cells = [(method, budget) for budget in budgets for method in methods] + [("ce (all labels)", 0)]
    lines = []
    for method, budget in cells:
        at_50, gain, spread, group = methods.get(method, (97.2, 0.0, 0.3, "reference"))
        for seed in range(seeds):
            # The subset of a seed is easy or hard for all methods alike, which is what pairing takes out.
            subset = np.random.default_rng((seed, budget)).normal(scale=0.6)
            own = np.random.default_rng((seed, budget, *method.encode())).normal(scale=spread)
            percent = at_50 + gain * math.log2(max(budget, 50) / 50) + (subset + own) * 50 / max(budget, 50)
            accuracy = round(min(percent, 100) / 100 * 360) / 360
            images = budget or 1437
            charged = 0 if method in WITHOUT_TEACHER else budget
            epochs = 120 + 10 * ((seed + len(method)) % 5)
            for lr in LEARNING_RATES:
                chosen = lr == 0.05
                lines.append(
                    {
                        "cell": f"{student.removeprefix('zoo:')}/{views}/{select}/n{budget}/{method}",
                        "student": student,
                        "views": views,
                        "select": select,
                        "budget": budget,
                        "loss": method,
                        "group": group,
                        "seed": seed,
                        "lr": lr,
                        "chosen": chosen,
                        "val_accuracy": round(accuracy - (0.0 if chosen else 0.02), 4),
                        "test_accuracy": accuracy if chosen else None,
                        "rows": images,
                        "answered_rows": charged,
                        "val_rows": math.ceil(images / 4),
                        "test_rows": 360,
                        "teacher_calls": 0,
                        "charged": charged,
                        "ledger_run": f"{views}-{select}-n{budget}-s{seed}" if charged else None,
                        "student_forwards": epochs * images,
                        "online_calls": epochs * charged,
                        "seconds": round(epochs * images / 20_000, 3),
                        "images_per_second": 20_000.0,
                        "epochs": epochs,
                        "run": f"runs/{views}-{select}-{method.replace(' ', '_')}-n{budget}-s{seed}-lr{lr}",
                    }
                )
    return lines


def sweep_header(lines: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """The sweep.json of a finished sweep that wrote these lines; rows nest, so a run pays for what is new to it."""
    runs: dict[str, dict[str, object]] = {}
    paid: dict[str, int] = {}
    for line in sorted(lines, key=lambda line: str(line["ledger_run"]).rsplit("-n")[-1].split("-")[0].zfill(9)):
        name = line["ledger_run"]
        if isinstance(name, str) and name not in runs:
            pool = "".join(name.split("-n")[0]) + name[-1]
            charged = int(str(line["charged"]))
            calls = charged - paid.get(pool, 0)
            paid[pool] = charged
            runs[name] = {"budget": charged, "attempts": calls, "teacher_calls": calls, "charged": charged}
    total = sum(int(str(run["teacher_calls"])) for run in runs.values())
    return {
        "format": 1,
        "name": "rti-digits",
        "question": "How good a student do n teacher calls buy on digits, and does comparing samples help?",
        "dataset": "digits/train",
        "command": "student-trainer sweep recipes/rti-digits.yaml --out runs/rti",
        "recipe": {"budgets": [50, 100, 200, 400]},
        "teacher": {"id": "wrn_16_2-3f9a0c11d2e4", "spec": "zoo:wrn_16_2", "test_accuracy": 0.9861},
        "classes": 10,
        "train_rows": 1437,
        "cells": len({line["cell"] for line in lines}),
        "trials": len(lines),
        "trials_per_cell": len({line["lr"] for line in lines}),
        "machine": {"device": "cpu", "threads": 1, "jobs": 2, "versions": {"torch": "2.15.0", "teachonce": "0.1.0"}},
        "ledger": {"attempts": total, "teacher_calls": total, "runs": runs},
    }


@pytest.fixture(scope="session")
def make_trials() -> Callable[..., list[dict[str, object]]]:
    """`trial_lines`: the lines of a realistic results.jsonl, to be changed by a test."""
    return trial_lines


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Writes a sweep's output folder; lines default to a whole sweep, header fields can be replaced."""

    def write(lines: Sequence[Mapping[str, object]] | None = None, **header: object) -> Path:
        written = trial_lines() if lines is None else lines
        folder = tmp_path / "sweep"
        folder.mkdir()
        (folder / "sweep.json").write_text(json.dumps(sweep_header(written) | header))
        (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in written))
        return folder

    return write
