"""Sends the head and the body of an answer together: one system call less per request."""

import asyncio
from typing import Any

LARGE_BYTES = 64 * 2**10
"""Copying more than this into one piece takes longer than the system call that it saves."""


class JoinedWrites(asyncio.Transport):
    """Keeps what is written until the loop's next turn, or until much has come; the rest is the wrapped transport's."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []
        self.written_bytes = 0
        """In all, sent or not."""

    def write(self, data: Any) -> None:
        """See `asyncio.WriteTransport`."""
        self.written_bytes += len(data)
        if len(data) > LARGE_BYTES:
            self._flush()
            self._transport.write(data)
            return
        if not self._pieces:
            asyncio.get_running_loop().call_soon(self._flush)
        self._pieces.append(data)

    def _flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        if pieces:
            self._transport.write(b"".join(pieces))

    def close(self) -> None:
        """Send what was written, then close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._pieces = []
        self._transport.abort()

    def is_closing(self) -> bool:
        """See `asyncio.BaseTransport`."""
        return self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """See `asyncio.BaseTransport`."""
        return self._transport.get_extra_info(name, default)

    def get_write_buffer_size(self) -> int:
        """Bytes that were written and not yet sent."""
        return self._transport.get_write_buffer_size() + sum(len(piece) for piece in self._pieces)

    def pause_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """See `asyncio.ReadTransport`."""
        self._transport.resume_reading()
