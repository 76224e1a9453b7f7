"""API keys: a file of them, held as digests, compared in constant time."""

import logging
import os
import secrets
from collections.abc import Sequence
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from shared.errors import InputError

log = logging.getLogger(__name__)

MIN_KEY_CHARACTERS = 16


def load_keys(path: Path) -> tuple[bytes, ...]:
    """SHA-256 of every key in the file: one per line, ``#`` starts a comment. A missing file is made with one key."""
    if not path.exists():
        _create(path)
    if path.stat().st_mode & 0o077:
        log.warning("others can read the API keys in %s; run: chmod 600 %s", path, path)
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read API keys from {path}: {type(error).__name__}; one ASCII key per line") from error
    keys = [key for line in lines if (key := line.split("#")[0].strip())]
    short = [number for number, key in enumerate(keys, start=1) if len(key) < MIN_KEY_CHARACTERS]
    if short or not keys:
        found = f"key {short[0]} is too short" if short else "no key found"
        raise InputError(f"{found} in {path}: one key per line, {MIN_KEY_CHARACTERS} characters or more")
    return tuple(sha256(key.encode()).digest() for key in keys)


def is_known_key(token: bytes, *, digests: Sequence[bytes]) -> bool:
    """Whether ``token`` is one of the keys; takes the same time whichever it is."""
    digest = sha256(token).digest()
    # sum, not any: every key is compared, also after a match.
    return sum(compare_digest(digest, known) for known in digests) > 0


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        # The key alone, so that `cat FILE` gives what a client has to send.
        file.write(f"{secrets.token_urlsafe(32)}\n")
    log.warning("made a fresh API key in %s; send it as: Authorization: Bearer KEY", path)
