"""How one server behaves: limits, addresses and keys, as values that the command line builds."""

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from shared.errors import InputError
from shared.host_cores import usable_cores


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweringSettings:
    """How questions become batches; the same for HTTP and for `fill`."""

    batch_images: int = 256
    """Images per teacher forward pass; 1 or more."""
    max_delay_s: float = 0.002
    """How long an idle teacher waits for a batch to grow, in seconds; 0 = never."""
    queue_images: int = 8192
    """Images admitted and not yet answered; more are refused with 503."""
    load_threads: int = field(default_factory=lambda: max(4, usable_cores() - 1))
    """Threads that decode and render images ahead of the teacher."""

    def __post_init__(self) -> None:
        if min(self.batch_images, self.queue_images, self.load_threads) < 1:
            raise InputError("batch, queue and threads must be 1 or more")
        if self.max_delay_s < 0:
            raise InputError(f"the batching delay must be 0 or more, got {self.max_delay_s} s")


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportSettings:
    """How long and how large one connection may be, whoever is behind it."""

    connections: int = 2048
    """Open at once; beyond it the longest idle is closed, where all are busy the newest gets 503.

    Fewer where the system lets a process open fewer files.
    """
    head_timeout_s: float = 10.0
    """Seconds for a request line and its headers, from the connection's start or the last answer; longer is 408."""
    keep_alive_s: int = 5
    """Seconds that a connection may be idle between two requests."""
    body_grace_s: float = 5.0
    """Seconds before a body is held to ``min_bytes_per_s``."""
    min_bytes_per_s: float = 16 * 1024
    """Average speed of a body that is not cut off with 408, and of a client that reads its answer."""
    stuck_reader_s: float = 20.0
    """Seconds that an answer may wait for a client that reads slower than ``min_bytes_per_s``."""
    look_every_s: float = 1.0
    """How often connections are held to these times, in seconds."""

    def __post_init__(self) -> None:
        if self.connections < 1:
            raise InputError(f"a server needs 1 connection or more, got {self.connections}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerSettings:
    """What the HTTP side allows."""

    host: str = "127.0.0.1"
    """Address to bind."""
    api_key_file: Path | None = None
    """File of the accepted API keys; None = no key is asked for."""
    allowed_hosts: frozenset[str] = frozenset()
    """Names that a Host header may hold besides the loopback ones."""
    max_body_bytes: int = 64 * 2**20
    """Bytes of one request body; more is 413."""
    body_timeout_s: float = 30.0
    """Seconds for a whole body to arrive; longer is 408."""
    max_upload_bytes: int | None = None
    """Bytes of all bodies, decoded images and unread answers together; more is 503.

    None: four times the largest body, at least 512 MiB.
    """
    transport: TransportSettings = field(default_factory=TransportSettings)
    """What one connection may do."""
    deadline_s: float = 60.0
    """Seconds until a caller is told 504; the answer is computed and kept all the same."""
    images_per_request: int = 4096
    """Rows or images of one request; more is 413."""
    answering: AnsweringSettings = field(default_factory=AnsweringSettings)
    """How questions become batches."""

    def __post_init__(self) -> None:
        if self.api_key_file is None and not is_loopback(self.host):
            raise InputError(
                f"refusing to listen on {self.host} without API keys; add --api-key-file FILE, or use --host 127.0.0.1"
            )
        if self.max_upload_bytes is not None and self.max_upload_bytes < self.max_body_bytes:
            raise InputError("all uploads together cannot be less than one body; raise --max-upload-mb")

    @property
    def upload_bytes(self) -> int:
        """What ``max_upload_bytes`` comes to."""
        return self.max_upload_bytes or max(4 * self.max_body_bytes, 512 * 2**20)


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be reached from this machine: ``localhost``, or an address of its own network."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # A name such as 127.0.0.1.example.com may stand for any address.
        return False
