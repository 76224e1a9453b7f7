"""What each loss costs: time as a ratio to ``kl``, memory as a multiple of its inputs, and a step of training by dist.

    python benchmarks/losses.py [--only kl,ckd] [--rounds 15] [--seconds 1.5] [--threads 1] [--no-training]

A call is forward and backward on a batch of 256 samples, 1,000 classes and features 512 wide; for losses that compare
maps, 100 classes, features 64 wide and the stages of RepDistiller's resnet20 at half of height and width (and ``kl``,
which their time is divided by, stays as it was). Every loss takes turns with ``kl``, in an order
that changes from round to round; a ratio is taken within a round, and printed as median [95 % bootstrap interval]. A
loss has --rounds rounds, or as many as --seconds allow, 3 at least. Memory is exact (tests/contract/live_memory.py):
the most that is held at once beside the loss's inputs and state. The training step is measured as in training.py.
"""

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# What makes a batch for any loss is the tests' own. The root comes first: beside this script lies one that is called as
# the package `cache` is.
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "contract"))
sys.path.insert(0, str(Path(__file__).parent.parent))
from live_memory import relative_memory
from loss_cases import LARGE, LARGE_BATCH, LARGE_WITH_MAPS, case_of, large, ready
from training import CLASSES, Setting, filled_cache, interval, settle, settled_teacher, take_turns

from shared.datasets.spec import open_dataset
from shared.teacher import load_teacher
from student_trainer.losses import LOSSES, build_loss
from student_trainer.results import device_name

TURN_S = 0.02
"""Seconds that a loss works in one turn, at least one call."""
LEAST_ROUNDS = 3
MEMORY = 4.0
"""Times its inputs that a loss may hold."""
LIMITS: Mapping[str, float] = {"ckd": 1.5, "dist": 2.0, "rkd angle=0": 3.0}
"""Times the cost of ``kl`` that a loss may cost."""
UNLIMITED = ("rkd", "crd")
"""May hold more: all angles, all rows."""
STEP = 0.95
"""Least steps per second with ``dist``, of those with ``kl``."""
Work = Callable[[], None]


