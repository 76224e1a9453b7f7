"""A whole epoch through the reader beside a bare loop, and the slowest gathers while other processes use every core."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from bench_store import Size, make_store
from bench_turns import Gather, interval

from cache.reader import CacheReader

BATCH = 256
GATHERS = 4000
BUSY = "while True: pass"


def measure_epoch(size: Size, *, rounds: int) -> None:
    """`CacheReader.epoch` against gathering the same batches in a loop; p99 of a gather, alone and on busy cores."""
    with tempfile.TemporaryDirectory() as name:
        make_store(Path(name) / "cache", size=size)
        reader = CacheReader.open(Path(name) / "cache")
        rows = np.arange(size.slots)
        order = np.random.default_rng(0).permutation(size.slots)

        def through_epoch() -> None:
            for _ in reader.epoch(rows, batch=BATCH, outputs="logits"):
                pass

        def bare() -> None:
            for start in range(0, len(order), BATCH):
                reader.gather(order[start : start + BATCH], outputs="logits")

        through_epoch()
        pairs = []
        for number in range(rounds):
            turns = (through_epoch, bare) if number % 2 else (bare, through_epoch)
            took = {turn: _seconds(turn) for turn in turns}
            pairs.append(took[bare] / took[through_epoch])
        print(f"\nepoch: {size.slots} slots x {size.classes} {size.dtype}, batch {BATCH}")
        print(f"    epoch / bare gather loop: {interval(pairs)} (to reach: 0.8)")
        memory = np.concatenate([size.values(first, count) for first, count in size.blocks()])
        # Beside the reader an array in memory: what both show is the scheduler, which gives each process its turn.
        sides: dict[str, Gather] = {
            "gather": lambda rows: reader.gather(rows, outputs="logits"),
            "NumPy in memory": lambda rows: memory[rows],
        }
        _print_slowest(sides, order=order, what="alone")
        busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(os.cpu_count() or 1)]
        try:
            _print_slowest(sides, order=order, what=f"beside {len(busy)} busy processes")
        finally:
            for process in busy:
                process.kill()
                process.wait()


def _print_slowest(sides: Mapping[str, Gather], *, order: np.ndarray, what: str) -> None:
    rng = np.random.default_rng(1)
    batches = [rng.choice(order, BATCH) for _ in range(64)]
    took: dict[str, list[float]] = {name: [] for name in sides}
    for at in range(GATHERS):
        for name, side in sides.items():
            took[name].append(_seconds(lambda side=side, at=at: side(batches[at % len(batches)])))
    for name, found in took.items():
        median, slow = statistics.median(found), sorted(found)[int(0.99 * len(found))]
        print(
            f"    {name} {what}: median {1e6 * median:.0f} us, p99 {1e6 * slow:.0f} us, {slow / median:.1f} times"
            " (to stay within: 10)"
        )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
