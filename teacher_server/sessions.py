"""Browsers that showed an API key: who has the cookie looks as that key, until it ends."""

import secrets
from dataclasses import dataclass
from time import monotonic

from teacher_server.keys import ApiKey, digest_of

COOKIE = "teachonce_session"
LIFETIME_S = 12 * 3600
MOST_SESSIONS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One login."""

    key_digest: bytes
    """Of the key that was shown: revoked or rotated, it is no longer among the keys."""
    ends_s: float
    """Monotonic seconds."""


class Sessions:
    """All logins of this process; a restart ends them. Tokens are held as digests."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, Session] = {}

    def begin(self, key: ApiKey) -> str:
        """The token of a new session; of too many, the oldest ends."""
        token = secrets.token_urlsafe(32)
        if len(self._sessions) >= MOST_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = Session(key_digest=key.digest, ends_s=monotonic() + LIFETIME_S)
        self._sessions[digest_of(token.encode())] = session
        return token

    def key(self, token: str, *, keys: tuple[ApiKey, ...]) -> ApiKey | None:
        """The key that a session stands for, if both still count."""
        session_id = digest_of(token.encode())
        session = self._sessions.get(session_id)
        if session is None:
            return None
        found = next((key for key in keys if key.digest == session.key_digest), None)
        if found is None or monotonic() >= session.ends_s:
            del self._sessions[session_id]
            return None
        return found

    def end(self, token: str) -> None:
        """Forget a session, if there is one."""
        self._sessions.pop(digest_of(token.encode()), None)
