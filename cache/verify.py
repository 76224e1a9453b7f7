"""Re-reads a cache and says what is wrong with it: checksums, lengths, values that are not finite."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cache.arrays import open_array
from cache.catalog import CatalogEntry, read_catalog
from cache.checksum import check_segments, read_segments
from cache.layout import BLOCK_SLOTS, INDEX_ARRAYS, ArraySpec
from shared.errors import CorruptCacheError


def find_damage(path: Path) -> Iterator[str]:
    """One line per finding, none for a sound cache; reads every folded byte, writes nothing.

    Raises `InputError` for a folder that is no cache.
    """
    for entry in read_catalog(path):
        for spec in (*entry.specs, *INDEX_ARRAYS):
            yield from _damage_of_array(entry, spec=spec)


def _damage_of_array(entry: CatalogEntry, *, spec: ArraySpec) -> Iterator[str]:
    folder = entry.folder / spec.name
    try:
        _, slots, array = open_array(folder)
        if slots != entry.slots:
            yield f"{folder} has {slots} slots, its group says {entry.slots}"
        values = array.head(slots)
        # Block by block: a finding names its slots, and the next block is looked at all the same.
        for first in range(0, slots, BLOCK_SLOTS):
            block = values[first : first + BLOCK_SLOTS]
            if spec.dtype.startswith("float") and not np.isfinite(block).all():
                yield f"{folder} holds values that are not finite in slots {first} to {first + len(block) - 1}"
            try:
                check_segments(folder, first=first, values=block)
            except CorruptCacheError as error:
                yield str(error)
        beyond = [segment for segment in read_segments(folder) if segment.end > slots]
        if beyond:
            yield f"{folder} has checksums for slots up to {beyond[-1].end - 1}, but only {slots} slots"
    except CorruptCacheError as error:
        yield str(error)
