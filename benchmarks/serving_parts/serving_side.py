"""Servers that take part: each a real process on a real socket, and what it has used of the processor."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from shared.datasets.base import Normalisation

TEACHER = "zoo:wrn_16_2"
CLASSES = 100
SIZE = 32
BATCH = 32
STATISTICS = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
PARTS = Path(__file__).parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True, slots=True)
class Side:
    """A running server."""

    pid: int
    port: int

    def cpu_s(self) -> float:
        """Seconds of processor, user and system, of its process and all below it."""
        return sum(_cpu_s(pid) for pid in _family(self.pid))

    def get(self, path: str) -> httpx.Response:
        """One request outside the clock."""
        return httpx.get(f"http://127.0.0.1:{self.port}{path}")


@contextmanager
def running(*command: str, path: str) -> Iterator[Side]:
    """A server that listens on the port that is added to ``command``; ready when ``path`` answers 200."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    # A group of its own: LitServe starts processes that outlive it.
    process = subprocess.Popen(
        [sys.executable, *command, str(port)], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        side = Side(pid=process.pid, port=port)
        _wait_until_ready(side, path=path, process=process)
        yield side
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_until_ready(side: Side, *, path: str, process: "subprocess.Popen[bytes]") -> None:
    for _ in range(600):
        try:
            if side.get(path).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, f"it ended with {process.returncode}"
        time.sleep(0.1)
    raise AssertionError("it did not get ready in a minute")


def _family(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task")
    children = [int(child) for task in tasks.glob("*/children") for child in task.read_text().split()]
    return [pid, *(member for child in children for member in _family(child))]


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S
