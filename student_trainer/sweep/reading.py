"""Reads a recipe: a YAML file, changed by options, checked; every mistake is one sentence that names the key."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no type information
from pydantic import ValidationError

from shared.errors import InputError
from student_trainer.sweep.recipe import Recipe


def read_recipe(path: Path, *, changes: Sequence[str] = (), options: Mapping[str, object] | None = None) -> Recipe:
    """The recipe in a file. ``changes`` are ``key.sub=value`` texts, ``options`` whole keys by dotted name.

    Raises InputError.
    """
    document = _load(path)
    for text in changes:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InputError(f"cannot read --set {text!r}; write key.sub=value, such as train.steps=500")
        put(document, key=key.strip(), value=_parse(value, what=f"--set {text!r}"))
    for key, option in (options or {}).items():
        if option is not None:
            put(document, key=key, value=option)
    try:
        return Recipe.model_validate(document)
    except ValidationError as invalid:
        raise InputError(f"{path}: {first_problem(invalid)}") from None


def _load(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(
            f"cannot read the recipe {path}: {reason}; give a YAML file such as recipes/NAME.yaml"
        ) from error
    document = _parse(text, what=str(path))
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no keys; a recipe is a YAML mapping with {', '.join(Recipe.model_fields)}")
    return document


def _parse(text: str, *, what: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{what} is no YAML: {error}") from error


def put(document: dict[str, Any], *, key: str, value: object) -> None:
    """Set ``key.sub`` in nested mappings and lists (by number); mappings that are absent are made."""
    *parents, last = key.split(".")
    here: Any = document
    for place, part in enumerate(parents):
        if isinstance(here, dict) and here.get(part) is None:
            here[part] = {}
        here = _child(here, part, path=".".join(parents[: place + 1]), key=key)
    if isinstance(here, list):
        _child(here, last, path=key, key=key)
        here[int(last)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise InputError(f"cannot set {key}: {'.'.join(parents)} is {here!r}, which has no parts")


def _child(here: Any, part: str, *, path: str, key: str) -> Any:
    if isinstance(here, dict):
        return here[part]
    if isinstance(here, list) and part.isdigit() and int(part) < len(here):
        return here[int(part)]
    found = f"a list of {len(here)}" if isinstance(here, list) else repr(here)
    raise InputError(f"cannot set {key}: there is no {path}, it is inside {found}; lists are counted from 0")


def first_problem(invalid: ValidationError) -> str:
    """The first thing wrong, with its place, in one sentence."""
    problem = invalid.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{place} is missing; every recipe needs it"
    given = problem.get("input")
    found = f" (found {given!r})"[:100] if isinstance(given, str | int | float | bool) else ""
    return f"{place}: {message}{found}" if place else message
