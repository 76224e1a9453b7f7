"""Real server processes on real sockets, small folders of images for them, and disks that fail on demand."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from disk_faults import FaultyProcesses
from PIL import Image
from typer.testing import CliRunner

from teacher_server.cli import app


@dataclass(frozen=True)
class ServerProcess:
    """A running ``teacher-server serve``."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path
    """What it wrote to standard error."""

    def ask(self, rows: list[int], *, dataset: str = "pictures/train", **fields: object) -> httpx.Response:
        """``POST /v1/logits``."""
        body = {"dataset": dataset, "rows": rows, **fields}
        return httpx.post(f"{self.url}/v1/logits", json=body, timeout=30)

    def ledger(self) -> dict[str, object]:
        """``GET /v1/ledger``."""
        counts: dict[str, object] = httpx.get(f"{self.url}/v1/ledger", timeout=30).json()
        return counts

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


LaunchServer = Callable[..., ServerProcess]

SLOW_FAKE = """
import sys, time
from shared.fake_teacher import FakeTeacher
from teacher_server.cli import main
answer = FakeTeacher.answer
def slow(self, images):
    time.sleep({seconds})
    return answer(self, images)
FakeTeacher.answer = slow
main()
"""
"""``teacher-server`` whose fake teacher takes its time: stopped in mid work without waiting for torch to load."""


def server_program(forward_s: float = 0.0) -> list[str]:
    """The command ``teacher-server``; a fake teacher takes ``forward_s`` seconds per batch."""
    if forward_s:
        return [sys.executable, "-c", SLOW_FAKE.format(seconds=forward_s)]
    return [sys.executable, "-m", "teacher_server.cli"]


def command_environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="session")
def launch_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LaunchServer]:
    """Starts ``teacher-server serve`` with a fake teacher on a free port and waits until it listens."""
    started: list[subprocess.Popen[str]] = []

    def launch(
        cache: Path,
        *options: str,
        teacher: str = "fake:10",
        forward_s: float = 0.0,
        program: list[str] | None = None,
    ) -> ServerProcess:
        log = tmp_path_factory.mktemp("log") / "stderr.txt"
        command = [*(program or server_program(forward_s)), "serve", "--teacher", teacher, "--cache", str(cache)]
        process = subprocess.Popen(
            [*command, "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            env=command_environment(),
        )
        started.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://"), (line, log.read_text())
        return ServerProcess(process=process, url=line.split()[-1], log=log)

    yield launch
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="session")
def run_server_command() -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Runs ``teacher-server ...`` to its end."""

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*server_program(), *arguments],
            capture_output=True,
            text=True,
            timeout=90,
            env=command_environment(),
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def make_key() -> Callable[..., str]:
    """``teacher-server key ...`` in this process; returns what it printed, such as a key."""

    def make(*arguments: str) -> str:
        ran = CliRunner().invoke(app, ["key", *arguments])
        assert ran.exit_code == 0, (ran.output, ran.exception)
        return str(ran.stdout).strip()

    return make


def write_images(folder: Path, *, count: int, size: int = 8) -> Path:
    """``count`` distinct PNGs in two classes below ``folder/train``; returns ``folder``."""
    generator = np.random.default_rng(0)
    for index in range(count):
        path = folder / "train" / ("cat", "dog")[index % 2] / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder data set of 40 images, served as ``pictures/train``."""
    return write_images(tmp_path / "pictures", count=40)


@pytest.fixture(scope="session")
def start_server_command() -> Callable[..., "subprocess.Popen[str]"]:
    """Starts ``teacher-server ...`` with a fake teacher that takes ``forward_s`` seconds per batch."""

    def start(*arguments: str, forward_s: float) -> "subprocess.Popen[str]":
        command = [*server_program(forward_s), *arguments]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=command_environment())

    return start


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Path]:
    """`write_images`, for tests that need another number."""
    return write_images


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProcesses]:
    """Processes on a disk that fails; skipped where there is no C compiler."""
    processes = FaultyProcesses(tmp_path_factory.mktemp("faults"))
    yield processes
    processes.close()


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """An empty folder in memory where there is one: a kill leaves the same there, and syncing costs nothing."""
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
