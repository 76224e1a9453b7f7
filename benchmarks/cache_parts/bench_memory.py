"""Stores larger than the memory that their reader may use, under a real limit."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from bench_store import Size, make_store
from bench_turns import interval

LIMIT_BYTES = 192 * 2**20
"""Memory of the group in which a store three times as large is read."""
GROUPS = Path("/sys/fs/cgroup")

READ_MEMORY = """
import sys, time
import numpy as np
from cache.reader import CacheReader
path, side, seconds, raw, slots, classes = sys.argv[1], sys.argv[2], float(sys.argv[3]), *sys.argv[4:]
slots, classes = int(slots), int(classes)
rows = np.random.default_rng(0).permutation(slots)
began, done = time.perf_counter(), 0
if side in ("random", "window"):
    reader = CacheReader.open(path, order=side)
    for at, _ in reader.epoch(rows):
        done += len(at)
        if time.perf_counter() - began > seconds: break
else:
    mapped = np.memmap(raw, dtype=np.float16, mode="r", shape=(slots, classes))
    order = np.arange(slots) if side == "scan" else rows
    for start in range(0, slots, 256):
        done += len(mapped[order[start : start + 256]])
        if time.perf_counter() - began > seconds: break
# Not ru_maxrss, which remembers the process before exec.
resident = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(done / (time.perf_counter() - began), resident * 1024)
"""


def measure_memory(*, rounds: int) -> None:
    """A store of three times the memory that its reader may use."""
    group, limit = memory_group()
    print(f"\nlarger than memory: store of three times a limit of {LIMIT_BYTES // 2**20} MiB")
    try:
        group.mkdir(exist_ok=True)
        limit.write_text(str(LIMIT_BYTES))
    except OSError as error:
        print(f"  skipped: no memory cgroup can be made here ({error})")
        return
    size = Size(slots=3 * LIMIT_BYTES // 4096, classes=2048, dtype="float16")
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:
        make_store(Path(name) / "cache", size=size)
        with (Path(name) / "raw").open("wb") as raw:
            for first, count in size.blocks():
                raw.write(size.values(first, count).tobytes())
        rates: dict[str, list[float]] = {"scan": [], "window": [], "random": [], "memmap": []}
        for _ in range(max(3, rounds // 5)):
            for side, found in rates.items():
                drop_pages(Path(name))
                arguments = [str(Path(name) / "cache"), side, "4", str(Path(name) / "raw"), str(size.slots), "2048"]
                command = f'echo $$ > {group}/cgroup.procs; exec {sys.executable} -c "$SCRIPT" {shlex.join(arguments)}'
                environment = os.environ | {"SCRIPT": READ_MEMORY}
                done = subprocess.run(
                    ["sh", "-c", command], check=True, capture_output=True, text=True, env=environment
                )
                rate, resident = (float(word) for word in done.stdout.split())
                found.append(rate)
                print(f"    {side:8s}{rate:12,.0f} rows/s, {resident / 2**20:.0f} MiB resident at most")
        for first, second, reach in (("window", "scan", 0.8), ("random", "memmap", 50)):
            ratios = [a / b for a, b in zip(rates[first], rates[second], strict=True)]
            print(f"    {first} / {second}: {interval(ratios)} (to reach: {reach})")
    group.rmdir()


def memory_group() -> tuple[Path, Path]:
    """The folder of a new group, and the file that its limit is written into; version 1 or 2."""
    if (GROUPS / "memory").is_dir():
        group = GROUPS / "memory" / "teachonce-bench"
        return group, group / "memory.limit_in_bytes"
    group = GROUPS / "teachonce-bench"
    return group, group / "memory.max"


def drop_pages(folder: Path) -> None:
    """Forget the page cache of every file below a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fdatasync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
