"""Where answers are read from: the page cache if they fit, the disk with the kernel told so, or a copy in memory."""

import mmap
from collections.abc import Mapping
from typing import Literal

from cache.arrays import MappedArray, MemoryArray, SlotArray
from shared.errors import InputError
from shared.host_memory import host_free_bytes
from shared.sizes import readable_size

Order = Literal["random", "window"]
ORDERS: tuple[Order, ...] = ("random", "window")
"""How an epoch visits answers: in a full permutation, or by windows of neighbouring slots, kinder to a disk."""
PART_OF_MEMORY = 0.6
"""Of the memory that is free: answers that take no more are left to the page cache."""


def place_arrays(arrays: Mapping[str, SlotArray], *, in_memory: bool) -> tuple[dict[str, SlotArray], bool]:
    """The arrays as they are to be read, and whether they fit into memory; a copy is made if ``in_memory``.

    Raises `InputError` for a copy that does not fit.
    """
    size = sum(array.size_bytes for array in arrays.values())
    free = host_free_bytes()
    # Where nothing says how much is free, the kernel decides.
    fits = not free or size <= PART_OF_MEMORY * free
    if in_memory:
        if not fits:
            raise InputError(
                f"{readable_size(size)} of answers do not fit into {PART_OF_MEMORY:.0%} of the "
                f"{readable_size(free)} that are free: leave in_memory out, they are read from disk then"
            )
        return {name: MemoryArray(array.head(array.slots)) for name, array in arrays.items()}, True
    for array in arrays.values():
        if isinstance(array, MappedArray):
            # Reading ahead brings in megabytes per row where rows are asked for at random.
            array.advise(mmap.MADV_WILLNEED if fits else mmap.MADV_RANDOM)
    return dict(arrays), fits
