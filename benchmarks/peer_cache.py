"""Three things that a cache of answers must not get wrong, asked of MLServer's response cache and of teachonce alike.

    python benchmarks/peer_cache.py [--peer mlserver==1.7.1] [--venv DIR]

1. Two teachers are asked about the same image: each gives its own answer.
2. Two images have the same bytes and different shapes: each gets its own answer.
3. Ten clients ask about the same new image at once: the model runs once.

Both sides get the same requests (Open Inference Protocol, JSON) over HTTP; their models append a line to a file at
every call. teachonce keeps both teachers in one cache folder. The peer is installed from the package index into an
environment of its own, a temporary one unless ``--venv`` names one to keep: it needs older versions of what teachonce
stands on.
"""

import argparse
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, Self

FORWARD_S = 0.3
"""What a forward takes: long enough for ten clients to ask during it."""
CLIENTS = 10

PEER_MODEL = """
import asyncio
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput

class Teacher(MLModel):
    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        with open({calls!r}, "a") as file:
            file.write(self.name + "\\n")
        await asyncio.sleep({forward_s})
        _, height, width, _ = payload.inputs[0].shape
        said = [float(len(self.name)), float(height), float(width)]
        return InferenceResponse(model_name=self.name, outputs=[
            ResponseOutput(name="logits", shape=[1, 3], datatype="FP32", data=said)])
"""
OWN_SERVER = """
import time
from shared.fake_teacher import FakeTeacher
from teacher_server.cli import main
answer = FakeTeacher.answer
def counted(self, images, outputs=()):
    with open({calls!r}, "a") as file:
        file.write((self.id + "\\n") * len(images))
    time.sleep({forward_s})
    return answer(self, images, outputs)
FakeTeacher.answer = counted
main()
"""


class Side(Protocol):
    """One server with two teachers, ``a`` and ``bb``."""

    name: str

    def ask(self, teacher: str, *, shape: tuple[int, int], pixels: list[int]) -> list[float]:
        """The logits of one image."""

    def calls(self) -> int:
        """How often a model ran."""


