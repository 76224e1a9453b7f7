"""Commands end with one line and the documented exit code."""

import io
import os
import subprocess
import sys

import pytest
import typer
from rich.console import Console

from shared.command import run_command
from shared.errors import BudgetExhaustedError, CacheLockedError, InputError, TeachonceError
from shared.progress import _bar


def make_app(error: BaseException | None = None) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work(count: int = 1) -> None:
        if error is not None:
            raise error

    return app


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (InputError("a bad\nthing"), 2, "error: a bad thing\n"),
        (BudgetExhaustedError("spent", needed=1, remaining=0), 3, "error: spent\n"),
        (CacheLockedError("locked"), 4, "error: locked\n"),
        (TeachonceError("odd"), 1, "error: odd\n"),
        (FileNotFoundError(2, "No such file", "x"), 1, "error: [Errno 2] No such file: 'x'\n"),
        (KeyboardInterrupt(), 130, ""),
        (typer.Abort(), 130, "error: interrupted\n"),
        (typer.Exit(7), 7, ""),
    ],
)
def test_an_error_becomes_one_line_and_its_exit_code(
    error: BaseException, exit_code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        run_command(make_app(error), [])
    assert exited.value.code == exit_code
    assert capsys.readouterr().err == line


@pytest.mark.parametrize("argv", [["--nope"], ["--count", "x"], ["extra"]])
def test_wrong_usage_is_one_line_and_exit_code_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        run_command(make_app(), argv)
    assert exited.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert message.count("\n") == 1


def test_a_reader_that_left_is_told_nothing() -> None:
    script = "import typer, shared.command; app = typer.Typer(); app.command()(lambda: print('a line'));"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", script + "shared.command.run_command(app, [])"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        # Buffered, as on a user's machine: the line is written when the command has ended.
        env=os.environ | {"PYTHONUNBUFFERED": ""},
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_mistake_of_our_own_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(make_app(ZeroDivisionError()), [])


def test_success_is_exit_code_0() -> None:
    with pytest.raises(SystemExit) as exited:
        run_command(make_app(), [])
    assert exited.value.code == 0


@pytest.mark.parametrize(("width", "bar", "calls"), [(160, True, True), (100, False, True), (80, False, False)])
def test_progress_is_one_readable_line_whatever_the_width(width: int, bar: bool, calls: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system=None)
    progress = _bar(console, title="cifar100/train")
    fields = {"rate": "2345 images/s", "calls": "1234 teacher calls", "left": "98766 calls left"}
    progress.add_task("cifar100/train", total=50000, completed=25000, **fields)
    console.print(progress.get_renderable())
    line = out.getvalue().strip("\n")
    assert "\n" not in line
    assert ("\u2501" in line, "1234 teacher calls" in line) == (bar, calls)
    always = ("cifar100/train", "25000/50000", "2345 images/s", "-:--:--", "98766 calls left")
    assert all(text in line for text in always)
