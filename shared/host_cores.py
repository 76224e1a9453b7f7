"""How many cores this process may use."""

import os


def usable_cores() -> int:
    """1 or more. Linux says which cores are this process's; elsewhere all are counted."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
