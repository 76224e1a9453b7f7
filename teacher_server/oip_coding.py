"""Compressed bodies of the Open Inference Protocol: never inflated beyond what a body may have, nor sent unasked."""

import gzip
import zlib

from shared.errors import InputError, TooLargeError
from teacher_server.uploads import Hold

WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
"""Content codings that are read and written; HTTP's deflate is zlib's format (RFC 9110, 8.4.1.2)."""
MIN_STEP_BYTES = 64 * 1024
LEVEL = 1
"""Float tensors hardly shrink further at higher levels, and take several times as long."""


def inflate(body: bytes, *, coding: str, max_bytes: int, hold: Hold | None = None) -> bytes:
    """The bytes that were compressed; `InputError` where damaged, `TooLargeError` once more than ``max_bytes``.

    ``hold`` makes room for them as they grow, and raises `UnavailableError` where there is none.
    """
    stream = zlib.decompressobj(WINDOW_BITS[coding])
    parts: list[bytes] = []
    size_bytes, left = 0, body
    try:
        while not stream.eof:
            # Twice as much as before: few steps, as each copies what it leaves. One byte more than allowed is enough.
            step_bytes = min(max(size_bytes, len(body), MIN_STEP_BYTES), max_bytes + 1 - size_bytes)
            part = _inflate_step(stream, left, step_bytes=step_bytes, hold=hold)
            parts.append(part)
            size_bytes += len(part)
            if size_bytes > max_bytes:
                # An error keeps the frame it was raised in for a while.
                parts.clear()
                raise TooLargeError(f"the body inflates to over {max_bytes} bytes; send several smaller requests")
            left = stream.unconsumed_tail
            if not left and len(part) < step_bytes:
                break
    except zlib.error as error:
        raise InputError(f"the body is not {coding} ({error}); send it whole, or without Content-Encoding") from error
    if not stream.eof:
        raise InputError(f"the {coding} body ends too early, after {len(body)} bytes; send it whole")
    if stream.unused_data:
        raise InputError(f"{len(stream.unused_data)} bytes after the end of the {coding} body; send one stream only")
    inflated = b"".join(parts)
    if hold is not None:
        hold.drop(size_bytes)
    return inflated


def _inflate_step(stream: "zlib._Decompress", body: bytes, *, step_bytes: int, hold: Hold | None) -> bytes:
    if hold is None:
        return stream.decompress(body, step_bytes)
    # Twice: the parts, and what they are put together to.
    hold.add(2 * step_bytes)
    part = stream.decompress(body, step_bytes)
    hold.drop(2 * (step_bytes - len(part)))
    return part


def deflate(body: bytes | memoryview, *, coding: str) -> bytes:
    """``body`` compressed; equal bytes for equal bytes, so no time of day is written."""
    return gzip.compress(body, LEVEL, mtime=0) if coding == "gzip" else zlib.compress(body, LEVEL)


def wanted_coding(accept: str) -> str | None:
    """The coding that an Accept-Encoding header insists on.

    Clients that would take several, as most do without having been asked to, are sent the plain bytes: these cost less
    than what compression saves of them.
    """
    name = accept.strip().lower()
    return name if name in WINDOW_BITS else None