class Peer:
    """MLServer in its own environment, both models with their cache enabled."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._python, self._folder = python, folder
        told = "from importlib.metadata import version; print(version('mlserver'))"
        self.name = f"MLServer {_output([str(python), '-c', told])}"
        self._calls = folder / "calls"

    def __enter__(self) -> Self:
        http, grpc, metrics = (_free_port() for _ in range(3))
        settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": grpc, "metrics_port": metrics}
        settings |= {"parallel_workers": 0, "cache_enabled": True, "cache_size": 100}
        (self._folder / "settings.json").write_text(json.dumps(settings))
        (self._folder / "peer_model.py").write_text(PEER_MODEL.format(calls=str(self._calls), forward_s=FORWARD_S))
        for name in ("a", "bb"):
            (self._folder / name).mkdir()
            model = {"name": name, "implementation": "peer_model.Teacher", "cache_enabled": True}
            (self._folder / name / "model-settings.json").write_text(json.dumps(model))
        self._url = f"http://127.0.0.1:{http}"
        self._process = subprocess.Popen(
            [self._python.with_name("mlserver"), "start", "."],
            cwd=self._folder,
            env=os.environ | {"PYTHONPATH": str(self._folder)},
            stdout=subprocess.DEVNULL,
            stderr=(self._folder / "log").open("w"),
        )
        for name in ("a", "bb"):
            _wait_until(lambda name=name: _is_ready(f"{self._url}/v2/models/{name}/ready"), self._process)
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._process)

    def ask(self, teacher: str, *, shape: tuple[int, int], pixels: list[int]) -> list[float]:
        """See `Side`."""
        return _infer(f"{self._url}/v2/models/{teacher}/infer", shape=shape, pixels=pixels)

    def calls(self) -> int:
        """See `Side`."""
        return _lines(self._calls)


class Own:
    """``teacher-server serve`` with the fake teachers of 3 and 4 classes, in turn on the same cache folder."""

    def __init__(self, folder: Path) -> None:
        self.name = f"teachonce {version('teachonce')}"
        self._folder = folder
        self._calls = folder / "calls"
        self._running: tuple[str, subprocess.Popen[str], str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            _end(self._running[1])

    def ask(self, teacher: str, *, shape: tuple[int, int], pixels: list[int]) -> list[float]:
        """See `Side`."""
        if self._running is None or self._running[0] != teacher:
            self._start(teacher)
        assert self._running is not None
        return _infer(self._running[2], shape=shape, pixels=pixels)

    def calls(self) -> int:
        """See `Side`."""
        return _lines(self._calls)

    def _start(self, teacher: str) -> None:
        self.__exit__()
        program = OWN_SERVER.format(calls=str(self._calls), forward_s=FORWARD_S)
        options = ["--teacher", {"a": "fake:3", "bb": "fake:4"}[teacher], "--cache", str(self._folder / "store")]
        process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *options, "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        with urllib.request.urlopen(f"{url}/v1/cache", timeout=30) as reply:  # noqa: S310 - our own server
            model = json.load(reply)["teachers"][0]["id"]
        self._running = (teacher, process, f"{url}/v2/models/{model}/infer")


def two_teachers(side: Side) -> tuple[bool, str]:
    """Each gives its own answer about one image."""
    before, image = side.calls(), _image(1)
    first = side.ask("a", shape=(4, 8), pixels=image)
    second = side.ask("bb", shape=(4, 8), pixels=image)
    calls = side.calls() - before
    return first != second and calls == 2, f"{'own' if first != second else 'the same'} answers, {_count(calls)}"


def two_shapes(side: Side) -> tuple[bool, str]:
    """Each image gets its own answer."""
    before, image = side.calls(), _image(2)
    wide = side.ask("a", shape=(4, 8), pixels=image)
    high = side.ask("a", shape=(8, 4), pixels=image)
    calls = side.calls() - before
    return wide != high and calls == 2, f"{'own' if wide != high else 'the same'} answers, {_count(calls)}"


def ten_at_once(side: Side) -> tuple[bool, str]:
    """One call, and ten times the same answer."""
    image = _image(3)
    # The server of this teacher is up, and has answered before.
    side.ask("a", shape=(4, 8), pixels=_image(4))
    before = side.calls()
    with ThreadPoolExecutor(CLIENTS) as pool:
        asked = [pool.submit(side.ask, "a", shape=(4, 8), pixels=image) for _ in range(CLIENTS)]
        answers = {tuple(each.result()) for each in asked}
    calls = side.calls() - before
    return len(answers) == 1 and calls == 1, f"{len(answers)} answer, {_count(calls)}"


TESTS: dict[str, Callable[[Side], tuple[bool, str]]] = {
    "two teachers, one image": two_teachers,
    "two shapes, the same bytes": two_shapes,
    "ten at once, one image": ten_at_once,
}


def _image(seed: int) -> list[int]:
    return [(index * index + 7 * index * seed) % 256 for index in range(4 * 8 * 3)]


def _infer(url: str, *, shape: tuple[int, int], pixels: list[int]) -> list[float]:
    given = {"name": "image", "datatype": "UINT8", "shape": [1, *shape, 3], "data": pixels}
    body = json.dumps({"inputs": [given], "outputs": [{"name": "logits"}]}).encode()
    request = urllib.request.Request(url, data=body, headers={"content-type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310 - a server that this script started
        answer: dict[str, Any] = json.load(reply)
    return [float(number) for number in answer["outputs"][0]["data"]]


def _count(calls: int) -> str:
    return "1 call" if calls == 1 else f"{calls} calls"


def _lines(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:  # noqa: S310 - as above
            return bool(reply.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def _wait_until(condition: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the peer ended"
        assert time.monotonic() < deadline, "the peer is not ready after two minutes"
        time.sleep(0.1)


def _end(process: "subprocess.Popen[Any]") -> None:
    process.terminate()
    process.wait(timeout=60)


def _output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def install(requirement: str, folder: Path) -> Path | None:
    """The Python of an environment that has the peer, None where it cannot be had; one that is there is kept."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--quiet", "--disable-pip-version-check", requirement]
    return python if subprocess.run(pip, check=False).returncode == 0 else None


def main() -> None:
    """Ask both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="mlserver==1.7.1", help="what to install")
    parser.add_argument("--venv", type=Path, help="environment of the peer, made if absent and kept")
    options = parser.parse_args()
    with ExitStack() as stack:
        peer_folder, own_folder, made = (Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(3))
        python = install(options.peer, options.venv or made / "venv")
        sides: list[Side] = [] if python is None else [stack.enter_context(Peer(python, peer_folder))]
        sides.append(stack.enter_context(Own(own_folder)))
        results = {name: [test(side) for side in sides] for name, test in TESTS.items()}
    print(f"command: {shlex.join(['python', *sys.argv])}")
    if python is None:
        print(f"{options.peer} could not be installed: teachonce alone")
    print(f"{'':28s}" + "".join(f"{side.name:34s}" for side in sides))
    for name, outcomes in results.items():
        cells = [f"{'pass' if passed else 'FAIL'}: {what}" for passed, what in outcomes]
        print(f"{name:28s}" + "".join(f"{cell:34s}" for cell in cells).rstrip())
    assert all(outcomes[-1][0] for outcomes in results.values()), "teachonce failed"


if __name__ == "__main__":
    main()
