"""Decodes uploaded images: a few at a time, each only where its pixels have room."""

import asyncio

import numpy as np
from numpy.typing import NDArray

from shared.host_cores import usable_cores
from shared.image_header import read_header
from shared.pixels import MAX_PIXELS, decode_image
from teacher_server.uploads import Hold

MOST = 4
"""Images decoded at a time."""
KEPT_BYTES = 3
"""Per pixel, as long as the question lives."""
PASSING_BYTES = 7
"""Per pixel, while the library has its own picture of up to four channels, and another of three."""


class Decoders:
    """Bounds memory and threads that uploads take; one per server."""

    def __init__(self) -> None:
        self._turns = asyncio.Semaphore(min(MOST, usable_cores()))

    async def decode(self, file: bytes, *, hold: Hold) -> NDArray[np.uint8]:
        """See `decode_image`; raises `UnavailableError` too, where other uploads fill the room."""
        async with self._turns:
            return await asyncio.to_thread(_decode, file, hold=hold)


def _decode(file: bytes, *, hold: Hold) -> NDArray[np.uint8]:
    header = read_header(file)
    # What is too large to be decoded is not asked room for: it gets its own error.
    pixels = min(header.width * header.height, MAX_PIXELS)
    hold.add(pixels * (KEPT_BYTES + PASSING_BYTES))
    image = decode_image(file)
    hold.drop(pixels * PASSING_BYTES)
    return image
