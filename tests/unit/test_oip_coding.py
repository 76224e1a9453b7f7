"""Compressed bodies: what they may take, whatever they would grow to."""

import gzip
import tracemalloc
import zlib

import pytest

from shared.errors import TooLargeError
from teacher_server.oip_coding import deflate, inflate

PACKERS = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.mark.parametrize("coding", PACKERS)
def test_a_bomb_is_never_inflated_beyond_the_limit(coding: str) -> None:
    bomb = PACKERS[coding](bytes(2**25))
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="1048576"):
            inflate(bomb, coding=coding, max_bytes=2**20)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # zlib doubles its buffer as it grows, and copies it then.
    assert peak_bytes < 2**23


@pytest.mark.parametrize("coding", PACKERS)
def test_a_body_of_just_the_limit_passes_and_comes_back_equal(coding: str) -> None:
    body = bytes(range(256)) * 16
    packed = deflate(body, coding=coding)
    assert inflate(packed, coding=coding, max_bytes=len(body)) == body
    assert packed == deflate(body, coding=coding)
