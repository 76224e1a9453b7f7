"""Whether several sources say the same about the same pixels, to the byte.

Shape key: B answers of one block.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cache.answer_source import AnswerSource, slot_ranges
from cache.key_index import KeyIndex
from cache.ledger_schema import SLOT_BITS
from shared.errors import IdentityError

SLOT_MASK = (1 << SLOT_BITS) - 1

Ints = NDArray[np.int64]


def check_agreement(sources: Sequence[AnswerSource]) -> None:
    """Raise `IdentityError` naming the first key that two sources of one teacher answer with other bytes."""

    def key_of(number: int) -> bytes:
        slot = np.array([number & SLOT_MASK], dtype=np.int64)
        return sources[number >> SLOT_BITS].keys(slot).tobytes()

    index = KeyIndex(key_of)
    for at, source in enumerate(sources):
        for slots in slot_ranges(source.num_slots):
            firsts = _firsts(index, source.keys(slots), number=(at << SLOT_BITS) + int(slots[0]))
            for other in sorted(set((firsts >> SLOT_BITS).tolist()) - {-1, at}):
                shared = (firsts >> SLOT_BITS) == other
                _compare(sources[other], firsts[shared] & SLOT_MASK, source, slots[shared])


def _firsts(index: KeyIndex, keys: NDArray[np.uint8], *, number: int) -> Ints:
    """Number of the first answer to each key [B], -1 where it is this one: remembered."""
    firsts = np.full(len(keys), -1, dtype=np.int64)
    for at, key in enumerate(map(bytes, keys)):
        found = index.get(key)
        if found is None:
            index.add(key, number + at)
        else:
            firsts[at] = found
    return firsts


def _compare(ours: AnswerSource, our_slots: Ints, theirs: AnswerSource, their_slots: Ints) -> None:
    mine, other = ours.block(our_slots), theirs.block(their_slots)
    for name in sorted(mine.outputs.keys() & other.outputs.keys()):
        if mine.outputs[name].dtype != other.outputs[name].dtype:
            continue
        width = max(1, mine.outputs[name][:1].nbytes)
        left, right = (
            np.ascontiguousarray(values).view(np.uint8).reshape(-1, width)
            for values in (mine.outputs[name], other.outputs[name])
        )
        wrong = np.flatnonzero((left != right).any(axis=1))
        if len(wrong):
            at = int(wrong[0])
            key = bytes(other.keys[at]).hex()[:16]
            raise IdentityError(
                f"{len(wrong)} answers differ, first row {other.rows[at]} view {other.views[at]} of "
                f"{theirs.dataset.name}, key {key}: {name} of {theirs.name} has other bytes than {ours.name}; "
                "nothing was changed: keep one of the two"
            )
