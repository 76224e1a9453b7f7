"""How fast a server with a weightless teacher is ready: wall-clock seconds from the process's start to ``/readyz`` 200.

    python benchmarks/startup.py [--starts 9]

The floor is what importing the web framework takes, measured in turn with it.
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

FRAMEWORK = "import fastapi, numpy, pydantic, typer, uvicorn"


def ready_seconds(folder: Path, *, port: int) -> float:
    """Start ``teacher-server serve --teacher fake:10`` on an empty cache and wait until it is ready."""
    command = [str(Path(sys.executable).parent / "teacher-server"), "serve", "--teacher", "fake:10"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--cache", str(folder / "cache"), "--port", str(port)], stdout=subprocess.DEVNULL
    )
    try:
        while not answers(f"http://127.0.0.1:{port}/readyz"):
            assert process.poll() is None, "the server ended"
            time.sleep(0.005)
        return time.perf_counter() - began
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(url: str) -> bool:
    """Whether the server is ready."""
    try:
        with urllib.request.urlopen(url, timeout=1) as reply:  # noqa: S310 - our own server
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def import_seconds() -> float:
    """A process that imports the framework and ends."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", FRAMEWORK], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=9)
    parser.add_argument("--port", type=int, default=18765)
    options = parser.parse_args()
    ready, floor = [], []
    for _ in range(options.starts):
        with tempfile.TemporaryDirectory() as folder:
            ready.append(ready_seconds(Path(folder), port=options.port))
        floor.append(import_seconds())
    print(f"command: {shlex.join(['python', *sys.argv])}")
    for name, seconds in (("ready", ready), ("framework imported", floor)):
        print(f"{name:20s}{statistics.median(seconds):6.2f} s median ({min(seconds):.2f} to {max(seconds):.2f})")


if __name__ == "__main__":
    main()
