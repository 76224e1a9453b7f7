"""What callers have sent and is still held, in bytes: bodies, what they inflate and decode to, images that wait."""

from threading import Lock

from shared.errors import UnavailableError

FREE_BYTES = 64 * 1024
"""Of every request: a body of rows costs nothing, so that a full room never stops questions about them."""


class Uploads:
    """The room for uploads; one per server, used from any thread."""

    def __init__(self, *, most_bytes: int) -> None:
        self.held_bytes = 0
        self._most_bytes = most_bytes
        self._lock = Lock()

    def take(self, size_bytes: int) -> None:
        """Use room; raises `UnavailableError` where there is not enough left."""
        with self._lock:
            if self.held_bytes + size_bytes > self._most_bytes:
                raise UnavailableError(
                    f"uploads of {self.held_bytes >> 20} MiB are being answered, {self._most_bytes >> 20} MiB fit: "
                    "ask again in a moment, send smaller requests, or raise --max-upload-mb"
                )
            self.held_bytes += size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Room is free again."""
        with self._lock:
            self.held_bytes -= size_bytes


class Hold:
    """What one request holds, until the last of its users lets go: the request, and the work that outlives it."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._size_bytes = 0
        self._taken_bytes = 0
        self._users = 1

    def add(self, size_bytes: int) -> None:
        """Hold more; raises `UnavailableError`."""
        self._resize(self._size_bytes + size_bytes)

    def drop(self, size_bytes: int) -> None:
        """Hold less."""
        self._resize(self._size_bytes - size_bytes)

    def share(self) -> None:
        """Another user: nothing is given back before it has let go too."""
        self._users += 1

    def release(self) -> None:
        """A user lets go."""
        self._users -= 1
        if not self._users:
            self._resize(0)

    def _resize(self, size_bytes: int) -> None:
        wanted_bytes = max(size_bytes - FREE_BYTES, 0)
        if wanted_bytes > self._taken_bytes:
            self._uploads.take(wanted_bytes - self._taken_bytes)
        elif wanted_bytes < self._taken_bytes:
            self._uploads.give_back(self._taken_bytes - wanted_bytes)
        self._size_bytes, self._taken_bytes = size_bytes, wanted_bytes