def rows_of(only: Sequence[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """(label, loss, hyper-parameters) of each line."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    for name in LOSSES:
        if not only or name in only:
            found.append((name, name, {}))
            found += [("rkd angle=0", name, {"angle": 0.0})] if name == "rkd" else []
    return found


def work_of(name: str, hyper: dict[str, Any], *, device: str) -> Work:
    """Forward and backward of a loss on the same batch."""
    sizes = large(build_loss(name, **hyper))
    loss = ready(name, hyper, sizes=sizes).to(device)
    case = case_of(loss, count=LARGE_BATCH, sizes=sizes, device=device)
    leaves = [*case.student.values(), *loss.parameters()]
    keep = "head" in case.student  # those logits were computed from the inputs before

    def work() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss(case.batch).backward(retain_graph=keep)

    return work


def turn(work: Work) -> float:
    """Seconds per call."""
    settle()
    began_s, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - began_s < TURN_S:
        work()
        calls += 1
    settle()
    return (time.perf_counter() - began_s) / calls


def paired(work: Work, base: Work, *, rounds: int, seconds: float) -> tuple[list[float], list[float]]:
    """(seconds per call of ``work``, ratio to ``base``) of each round; the first one warms up."""
    own_s, ratios = [], []
    began_s = time.perf_counter()
    for number in range(rounds + 1):
        if len(ratios) >= LEAST_ROUNDS and time.perf_counter() - began_s > seconds:
            break
        first, second = (work, base) if number % 2 else (base, work)
        taken = {first: turn(first)}
        taken[second] = turn(second)
        if number:
            own_s.append(taken[work])
            ratios.append(taken[work] / taken[base])
    return own_s, ratios


def verdict(value: float, limit: float | None) -> str:
    """Whether a limit was kept."""
    if limit is None:
        return "-"
    return f"<= {limit:g}: {'reached' if value <= limit else 'MISSED'}"


def show_losses(options: argparse.Namespace) -> None:
    """One line a loss."""
    base = work_of("kl", {}, device=options.device)
    print(f"\n{'loss':14s}{'ms':>9s}  {'time / kl':28s}{'limit':18s}{'memory / inputs':>16s}  limit")
    for label, name, hyper in rows_of(options.only):
        work = work_of(name, hyper, device=options.device)
        own_s, ratios = paired(work, base, rounds=options.rounds, seconds=options.seconds)
        ratio, low, high = interval(ratios)
        sizes = large(build_loss(name, **hyper))
        loss = ready(name, hyper, sizes=sizes)
        memory = relative_memory(loss, case_of(loss, count=LARGE_BATCH, sizes=sizes))
        time_text = f"{ratio:.2f} [{low:.2f}, {high:.2f}] n={len(ratios)}"
        print(
            f"{label:14s}{1000 * sorted(own_s)[len(own_s) // 2]:9.2f}  {time_text:28s}"
            f"{verdict(ratio, LIMITS.get(label)):18s}{memory:16.2f}  "
            f"{verdict(memory, None if label in UNLIMITED else MEMORY)}",
            flush=True,
        )


def show_training(options: argparse.Namespace) -> None:
    """Steps per second of real trainings from one cache, ``dist`` against ``kl``."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(folder=Path(folder), teacher="resnet32x4", student="resnet8x4", options=options)
        teacher = str(settled_teacher(setting, images=open_dataset(f"{setting.dataset}/train")))
        given = {"cache": str(filled_cache(setting, teacher=teacher)), "expect_teacher": load_teacher(teacher).id}
        lanes = {name: setting.lane(name, loss=name, **given) for name in ("kl", "dist")}
        seconds = take_turns(lanes, rounds=options.pairs)
    ratio, low, high = interval([kl / dist for kl, dist in zip(seconds["kl"], seconds["dist"], strict=True)])
    reached = "reached" if high >= STEP else "MISSED"
    print(
        f"\ntraining resnet8x4 from a cache, {CLASSES} classes, batch {options.batch}, {options.steps} steps a turn,"
        f" n = {options.pairs}:\n  steps per second dist / kl  {ratio:.3f} [{low:.3f}, {high:.3f}]"
        f"  target {STEP}: {reached}"
    )


def main() -> None:
    """Measure and print."""
    on_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="losses between commas")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of turns that count")
    parser.add_argument("--seconds", type=float, default=1.5, help="for each loss")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if on_cuda else "cpu")
    parser.add_argument("--no-training", action="store_true", help="leave the training step out")
    parser.add_argument("--pairs", type=int, default=15, help="rounds of turns of the training")
    parser.add_argument("--steps", type=int, default=50 if on_cuda else 2, help="steps per turn of the training")
    parser.add_argument("--batch", type=int, default=64, help="of the training")
    options = parser.parse_args()
    fixed = {"precision": "float32", "compile": False, "clock": "wall"}
    options.__dict__.update(fixed)
    torch.set_num_threads(options.threads)
    print(f"command: {shlex.join(['python', *sys.argv])}")
    maps = ", ".join("x".join(map(str, shape)) for shape in LARGE_WITH_MAPS.student_maps)
    print(
        f"{device_name(torch.device(options.device))}, torch {torch.__version__}, {options.threads} threads; B ="
        f" {LARGE_BATCH}, C = {LARGE.classes}, D = {LARGE.student_width}, {LARGE.rows} rows; losses that compare maps:"
        f" C = {LARGE_WITH_MAPS.classes}, D = {LARGE_WITH_MAPS.student_width}, maps of both sides {maps};"
        " medians [95 % bootstrap interval]"
    )
    show_losses(options)
    if not options.no_training:
        show_training(options)


if __name__ == "__main__":
    main()
