"""Durable commits, and folding."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_store import Size, describe
from bench_turns import interval

from cache.handle import CacheHandle
from cache.writer import AnswerBatch, CacheWriter


def measure_write(*, rounds: int) -> None:
    """Durable commits against a bare log, grouped single rows against rows alone, folding."""
    size = Size(slots=10**6, classes=1000, dtype="float16")
    values = size.values(0, 256)
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as name, CacheWriter.open(Path(name) / "cache") as writer:
        handle = writer.open_cache(*describe(size), {"logits": "float16"})
        next_row = iter(range(0, 10**6))
        log = os.open(Path(name) / "log", os.O_WRONLY | os.O_CREAT)

        def items(count: int) -> AnswerBatch:
            rows = [next(next_row) for _ in range(count)]
            return AnswerBatch(
                cache=handle,
                run=None,
                reservation=None,
                keys=rng.integers(0, 256, (count, 32), dtype=np.uint8),
                rows=rows,
                views=[0] * count,
                labels=[0] * count,
                outputs={"logits": values[:count].astype(np.float32)},
            )

        def raw(data: bytes) -> None:
            os.write(log, data)
            os.fdatasync(log)

        rates: dict[str, list[float]] = {"commit 256": [], "log 256": [], "grouped 16": [], "alone 16": []}
        for _ in range(rounds):
            batch, singles, more = items(256), [items(1) for _ in range(16)], [items(1) for _ in range(16)]
            data = b"".join(values[at].tobytes() + bytes(56) for at in range(256))
            work: list[tuple[str, int, Callable[[], object]]] = [
                ("commit 256", 256, lambda batch=batch: writer.commit_all([batch])),
                ("log 256", 256, lambda data=data: raw(data)),
                ("grouped 16", 16, lambda singles=singles: writer.commit_all(singles)),
                ("alone 16", 16, lambda more=more: [writer.commit_all([one]) for one in more]),
            ]
            for what, count, do in work:
                began = time.perf_counter()
                do()
                rates[what].append(count / (time.perf_counter() - began))
        print("\nwrite (1000 classes float16): durable rows per second")
        for what, found in rates.items():
            print(f"    {what:28s}{statistics.median(found):12,.0f}")
        for first, second, reach in (("commit 256", "log 256", 0.2), ("grouped 16", "alone 16", 3)):
            ratios = [a / b for a, b in zip(rates[first], rates[second], strict=True)]
            print(f"    {first} / {second}: {interval(ratios)} (to reach: {reach})")
        print(f"    fold: {measure_fold(writer, handle):,.0f} rows/s")


def measure_fold(writer: CacheWriter, handle: CacheHandle) -> float:
    """Rows per second from the journal into Zarr."""
    waiting = handle.num_slots - handle.folded
    began = time.perf_counter()
    writer.fold()
    return waiting / (time.perf_counter() - began)
