"""When the HTTP client asks again, after how long, and when it gives up; the same for sync and async."""

import random
import secrets
from collections.abc import Callable
from time import monotonic

import httpx

from shared.errors import DeadlineError, SlowBodyError, TeachonceError, UnknownNameError, UnreachableError
from shared.fill_schemas import FillStatus

RETRY_STATUSES = frozenset({408, 503, 504})
"""Nothing was refused for good, and asking again never pays twice: what is computed meanwhile is kept. Proxies answer
408 on a connection that was idle for too long."""
SLOW_TRIES = 2
"""Tries whose body came too slowly: the same bytes take as long once more."""
UNREACHED_TRIES = 6
"""Tries in a row that no server answered."""
CONNECT_S = 10.0
"""Longest wait for a connection; the rest of the time is for the answer."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0


class Tries:
    """The tries of one request, which together take at most ``timeout_s`` seconds."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._end_s = monotonic() + timeout_s
        self._failed = 0
        self._unreached = 0
        self._slow = 0

    def timeout(self) -> httpx.Timeout:
        """For the next try."""
        left_s = max(0.001, self._end_s - monotonic())
        return httpx.Timeout(left_s, connect=min(left_s, CONNECT_S))

    def pause_s(self, outcome: httpx.Response | httpx.TransportError) -> float | None:
        """Seconds until the next try; None: what came is the outcome of the request."""
        if isinstance(outcome, httpx.Response):
            if outcome.status_code not in RETRY_STATUSES:
                return None
            self._unreached = 0
            self._slow += is_slow_body(outcome)
            if self._slow >= SLOW_TRIES:
                return None
            least_s = retry_after_s(outcome)
        else:
            self._unreached += 1
            if self._unreached >= UNREACHED_TRIES:
                return None
            least_s = 0.0
        pause_s = max(least_s, jitter_s(self._failed))
        self._failed += 1
        return pause_s if monotonic() + pause_s < self._end_s else None

    def failure(self, error: httpx.TransportError, *, url: str) -> TeachonceError:
        """The error after the last try."""
        if isinstance(error, httpx.ReadTimeout | httpx.PoolTimeout):
            return DeadlineError(
                f"no answer from {url} within {self._timeout_s:g} s; what is computed meanwhile is kept: ask again, "
                "for fewer rows at a time, or with a larger timeout_s"
            )
        return UnreachableError(
            f"no teacher server at {url} ({type(error).__name__}); start one with teacher-server serve"
        )


class Followed:
    """A fill that outlives its server: what a client remembers from one submission to the next."""

    def __init__(self, timeout_s: float) -> None:
        self.id = new_fill_id()
        """Of the fill, whether a reply has come or not."""
        self.status: FillStatus | None = None
        """The last that was told."""
        self._timeout_s = timeout_s
        self._told_s = 0.0
        self._open = False

    def tell(self, status: FillStatus, show: Callable[[FillStatus], object]) -> None:
        """A sign of life; a fill that was submitted again counts from 0, but is shown only where it was or further."""
        furthest = self.status is None or status.done >= self.status.done or status.ended
        self.status, self._told_s, self._open = status, monotonic(), True
        if furthest:
            show(status)

    def goes_on(self, error: TeachonceError | None = None) -> bool:
        """Whether to submit again after its server ended (None), could not be reached, or knows it no more."""
        was_open, self._open = self._open, False
        if not isinstance(error, UnreachableError):
            # That one has ended. One that cannot be reached may go on meanwhile, and is found again.
            self.id = new_fill_id()
        if isinstance(error, UnknownNameError):
            return was_open
        return self.status is not None and monotonic() - self._told_s < self._timeout_s


def new_fill_id() -> str:
    """64 random bits, as a server takes them."""
    return secrets.token_hex(8)


def is_slow_body(response: httpx.Response) -> bool:
    """Whether the server, and no proxy in between, waited for the body in vain."""
    if response.status_code != SlowBodyError.status:
        return False
    try:
        body = response.json()
    except ValueError:
        return False
    return isinstance(body, dict) and body.get("code") == SlowBodyError.code


def jitter_s(failed: int) -> float:
    """Full jitter: anything up to a bound that doubles, so that clients do not come back all at once."""
    return random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failed, 20)))


def retry_after_s(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, 0 where it does not."""
    text = response.headers.get("retry-after", "0")
    return float(text) if text.isascii() and text.isdigit() else 0.0
