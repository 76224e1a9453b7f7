"""API keys: who may ask, for what, under which runs and how often. A key itself is kept nowhere, only its digest."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from hmac import compare_digest

from cache.payer import LOCAL_OWNER


class Scope(StrEnum):
    """What a key is for; `permissions` has the routes of each."""

    INFER = "infer"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """One key: its name is the owner that the ledger counts for."""

    name: str
    digest: bytes
    """SHA-256 of the key."""
    scopes: frozenset[Scope]
    runs: tuple[str, ...] | None = None
    """Runs that it may spend under; None = any."""
    budget: int | None = None
    """Most attempts under its name, in all runs and for ever; None = as its runs allow."""
    made: str | None = None
    """When, in UTC; None = typed by hand."""

    def may_use(self, run: str) -> bool:
        """Whether it may spend under a run."""
        return self.runs is None or run in self.runs


ANYONE = ApiKey(name=LOCAL_OWNER, digest=b"", scopes=frozenset({Scope.ADMIN}))
"""Who asks a server without keys."""


def new_secret() -> str:
    """A fresh key, 256 bits."""
    return f"to_{secrets.token_urlsafe(32)}"


def digest_of(secret: bytes) -> bytes:
    """What is kept of a key."""
    return sha256(secret).digest()


def find_key(secret: bytes, *, keys: Iterable[ApiKey]) -> ApiKey | None:
    """The key that ``secret`` is; takes the same time whichever it is."""
    digest = digest_of(secret)
    found = None
    for key in keys:
        # Every key is compared, also after a match.
        if compare_digest(digest, key.digest):
            found = key
    return found
