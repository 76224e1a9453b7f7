"""``teacher-server key``: make, list, rotate and revoke API keys. A running server follows at once."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from cache.payer import LOCAL_OWNER
from shared.errors import InputError, UnknownNameError
from shared.identity import check_name
from teacher_server.key_editing import editing
from teacher_server.key_file import Entry, check_key_name, entry_of, read_keys
from teacher_server.keys import ApiKey, Scope, digest_of, new_secret
from teacher_server.options import MOST_CALLS

app = typer.Typer(
    no_args_is_help=True, help="Make, list, rotate and revoke API keys; a running server follows at once."
)

DEFAULT_SCOPES = (Scope.INFER, Scope.METRICS)
SCOPES_HELP = (
    "infer: ask; metrics: look at counts, metrics and pages; admin: everything; repeatable, default the first two"
)
File = Annotated[Path, typer.Option(envvar="TEACHONCE_API_KEY_FILE", help="the file that serve has as --api-key-file")]
Name = Annotated[str, typer.Argument(help="whose it is; the ledger counts under this name")]


@app.command()
def make(
    *,
    name: Name,
    file: File,
    scope: Annotated[list[Scope] | None, typer.Option(help=SCOPES_HELP)] = None,
    run: Annotated[list[str] | None, typer.Option(help="run that it may spend under; repeatable, default any")] = None,
    budget: Annotated[
        int | None, typer.Option(min=0, max=MOST_CALLS, help="most teacher calls under its name, for ever")
    ] = None,
) -> None:
    """Print a new key, which is kept nowhere: the file has its digest, its name and its rights."""
    secret = new_secret()
    key = ApiKey(
        name=check_key_name(name),
        digest=digest_of(secret.encode()),
        scopes=frozenset(scope or DEFAULT_SCOPES),
        runs=tuple(dict.fromkeys(check_name(one, what="run") for one in run)) if run else None,
        budget=budget,
        made=_now(),
    )
    with editing(file) as entries:
        if any(entry.key is not None and entry.key.name == name for entry in entries):
            raise InputError(f"{file} has a key {name!r} already; rotate or revoke it, or choose another name")
        entries.append(entry_of(key))
    _hand_over(secret, key=key)


@app.command("list")
def list_keys(
    *,
    file: File,
    as_json: Annotated[bool, typer.Option("--json", help="for programs")] = False,
) -> None:
    """Show all keys with their rights."""
    keys = read_keys(file)
    if as_json:
        typer.echo(json.dumps([_described(key) for key in keys], indent=2))
        return
    lines = [("NAME", "SCOPES", "RUNS", "BUDGET", "MADE"), *(_columns(key) for key in keys)]
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    for line in lines:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


@app.command()
def rotate(*, name: Name, file: File) -> None:
    """Print a new key with the name and the rights of one that ends."""
    secret = new_secret()
    with editing(file) as entries:
        (index, key), *_ = _find(check_key_name(name), entries=entries, file=file)
        key = replace(key, digest=digest_of(secret.encode()), made=_now())
        entries[index] = entry_of(key)
    _hand_over(secret, key=key)


@app.command()
def revoke(*, name: Name, file: File) -> None:
    """End a key; `local` ends all plain ones. What it cost stays counted under its name."""
    with editing(file) as entries:
        ended = {index for index, _ in _find(name, entries=entries, file=file)}
        entries[:] = [entry for index, entry in enumerate(entries) if index not in ended]
    typer.echo(f"revoked {name!r}: {len(ended)} key{'s' if len(ended) > 1 else ''}", err=True)


def _find(name: str, *, entries: list[Entry], file: Path) -> list[tuple[int, ApiKey]]:
    """Where the keys of a name are; one, but for plain ones."""
    found = [(index, entry.key) for index, entry in enumerate(entries) if entry.key is not None]
    named = [(index, key) for index, key in found if key.name == name]
    if not named:
        known = ", ".join(dict.fromkeys(key.name for _, key in found)) or "none"
        raise UnknownNameError(f"{file} has no key {name[:80]!r}; known: {known[:400]}")
    return named


def _hand_over(secret: str, *, key: ApiKey) -> None:
    """The key alone on standard output, so that a script can take it."""
    typer.echo(secret)
    _, scopes, runs, budget, _ = _columns(key)
    rights = f"scopes {scopes}; runs {runs}; budget {budget}"
    typer.echo(f"the key {key.name!r} ({rights}), shown this once; send: Authorization: Bearer KEY", err=True)


def _described(key: ApiKey) -> dict[str, object]:
    scopes = [scope.value for scope in Scope if scope in key.scopes]
    runs = None if key.runs is None else list(key.runs)
    return {"name": key.name, "scopes": scopes, "runs": runs, "budget": key.budget, "made": key.made}


def _columns(key: ApiKey) -> tuple[str, str, str, str, str]:
    return (
        key.name,
        ",".join(scope for scope in Scope if scope in key.scopes),
        "any" if key.runs is None else ",".join(key.runs),
        "-" if key.budget is None else str(key.budget),
        key.made or ("typed by hand" if key.name == LOCAL_OWNER else "-"),
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
