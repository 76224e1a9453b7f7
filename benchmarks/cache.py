"""How fast a cache reads and writes, side by side with NumPy, np.memmap, zarr-python and LMDB (pip install '.[bench]').

    python benchmarks/cache.py [--sizes 50000x100xfloat32,200000x1000xfloat16] [--batches 64,256,1024] [--rounds 15]
        [--only gather,epoch,open,write,memory] [--open-slots 50000,1280000] [--clock wall|cpu]

Sides take turns in an order that changes from round to round, on the same rows; ratios are taken within a round, and
printed as median [95 % bootstrap interval]. tensorstore and h5py take part where they are installed. The default takes
about two minutes; 1280000x1000xfloat16 needs 8 GB of disk and memory. ``memory`` measures a store of three times a
cgroup's limit; skipped where no cgroup can be made.
"""

import importlib
import sys
from pathlib import Path

# This file has the name of the package that it measures: its parts' folder is searched in place of its own.
sys.path[0] = str(Path(__file__).parent / "cache_parts")
if __name__ == "__main__":
    importlib.import_module("bench_main").main(__doc__)
elif __name__ == "cache":
    # A benchmark beside this file wants the package, and has found this first.
    del sys.modules["cache"]
    importlib.import_module("cache")
