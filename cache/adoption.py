"""Takes answers that were paid elsewhere into a cache: no calls, nobody charged, and again where it was interrupted.

Shape key: B answers of one batch.
"""

from dataclasses import dataclass

import numpy as np

from cache.answer_source import AnswerBlock, AnswerSource, slot_ranges
from cache.layout import UPLOADS, AnyArray
from cache.writer import CacheHandle, CacheWriter
from shared.errors import IdentityError

BATCH = 1024
"""Answers per transaction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Adopted:
    """What became of a source's answers."""

    new: int
    """Slots that the cache did not have."""
    known: int
    """Answers that it had already."""


def count_missing(handle: CacheHandle, *, writer: CacheWriter, source: AnswerSource) -> int:
    """Answers of a source that a cache does not have; raises `IdentityError` where rows show other pixels there."""
    return sum(
        len(_missing(handle, writer=writer, block=source.block(slots), name=source.name))
        for slots in slot_ranges(source.num_slots, size=BATCH)
    )


def adopt_answers(handle: CacheHandle, *, writer: CacheWriter, source: AnswerSource) -> Adopted:
    """Keep all answers of a source; those that are there already stay as they are."""
    new = 0
    for slots in slot_ranges(source.num_slots, size=BATCH):
        block = source.block(slots)
        missing = _missing(handle, writer=writer, block=block, name=source.name)
        if not len(missing):
            continue
        before = handle.num_slots
        writer.adopt(
            handle,
            keys=block.keys[missing],
            # Uploads are numbered as they come: a row of elsewhere means nothing here.
            rows=np.full(len(missing), -1) if handle.dataset.name == UPLOADS else block.rows[missing],
            views=block.views[missing],
            labels=block.labels[missing],
            outputs={name: values[missing] for name, values in block.outputs.items()},
        )
        new += handle.num_slots - before
    return Adopted(new=new, known=source.num_slots - new)


def _missing(handle: CacheHandle, *, writer: CacheWriter, block: AnswerBlock, name: str) -> AnyArray:
    """Which answers [B] of a block the cache does not have."""
    if handle.dataset.name == UPLOADS:
        known = [writer.find(handle.teacher.id, bytes(key), cache=handle) is not None for key in block.keys]
        return np.flatnonzero(~np.array(known, dtype=np.bool_))
    places = [handle.place_of(row, view) for row, view in zip(block.rows.tolist(), block.views.tolist(), strict=True)]
    there = np.array([place is not None for place in places], dtype=np.bool_)
    kept = [place for place in places if place is not None]
    if kept:
        keys = writer.read(kept, ["keys"])["keys"]
        wrong = np.flatnonzero((keys != block.keys[there]).any(axis=1))
        if len(wrong):
            at = np.flatnonzero(there)[wrong[0]]
            raise IdentityError(
                f"row {block.rows[at]} view {block.views[at]} of {handle.dataset.name} shows other pixels in {name} "
                "than in the cache: answers about other images do not belong together"
            )
    return np.flatnonzero(~there)
