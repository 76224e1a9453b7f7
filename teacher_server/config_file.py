"""``--config FILE``: options of a command from a TOML file, below the command line and the environment."""

import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperOption

from shared.errors import InputError


def use_config(context: typer.Context, path: Path | None) -> Path | None:
    """Callback of an eager option: what the file says becomes the command's defaults. Raises `InputError`."""
    if path is not None and not context.resilient_parsing:
        context.default_map = _read_options(path, known=_options(context))
    return path


def _options(context: typer.Context) -> dict[str, TyperOption]:
    """Options by their names without the leading dashes; `--config` and `--help` are not for a file."""
    options = [option for option in context.command.params if isinstance(option, TyperOption) and not option.is_eager]
    return {name.removeprefix("--"): option for option in options for name in option.opts if name.startswith("--")}


def _read_options(path: Path, *, known: Mapping[str, TyperOption]) -> dict[str, Any]:
    """Values by parameter name, as somebody would have typed them."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"cannot read --config {path}: {why}") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"--config {path} is not TOML: {error}; write lines such as port = 8000") from error
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("_", "-")
        if name not in known:
            raise InputError(f"--config {path}: unknown option {key[:80]!r}; {_remedy(name, known=known)}")
        parameter = str(known[name].name)
        if parameter in values:
            raise InputError(f"--config {path}: {name} is there twice; keep one")
        values[parameter] = _typed(value, option=known[name], where=f"--config {path}: {name}")
    return values


def _remedy(name: str, *, known: Mapping[str, TyperOption]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


def _typed(value: object, *, option: TyperOption, where: str) -> object:
    """What the command line would have brought; its own checks of numbers and paths come later."""
    if option.is_flag:
        if not isinstance(value, bool):
            raise InputError(f"{where} must be true or false, got {value!r:.80}")
        return value
    if option.multiple:
        several = value if isinstance(value, list) else [value]
        return [_text(one, where=where) for one in several]
    return _text(value, where=where)


def _text(value: object, *, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{where} cannot be {value!r:.80}; write a number or a text in quotes")
    return str(value)
