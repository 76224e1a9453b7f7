"""The main job in one go: train a teacher, serve it, ask once per image, train students from the cache, compare."""

import platform
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from shared.client import TeacherClient
from shared.datasets.spec import open_dataset
from shared.errors import InputError, TeachonceError
from shared.identity import sample_rows
from student_trainer.config import TrainConfig
from student_trainer.loop import RunResult, train
from student_trainer.reporting.comparison import Comparison, LossResult
from student_trainer.server_process import serving

DATASET = "digits"
TRAIN_SPLIT = "digits/train"
TEACHER_NETWORK = "zoo:wrn_16_2"
STUDENT_NETWORK = "zoo:resnet8"
LOSSES: tuple[tuple[str, Mapping[str, object]], ...] = (
    ("ce", {}),
    ("kl", {}),
    ("mse", {}),
    ("dist", {}),
    ("ckd", {}),
    ("ckd", {"offset": "calibrate"}),
)
"""What is compared: a loss and the hyper-parameters that differ from its defaults."""

MARKER = ".teachonce-demo"
"""An empty file that says: everything in this folder was made by a demo."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """Size of the demo; the defaults end in under three minutes on two cores."""

    out: Path
    """Folder for everything the demo makes."""
    count: int = 200
    """Images that the teacher is asked about."""
    seeds: int = 3
    """Trainings per loss."""
    epochs: int = 40
    """Passes of a student over the images."""
    teacher_epochs: int = 12
    """Passes of the teacher over the whole training set."""
    threads: int | None = None
    """CPU threads of torch; None: torch's own choice."""
    command: str = "student-trainer demo"
    """What was typed, for the page."""


class DemoError(TeachonceError):
    """The demo did not do what it exists to show."""

    code = "demo_failed"


def run_demo(settings: DemoSettings, *, say: Say) -> Comparison:
    """Run every step from nothing and return the comparison; ``say`` gets one line per step."""
    _clear(settings.out)
    teacher = _train_teacher(settings)
    say(f"teacher {TEACHER_NETWORK}: {100 * teacher.test_accuracy:.2f} % on {DATASET}/test")
    cache = settings.out / "cache"
    calls = _ask_once(settings, cache=cache, say=say)
    results = tuple(_train_students(settings, cache=cache, loss=loss, hyper=hyper, say=say) for loss, hyper in LOSSES)
    return _comparison(settings, teacher=teacher, results=results, calls=calls)


def _clear(out: Path) -> None:
    """Remove what an earlier demo left in ``out``; anything else there is not ours to remove."""
    marker = out / MARKER
    if out.exists() and any(out.iterdir()):
        if not marker.exists():
            raise InputError(f"{out} holds something that no demo made; choose another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _train_teacher(settings: DemoSettings) -> RunResult:
    return train(
        TrainConfig(
            loss="ce",
            dataset=DATASET,
            student=TEACHER_NETWORK,
            epochs=settings.teacher_epochs,
            val=0.0,
            out=settings.out / "teacher",
            threads=settings.threads,
            command=settings.command,
        )
    )


def _ask_once(settings: DemoSettings, *, cache: Path, say: Say) -> int:
    """Ask a real server about the sampled rows, twice; returns the teacher calls that its ledger counts."""
    rows = sample_rows(num_rows=open_dataset(TRAIN_SPLIT).num_rows, count=settings.count, seed=0).tolist()
    checkpoint = settings.out / "teacher" / "last.safetensors"
    options = [f"--teacher={checkpoint}", f"--dataset={DATASET}", f"--cache={cache}", f"--budget={settings.count}"]
    with serving(options, log=settings.out / "server.log") as client:
        first = _ask(client, rows)
        again = _ask(client, rows)
        calls = int(client.ledger()["teacher_calls"])
    say(f"asked {len(rows)} rows over HTTP: {first} teacher calls; again: {again}; ledger: {calls}; server stopped")
    if again != 0 or calls != first:
        raise DemoError(f"expected no second call, got {again}; the ledger counts {calls} after {first}")
    return calls


def _ask(client: TeacherClient, rows: Sequence[int]) -> int:
    return client.logits(TRAIN_SPLIT, rows, outputs=("logits", "features")).teacher_calls


def _train_students(
    settings: DemoSettings, *, cache: Path, loss: str, hyper: Mapping[str, object], say: Say
) -> LossResult:
    label = " ".join([loss, *(f"{name}={value}" for name, value in hyper.items())])
    runs = [
        train(
            TrainConfig(
                loss=loss,
                hyper=hyper,
                cache=None if loss == "ce" else str(cache),
                dataset=DATASET,
                student=STUDENT_NETWORK,
                student_views="clean",
                sample=settings.count,
                epochs=settings.epochs,
                val=0.0,
                seed=seed,
                tensorboard=False,
                out=settings.out / "students" / label.replace(" ", "-") / f"seed-{seed}",
                threads=settings.threads,
                command=settings.command,
            )
        )
        for seed in range(settings.seeds)
    ]
    result = LossResult(
        label=label,
        accuracies=tuple(run.test_accuracy for run in runs),
        images_per_second=statistics.fmean(run.images_per_second for run in runs),
        teacher_calls=sum(run.teacher_calls for run in runs),
        charged=runs[0].charged,
        online_calls=runs[0].online_calls_equivalent,
    )
    say(f"{label}: {100 * result.mean:.2f} ± {100 * result.std:.2f} %")
    return result


def _comparison(
    settings: DemoSettings, *, teacher: RunResult, results: tuple[LossResult, ...], calls: int
) -> Comparison:
    return Comparison(
        title=f"Students from {calls} teacher calls",
        question=f"How well does {STUDENT_NETWORK} learn {DATASET} from {settings.count} images, "
        "with and without what the teacher said about them?",
        results=results,
        teacher_accuracy=teacher.test_accuracy,
        facts=_facts(
            settings,
            teacher=teacher,
            calls=calls,
            online=settings.seeds * sum(result.online_calls for result in results),
        ),
        notes=(
            "All rows of the table learn from the same images; ce sees their labels only.",
            "ckd compares images with each other, so it leaves one constant per class free; offset=calibrate sets it "
            "after training from the same answers, at no call.",
            f"{settings.seeds} seeds show a direction, not a ranking: intervals that overlap are not told apart.",
        ),
    )


def _facts(settings: DemoSettings, *, teacher: RunResult, calls: int, online: int) -> tuple[tuple[str, str], ...]:
    accuracy = f"{100 * teacher.test_accuracy:.2f} % on the test split"
    threads = settings.threads or torch.get_num_threads()
    return (
        ("teacher", f"{TEACHER_NETWORK}, trained on all of {TRAIN_SPLIT}, {accuracy}"),
        ("student", f"{STUDENT_NETWORK}, {settings.epochs} epochs over {settings.count} rows (sample seed 0)"),
        ("accuracy", "at the last epoch; no validation split, nothing chosen on the test split"),
        ("views", "teacher and student see the same clean pixels (view 0)"),
        ("teacher calls", f"{calls} in the ledger, for all runs together; with the teacher in the loop: {online:,}"),
        ("seeds", f"0 to {settings.seeds - 1}: initialisation and order; the rows are the same"),
        (
            "machine",
            f"{platform.machine()}, {threads} torch threads, torch {torch.__version__}",
        ),
        ("command", settings.command),
    )
