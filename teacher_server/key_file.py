"""The file of API keys: one JSON object per key, with its digest; plain keys typed by hand count too.

Readers need no lock: the file is replaced in one step.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from cache.payer import LOCAL_OWNER
from shared.errors import InputError
from shared.identity import check_name
from shared.schemas import INT64_MAX, StrictModel, parse_body
from teacher_server.keys import ApiKey, Scope, digest_of

MIN_PLAIN_CHARACTERS = 16
"""Of a key typed by hand."""


def check_key_name(name: str) -> str:
    """``name`` if a key may have it; raises `UnknownNameError` and `InputError`."""
    if name == LOCAL_OWNER:
        raise InputError(f"{LOCAL_OWNER!r} stands for plain keys and for who needs none; choose another name")
    return check_name(name, what="key")


def _run_name(name: str) -> str:
    return check_name(name, what="run")


class KeyLine(StrictModel):
    """One key as the file has it."""

    name: Annotated[str, AfterValidator(check_key_name)]
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    scopes: Annotated[list[Scope], Field(min_length=1)]
    runs: Annotated[list[Annotated[str, AfterValidator(_run_name)]], Field(min_length=1)] | None = None
    budget: Annotated[int, Field(ge=0, le=INT64_MAX)] | None = None
    made: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the file; comments and empty lines hold no key."""

    text: str
    key: ApiKey | None


def entry_of(key: ApiKey) -> Entry:
    """The line of a key."""
    fields = {
        "name": key.name,
        "digest": key.digest.hex(),
        "scopes": [scope.value for scope in Scope if scope in key.scopes],
        "runs": None if key.runs is None else list(key.runs),
        "budget": key.budget,
        "made": key.made,
    }
    return Entry(text=json.dumps(fields), key=key)


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """All keys of a file; raises `InputError` that names the first wrong line."""
    return tuple(entry.key for entry in read_entries(path) if entry.key is not None)


def read_entries(path: Path) -> list[Entry]:
    """All lines of a file; raises `InputError` that names the first wrong one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(f"cannot read API keys from {path} ({why}); teacher-server key make NAME makes one") from error
    entries: list[Entry] = []
    names: set[str] = set()
    for number, line in enumerate(lines, start=1):
        try:
            entries.append(_parse(line, names=names))
        except InputError as error:
            raise InputError(f"{path} line {number}: {error}") from error
    return entries


def _parse(line: str, *, names: set[str]) -> Entry:
    text = line.strip()
    if text.startswith("{"):
        entry = Entry(text=line, key=_key_of(parse_body(text.encode(), model=KeyLine)))
        if entry.key is not None and entry.key.name in names:
            raise InputError(f"a second key is named {entry.key.name!r}; give every key its own name")
        names |= {entry.key.name} if entry.key is not None else set()
        return entry
    plain = text.split("#")[0].strip()
    if plain and (len(plain) < MIN_PLAIN_CHARACTERS or not plain.isascii()):
        raise InputError(f"a plain key is one line of {MIN_PLAIN_CHARACTERS} or more ASCII characters")
    return Entry(text=line, key=_plain_key(plain) if plain else None)


def _key_of(line: KeyLine) -> ApiKey:
    return ApiKey(
        name=line.name,
        digest=bytes.fromhex(line.digest),
        scopes=frozenset(line.scopes),
        runs=None if line.runs is None else tuple(line.runs),
        budget=line.budget,
        made=line.made,
    )


def _plain_key(secret: str) -> ApiKey:
    return ApiKey(name=LOCAL_OWNER, digest=digest_of(secret.encode()), scopes=frozenset(Scope))
