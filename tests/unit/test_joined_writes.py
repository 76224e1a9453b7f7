"""An answer leaves in one piece, in order, whatever its size and however it ends."""

import asyncio

import pytest

from teacher_server.joined_writes import LARGE_BYTES, JoinedWrites


class Sent(asyncio.Transport):
    """Remembers what it was given."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def close(self) -> None:
        self.pieces.append(b"closed")

    def abort(self) -> None:
        self.pieces.append(b"aborted")


async def written(*pieces: bytes, end: str | None = None) -> list[bytes]:
    sent = Sent()
    joined = JoinedWrites(sent)
    for piece in pieces:
        joined.write(piece)
    if end is not None:
        getattr(joined, end)()
    await asyncio.sleep(0)
    return sent.pieces


@pytest.mark.parametrize(
    ("pieces", "end", "sent"),
    [
        ((b"head", b"body"), None, [b"headbody"]),
        ((b"head", bytes(LARGE_BYTES + 1)), None, [b"head", bytes(LARGE_BYTES + 1)]),
        ((b"head", b"body"), "close", [b"headbody", b"closed"]),
        ((b"head", b"body"), "abort", [b"aborted"]),
    ],
)
def test_what_is_written_in_one_turn_is_sent_together(pieces: tuple[bytes, ...], end: str, sent: list[bytes]) -> None:
    assert asyncio.run(written(*pieces, end=end)) == sent
