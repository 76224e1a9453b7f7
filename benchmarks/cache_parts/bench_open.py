"""How long opening takes, and how a row's cost grows with the slots."""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_store import Size, describe, make_store
from bench_turns import Clock, interval, take_turns

from cache.reader import CacheReader
from cache.writer import CacheWriter


def measure_open(slots: list[int], *, rounds: int, clock: Clock) -> None:
    """Opening, and how a gathered row's cost grows with the slots."""
    print("\nopen and growth (8 classes): seconds to open, process time; microseconds per gathered row, batch 256")
    for count in slots:
        with tempfile.TemporaryDirectory() as name:
            size = Size(slots=count, classes=8, dtype="float16")
            make_store(Path(name) / "cache", size=size)
            wall, cpu, writer = [], [], []
            for _ in range(5):
                began = time.perf_counter(), time.process_time()
                reader = CacheReader.open(Path(name) / "cache")
                wall.append(time.perf_counter() - began[0])
                cpu.append(time.process_time() - began[1])
                began_s = time.perf_counter()
                with CacheWriter.open(Path(name) / "cache") as opened:
                    opened.open_cache(*describe(size))
                    writer.append(time.perf_counter() - began_s)
            rows = np.arange(count)
            rates = take_turns({"gather": reader.gather}, rows=rows, batch=256, rounds=rounds, clock=clock)["gather"]
            print(
                f"  {count:9d} slots: reader {statistics.median(wall):.3f} s (cpu {statistics.median(cpu):.3f}), writer"
                f" {statistics.median(writer):.3f} s; {interval([1e6 / rate for rate in rates])} us per row"
            )
