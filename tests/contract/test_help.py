"""Every command and every sub-command explains itself."""

import importlib
import runpy
import sys

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

APPS = ("teacher_server.cli", "student_trainer.cli", "cache.cli")


def app_of(module: str) -> typer.Typer:
    app = importlib.import_module(module).app
    assert isinstance(app, typer.Typer)
    return app


def pages() -> list[tuple[str, tuple[str, ...]]]:
    found: list[tuple[str, tuple[str, ...]]] = []
    for module in APPS:
        commands = getattr(get_command(app_of(module)), "commands", {})
        assert commands, f"{module} has no sub-commands"
        found += [(module, ()), *((module, (name,)) for name in sorted(commands))]
    return found


@pytest.mark.parametrize(("module", "command"), pages())
def test_the_help_page_can_be_shown(module: str, command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app_of(module), [*command, "--help"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "Usage" in result.output


@pytest.mark.parametrize(("module", "command"), [page for page in pages() if page[1]])
def test_every_option_says_what_it_is(module: str, command: tuple[str, ...]) -> None:
    silent = [
        parameter.name
        for parameter in get_command(app_of(module)).commands[command[0]].params  # type: ignore[attr-defined]
        if getattr(parameter, "help", "x") in (None, "") and parameter.name != "help"
    ]
    assert silent == []


def test_the_cache_tools_run_as_a_module(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["logit-cache", "--help"])
    monkeypatch.delitem(sys.modules, "cache.cli", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("cache.cli", run_name="__main__")
    assert ended.value.code in (0, None)
    assert "Usage" in capsys.readouterr().out
