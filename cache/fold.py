"""Moves answers from the journal into Zarr, block by block.

Chunk files first (beside, fsync, rename, fsync), then one transaction moves the mark: that is the commit point.
Shapes follow. Interrupted before it, a fold leaves bytes that nobody counts; after it, shapes that recovery lifts.
"""

from pathlib import Path

from cache.atomic_file import sync_folder, write_atomic
from cache.checksum import add_segment, check_segments, drop_segments
from cache.handle import CacheHandle
from cache.journal import move_mark
from cache.layout import BLOCK_SLOTS, AnyArray, ArraySpec
from cache.ledger import Ledger


def fold_block(handle: CacheHandle, *, ledger: Ledger) -> None:
    """Fold what the first block that is not whole holds; the caller publishes the documents.

    Raises `DiskFullError`; nothing is lost then.
    """
    first, end = handle.folded, min(handle.tail.start + BLOCK_SLOTS, handle.tail.end)
    # Nothing is left to write where an earlier fold failed between the mark and the mapping.
    if first < end:
        _write_block(handle, first=first, end=end)
        with ledger.transaction() as database:
            move_mark(database, cache=handle.index, folded=end)
        handle.folded = end
    if end == handle.tail.start + BLOCK_SLOTS:
        handle.read_from_disk(before=end)


def _write_block(handle: CacheHandle, *, first: int, end: int) -> None:
    for spec in handle.arrays:
        folder = handle.folder / spec.name
        block = handle.tail.values(spec.name, first=handle.tail.start, end=end)
        write_chunks(folder, spec=spec, block=block, start=handle.tail.start, first=first)
        add_segment(folder, first=first, values=block[first - handle.tail.start :])
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
