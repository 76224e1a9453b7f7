"""Reads the options and runs the parts."""

import argparse
import os
import resource
import shlex
import sys

import numpy as np
import zarr
from bench_epoch import measure_epoch
from bench_gather import measure_gather
from bench_memory import measure_memory
from bench_open import measure_open
from bench_store import Size
from bench_turns import CLOCKS
from bench_write import measure_write


def main(description: str) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="50000x100xfloat32,200000x1000xfloat16")
    parser.add_argument("--batches", default="64,256,1024")
    parser.add_argument("--open-slots", default="50000,1280000")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="gather,epoch,open,write,memory")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: where others use the machine too")
    options = parser.parse_args()
    clock = CLOCKS[options.clock]
    print(f"command: {shlex.join(['python', *sys.argv])}")
    print(
        f"numpy {np.__version__}, zarr {zarr.__version__}, {os.cpu_count()} cores, n = {options.rounds} rounds,"
        f" {options.clock} clock"
    )
    chosen = options.only.split(",")
    if "gather" in chosen:
        for text in options.sizes.split(","):
            batches = [int(batch) for batch in options.batches.split(",")]
            measure_gather(Size.read(text), batches=batches, rounds=options.rounds, clock=clock)
    if "epoch" in chosen:
        for text in options.sizes.split(","):
            measure_epoch(Size.read(text), rounds=options.rounds)
    if "open" in chosen:
        measure_open([int(slots) for slots in options.open_slots.split(",")], rounds=options.rounds, clock=clock)
    if "write" in chosen:
        measure_write(rounds=options.rounds)
    if "memory" in chosen:
        measure_memory(rounds=options.rounds)
    print(f"\nresident at most: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
