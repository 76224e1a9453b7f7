"""Compressed bodies of the Open Inference Protocol: never inflated beyond what a body may have, nor sent unasked."""

import gzip
import zlib

from shared.errors import InputError, TooLargeError

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Content codings that are read and written; HTTP's deflate is zlib's format (RFC 9110, 8.4.1.2)."""
LEVEL = 1
"""Float tensors hardly shrink further at higher levels, and take several times as long."""


def inflate(body: bytes, *, coding: str, max_bytes: int) -> bytes:
    """The bytes that were compressed; `InputError` where damaged, `TooLargeError` once more than ``max_bytes``."""
    stream = zlib.decompressobj(WINDOW_BITS[coding])
    try:
        # One byte more than allowed is enough to know, whatever the rest would grow to.
        inflated = stream.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InputError(f"the body is not {coding} ({error}); send it whole, or without Content-Encoding") from error
    if len(inflated) > max_bytes:
        raise TooLargeError(f"the body inflates to over {max_bytes} bytes; send several smaller requests")
    if not stream.eof:
        raise InputError(f"the {coding} body ends too early, after {len(body)} bytes; send it whole")
    if stream.unused_data:
        raise InputError(f"{len(stream.unused_data)} bytes after the end of the {coding} body; send one stream only")
    return inflated


def deflate(body: bytes, *, coding: str) -> bytes:
    """``body`` compressed; equal bytes for equal bytes, so no time of day is written."""
    return gzip.compress(body, LEVEL, mtime=0) if coding == "gzip" else zlib.compress(body, LEVEL)


def wanted_coding(accept: str) -> str | None:
    """The coding that an Accept-Encoding header insists on.

    Clients that would take several, as most do without having been asked to, are sent the plain bytes: these cost less
    than what compression saves of them.
    """
    name = accept.strip().lower()
    return name if name in WINDOW_BITS else None
