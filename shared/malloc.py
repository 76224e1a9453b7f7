"""Lets glibc keep memory that a network's forward frees and takes again with every batch.

By default glibc takes every large block from the kernel and gives it back, so every batch pays for the same pages anew.
"""

import ctypes
import platform
from collections.abc import Iterable

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Numbers of malloc.h."""
TRIM_BYTES = 2**31 - 1
"""The most that mallopt can be told: below it, free memory at the top of the heap is not given back."""
MMAP_BYTES = (2**30, 2**25)
"""Blocks up to here come from the heap; older glibc accepts the smaller one only."""
OWN_CHOICE = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""How variables begin by which a user has chosen already, or has put another allocator in glibc's place."""


def keep_freed_memory(environment: Iterable[str]) -> bool:
    """Set this process's thresholds; whether that was done: not outside glibc, nor where the user has chosen.

    ``environment``: names of its variables. To be called before threads start: there is one heap for all of them then,
    since those of single threads are at most 64 MB and are given back whatever the thresholds say.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(OWN_CHOICE) for name in environment):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    kept = any(mallopt(M_MMAP_THRESHOLD, size_bytes) for size_bytes in MMAP_BYTES)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, TRIM_BYTES) and mallopt(M_ARENA_MAX, 1))
