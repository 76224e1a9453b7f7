"""Whole numbers drawn from SHA-256: the same for ever, on every machine, in every version of every library."""

import hashlib
from collections.abc import Iterator
from itertools import count
from struct import unpack


class Draws:
    """Numbers that follow from the values of ``key`` alone.

    Block b of them is SHA-256 of the ASCII text ``KEY:KEY:...:b``, read as eight big-endian words of 32 bits.
    """

    def __init__(self, *key: str | int) -> None:
        self._words = _words(":".join(map(str, key)))

    def word(self) -> int:
        """The next 32 bits."""
        return next(self._words)

    def below(self, bound: int) -> int:
        """0 to ``bound`` - 1, ``bound`` at most 2^32; uneven by one part in 2^32 / ``bound`` at most."""
        return next(self._words) * bound >> 32


def _words(key: str) -> Iterator[int]:
    for block in count():
        yield from unpack(">8I", hashlib.sha256(f"{key}:{block}".encode("ascii")).digest())
