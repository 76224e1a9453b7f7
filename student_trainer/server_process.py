"""A teacher server as a child process: the trainer never imports it, it starts it as a user would."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shared.client import TeacherClient
from shared.errors import TeachonceError

MOST_DRAINING_S = 600.0
LISTENING = re.compile(r"listening on (http://\S+)")


class ServerStartError(TeachonceError):
    """The server ended or stayed silent before it was ready."""

    code = "server_start"


def command_path(name: str) -> str:
    """The command beside this interpreter, else the one on PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ServerStartError(f"no {name} command here: pip install 'teachonce[server]'")
    return found


@contextmanager
def serving(options: Sequence[str], *, log: Path, timeout_s: float = 120.0) -> Iterator[TeacherClient]:
    """Run ``teacher-server serve OPTIONS --port 0``, yield a client once it is ready, then let it drain.

    The server's output goes to ``log``. Raises `ServerStartError` with the log's last line if it does not come up
    within ``timeout_s`` seconds, or does not end cleanly.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        process = subprocess.Popen(  # noqa: S603 - our own command, without a shell
            [command_path("teacher-server"), "serve", *options, "--port", "0"],
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        with TeacherClient(_wait_until_ready(process, log=log, timeout_s=timeout_s)) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        exit_code = _wait_for_end(process, log=log)
    if exit_code != 0:
        raise ServerStartError(
            f"the teacher server ended with exit code {exit_code}: {_last_line(log)} (all of it: {log})"
        )


def _wait_for_end(process: "subprocess.Popen[bytes]", *, log: Path) -> int:
    """The exit code of a server that was told to drain: what it has is committed already, folding takes its time."""
    try:
        return process.wait(timeout=MOST_DRAINING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise ServerStartError(
            f"the teacher server did not end within {MOST_DRAINING_S:.0f} s: {_last_line(log)} (all of it: {log});"
            " no answer is lost, the same command goes on"
        ) from None


def _wait_until_ready(process: "subprocess.Popen[bytes]", *, log: Path, timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if match := LISTENING.search(log.read_text()):
            return match.group(1)
        if process.poll() is not None:
            raise ServerStartError(f"the teacher server did not start: {_last_line(log)} (all of it: {log})")
        time.sleep(0.05)
    raise ServerStartError(
        f"the teacher server was not ready after {timeout_s:.0f} s: {_last_line(log)} (all of it: {log})"
    )


def _last_line(log: Path) -> str:
    lines = log.read_text().strip().splitlines()
    return lines[-1] if lines else "it said nothing"
