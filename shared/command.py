"""How every command ends: one line on standard error and an exit code, no traceback for a mistake of the user."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from shared.errors import TeachonceError

INTERRUPTED = 130


def run_command(app: typer.Typer, argv: Sequence[str] | None = None) -> None:
    """Run ``app`` on ``argv`` (default: the process's own) and leave the process with its exit code.

    Errors of `shared.errors` end with their own exit code, wrong usage with 2, Ctrl-C with 130.
    """
    try:
        result = get_command(app).main(args=None if argv is None else list(argv), standalone_mode=False)
        sys.stdout.flush()
    except TeachonceError as error:
        _fail(str(error), exit_code=error.exit_code)
    except TyperException as error:
        _fail(error.format_message(), exit_code=error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", exit_code=INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output left (`... | head`): nobody is to be told, nor by Python's own last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        _fail(str(error), exit_code=1)
    # Typer turns Ctrl-C and typer.Exit(n) into a returned exit code.
    raise SystemExit(result if isinstance(result, int) else 0)


def _fail(message: str, *, exit_code: int) -> NoReturn:
    """One line, whatever the message holds; an empty one (help was shown instead) says nothing."""
    line = " ".join(message.split())
    if line:
        sys.stderr.write(f"error: {line}\n")
    raise SystemExit(exit_code)
