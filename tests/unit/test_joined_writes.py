"""An answer leaves in one piece, in order, whatever its size and however it ends; and who reads it keeps his place."""

import asyncio

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from teacher_server.crowd import Crowd
from teacher_server.joined_writes import LARGE_BYTES, JoinedWrites
from teacher_server.settings import TransportSettings
from teacher_server.transport import Connection


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


class Unread(Sent):
    """A client takes ``reads`` bytes of what was sent whenever it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.unread_bytes = 0

    def write(self, data: bytes) -> None:
        self.unread_bytes += len(data)

    def get_write_buffer_size(self) -> int:
        return self.unread_bytes

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default

    def is_closing(self) -> bool:
        return bool(self.pieces)


async def looked_at(*, reads: int) -> list[bytes]:
    """A minute in which an answer of a megabyte follows whenever the one before has nearly been read."""
    crowd = Crowd(TransportSettings(), most_unread_bytes=2**30, refused=lambda _: None)
    client = Unread()
    connection = Connection(Config(lambda: None, http="httptools", log_config=None), ServerState(), {}, crowd=crowd)
    connection.connection_made(client)
    for second in range(60):
        while client.unread_bytes <= reads:
            connection.transport.write(bytes(2**20))
        client.unread_bytes -= min(reads, client.unread_bytes)
        connection.look(float(second))
    return client.pieces


@pytest.mark.parametrize(
    ("reads", "end"), [(0, [b"aborted"]), (4 * 2**10, [b"aborted"]), (20 * 2**10, []), (53 * 2**10, []), (2**19, [])]
)
def test_a_reader_is_cut_off_for_its_speed_and_not_for_what_it_still_has_to_read(reads: int, end: list[bytes]) -> None:
    assert asyncio.run(looked_at(reads=reads))[:1] == end
