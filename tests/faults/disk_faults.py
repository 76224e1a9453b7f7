"""Disks that fail on demand: the shim, built with the system's C compiler, and processes that run under it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong below a folder; tests/faults/shim.c says what the fields mean."""

    root: Path
    calls: str = "write,fsync,rename"
    path: str = ""
    at: int = 0
    action: str = "kill"
    sticky: bool = False
    switch: Path | None = None
    log: Path | None = None

    def environment(self) -> dict[str, str]:
        """The variables that the shim reads."""
        return {
            "FAULTS_ROOT": str(self.root.resolve()),
            "FAULTS_CALLS": self.calls,
            "FAULTS_PATH": self.path,
            "FAULTS_AT": str(self.at),
            "FAULTS_ACTION": self.action,
            "FAULTS_STICKY": str(int(self.sticky)),
            "FAULTS_SWITCH": str(self.switch or ""),
            "FAULTS_LOG": str(self.log or ""),
        }


@dataclass(frozen=True)
class Outcome:
    """How a program under the shim ended."""

    code: int
    """Exit code; -9 where it was killed."""
    out: str
    err: str


class FaultyProcesses:
    """Runs programs whose disk fails, each in a child of one process that has imported the product."""

    def __init__(self, folder: Path) -> None:
        """Build the shim in ``folder`` and start the process."""
        sources = Path(__file__).parent
        compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
        if compiler is None or sys.platform != "linux":
            pytest.skip("the failing disk is a C library for Linux: needs a C compiler")
        self.shim = folder / "shim.so"
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(self.shim), str(sources / "shim.c"), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        self.folder = folder
        """Where the programs' output goes."""
        self._process = subprocess.Popen(
            [sys.executable, str(sources / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"LD_PRELOAD": str(self.shim), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        )

    def run(self, program: str, *arguments: object, fault: Fault) -> Outcome:
        """Run Python source to its end."""
        out, err = self.folder / "out", self.folder / "err"
        order = {
            "program": program,
            "arguments": list(map(str, arguments)),
            "environment": fault.environment(),
            "out": str(out),
            "err": str(err),
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Outcome(code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
