"""Moves answers of one cache from the journal into Zarr, block by block, beside those who commit and read.

Chunk files first (beside, fsync, rename, fsync), then one transaction moves the mark: that is the commit point.
Shapes follow. Interrupted before it, a fold leaves bytes that nobody counts; after it, shapes that recovery lifts, and
journal entries that nobody reads. The writer's lock is held for moments only: to look, to move the mark, to forget.
"""

from pathlib import Path
from threading import RLock

from cache.atomic_file import sync_folder, write_atomic
from cache.checksum import add_segment, check_segments, drop_segments
from cache.handle import CacheHandle
from cache.journal import folded_entry, forget_entries, move_mark
from cache.layout import BLOCK_SLOTS, AnyArray, ArraySpec
from cache.ledger import Ledger
from cache.tail import Tail

FORGOTTEN_AT_ONCE = 256
"""Journal entries dropped in one transaction; those of a block together would keep everyone waiting."""


def fold_block(handle: CacheHandle, *, ledger: Ledger, lock: RLock) -> None:
    """Fold what the first block that is not whole holds; the caller publishes the documents, and folds alone.

    ``lock`` is the writer's, and not held by the caller. Raises `DiskFullError`; nothing is lost then.
    """
    with lock:
        first, tail = handle.folded, handle.tail.frozen()
    end = min(tail.start + BLOCK_SLOTS, tail.end)
    # Nothing is left to write where an earlier fold failed between the mark and the mapping.
    if first < end:
        _write_block(handle, tail=tail, first=first, end=end)
        with lock:
            with ledger.transaction() as database:
                move_mark(database, cache=handle.index, folded=end)
            handle.folded = end
    if end == tail.start + BLOCK_SLOTS:
        whole = handle.map_before(end)
        with lock:
            handle.read_from_disk(whole, before=end)
    _forget_folded(handle, ledger=ledger, lock=lock)


def _forget_folded(handle: CacheHandle, *, ledger: Ledger, lock: RLock) -> None:
    """Drop journal entries that are in Zarr, some at a time."""
    while True:
        with lock:
            first = folded_entry(ledger.database, cache=handle.index, folded=handle.folded)
            if first is None:
                return
            with ledger.transaction() as database:
                end = min(first + FORGOTTEN_AT_ONCE, handle.folded)
                forget_entries(database, cache=handle.index, end=end)


def _write_block(handle: CacheHandle, *, tail: Tail, first: int, end: int) -> None:
    for spec in handle.arrays:
        folder = handle.folder / spec.name
        block = tail.values(spec.name, first=tail.start, end=end)
        write_chunks(folder, spec=spec, block=block, start=tail.start, first=first)
        add_segment(folder, first=first, values=block[first - tail.start :])
        sync_folder(folder)


def write_chunks(folder: Path, *, spec: ArraySpec, block: AnyArray, start: int, first: int) -> None:
    """Write the chunk files of a block that begins at slot ``start``, from the chunk that holds slot ``first`` on."""
    end = start + len(block)
    for chunk in range(first // spec.chunk_slots, -(-end // spec.chunk_slots)):
        begin = chunk * spec.chunk_slots - start
        data = block[begin : begin + spec.chunk_slots].data.cast("B")
        padding = bytes(spec.chunk_bytes - len(data))
        write_atomic(folder / spec.chunk_name(chunk), [data, padding])


def recover_block(handle: CacheHandle) -> None:
    """Load the folded part of the block that is not whole, checked, and forget checksums beyond the mark."""
    for spec in handle.arrays:
        drop_segments(handle.folder / spec.name, beyond=handle.folded)
    if handle.folded > handle.tail.start:
        handle.tail.extend({spec.name: _read_block(handle, spec=spec) for spec in handle.arrays})


def _read_block(handle: CacheHandle, *, spec: ArraySpec) -> AnyArray:
    folder, start = handle.folder / spec.name, handle.tail.start
    values = handle.open_folded(spec).head(handle.folded)[start:].copy()
    check_segments(folder, first=start, values=values)
    return values
