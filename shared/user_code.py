"""Code that a user brings: run from its file, and its failures told as one line that names the file."""

import sys
from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import extract_tb
from types import ModuleType, TracebackType

from shared.errors import InputError, TeachonceError


class UserCode:
    """Turns whatever the code inside raises into one `InputError` line that names the user's file."""

    def __init__(self, file: str) -> None:
        self._file = file

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, TeachonceError):
            raise InputError(f"{self._file}: {error}") from error
        if isinstance(error, Exception | SystemExit):
            text = " ".join(str(error).split())[:200]
            lines = [frame.lineno for frame in extract_tb(trace) if Path(frame.filename) == Path(self._file).absolute()]
            where = f" (line {lines[-1]})" if lines else ""
            raise InputError(f"{self._file}{where} failed with {type(error).__name__}: {text}") from error


def run_file(path: Path) -> ModuleType:
    """The module that a Python file makes; whatever it raises comes through."""
    if not path.is_file():
        raise InputError("no such file")
    # A name of its own: two files called model.py are two modules.
    name = f"teachonce_user_{path.stem}_{sha256(bytes(path.absolute())).hexdigest()[:8]}"
    spec = spec_from_file_location(name, path.absolute())
    if spec is None or spec.loader is None:
        raise InputError("not a Python file; its name must end in .py")
    module = module_from_spec(spec)
    # Dataclasses look their module up by its name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
