"""Whether a server's memory grows with what it is asked: resident memory over a million requests.

    python benchmarks/memory.py [--requests 1000000] [--clients 4] [--misses 2000] [--warm-up 0.1]

A real ``teacher-server serve`` with a weightless teacher and the digits. The requests, drawn at random: rows as JSON
and as safetensors, single rows by GET, uploads as PNG and safetensors, the Open Inference Protocol in binary; one image
or 32, nearly all of them cached. Misses are spread evenly: what they add to the cache is memory that is meant to grow
(the index of what is kept), so they are few. Growth is the mean of the last twentieth against the mean of the first
twentieth after the warm-up, and a line through all samples after it. Linux only; about ten minutes on one core.
"""

import argparse
import io
import itertools
import json
import platform
import random
import shlex
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save

ROWS = 1437
"""Of digits/train."""
SAFETENSORS = "application/vnd.safetensors"
MIX = {
    "GET one row": 20,
    "JSON, 1 row": 25,
    "JSON, 32 rows": 2,
    "safetensors, 1 row": 20,
    "safetensors, 32 rows": 3,
    "upload, PNG": 3,
    "upload, 1 image": 3,
    "upload, 32 images": 1,
    "OIP, 1 row": 18,
    "OIP, 32 rows": 3,
    "OIP, 1 image": 2,
}
"""Kinds of requests and how often each is drawn."""


@dataclass
class Progress:
    """What the clients have done so far."""

    requests: int
    """To be made in all."""
    done: Iterator[int] = field(default_factory=itertools.count)
    count: int = 0
    failed: str = ""


@dataclass(frozen=True)
class Sample:
    """The server's memory at one moment."""

    requests: int
    rss_mib: float


def request(method: str, path: str, *, body: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
    """One HTTP/1.1 request, ready to send."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"content-length: {len(body)}"] if method == "POST" else []
    return "\r\n".join([*lines, "", ""]).encode() + body


def rows_request(rows: list[int], *, accept: str) -> bytes:
    """``POST /v1/logits``."""
    body = json.dumps({"dataset": "digits/train", "rows": rows, "outputs": ["logits", "features"]}).encode()
    return request("POST", "/v1/logits", body=body, headers={"content-type": "application/json", "accept": accept})


def oip_request(model: str, *, name: str, array: np.ndarray, parameters: dict[str, object]) -> bytes:
    """``POST /v2/models/MODEL/infer`` with a binary tensor, answered in binary."""
    kind = {"row": "INT64", "image": "UINT8"}[name]
    given = {"name": name, "datatype": kind, "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
    head = json.dumps({"parameters": {**parameters, "binary_data_output": True}, "inputs": [given]}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return request("POST", f"/v2/models/{model}/infer", body=head + array.tobytes(), headers=headers)


def images_request(images: np.ndarray) -> bytes:
    """``POST /v1/images`` with images uint8 [B, 8, 8, 3]."""
    return request("POST", "/v1/images", body=save({"images": images}), headers={"content-type": SAFETENSORS})


def png_request(image: np.ndarray) -> bytes:
    """``POST /v1/images`` with one file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return request("POST", "/v1/images", body=file.getvalue(), headers={"content-type": "image/png"})


def make_pools(model: str, *, seed: int = 0, size: int = 50) -> dict[str, list[bytes]]:
    """Requests of every kind, about things that one pass over them makes cached."""
    chance = random.Random(seed)
    images = np.random.default_rng(seed).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)

    def some_rows(count: int) -> list[int]:
        return chance.sample(range(ROWS), count)

    def some_images(count: int) -> np.ndarray:
        return images[chance.sample(range(len(images)), count)]

    def oip_rows(count: int) -> bytes:
        asked = np.array(some_rows(count), dtype="<i8")
        return oip_request(model, name="row", array=asked, parameters={"dataset": "digits/train"})

    makers = {
        "GET one row": lambda: request("GET", f"/v1/logits/digits/train/{some_rows(1)[0]}"),
        "JSON, 1 row": lambda: rows_request(some_rows(1), accept="application/json"),
        "JSON, 32 rows": lambda: rows_request(some_rows(32), accept="application/json"),
        "safetensors, 1 row": lambda: rows_request(some_rows(1), accept=SAFETENSORS),
        "safetensors, 32 rows": lambda: rows_request(some_rows(32), accept=SAFETENSORS),
        "upload, PNG": lambda: png_request(some_images(1)[0]),
        "upload, 1 image": lambda: images_request(some_images(1)),
        "upload, 32 images": lambda: images_request(some_images(32)),
        "OIP, 1 row": lambda: oip_rows(1),
        "OIP, 32 rows": lambda: oip_rows(32),
        "OIP, 1 image": lambda: oip_request(model, name="image", array=some_images(1), parameters={}),
    }
    assert makers.keys() == MIX.keys()
    return {kind: [make() for _ in range(size)] for kind, make in makers.items()}


class Client:
    """One connection that is kept open; costs little beside what the server takes for a request."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.create_connection(address)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, asked: bytes) -> tuple[int, bytes]:
        """Status and body."""
        self._socket.sendall(asked)
        received = b""
        while (split := received.find(b"\r\n\r\n")) < 0:
            received += self._more()
        head = received[:split].lower()
        start = head.index(b"content-length: ") + len(b"content-length: ")
        length = int(head[start:].split(b"\r\n", 1)[0])
        while len(received) < split + 4 + length:
            received += self._more()
        return int(head.split(b" ", 2)[1]), received[split + 4 :]

    def _more(self) -> bytes:
        more = self._socket.recv(1 << 20)
        assert more, "the server closed the connection"
        return more


def drive(
    address: tuple[str, int], *, pools: dict[str, list[bytes]], progress: Progress, every: int, seed: int
) -> None:
    """One client: draws and asks until all requests are made; one in ``every`` is about an image nobody has seen."""
    chance, client = random.Random(seed), Client(address)
    pixels = np.random.default_rng(10_000 + seed)
    kinds, weights = list(pools), list(MIX.values())
    while (number := next(progress.done)) < progress.requests and not progress.failed:
        if every and number % every == 0:
            asked = images_request(pixels.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8))
        else:
            asked = chance.choice(pools[chance.choices(kinds, weights)[0]])
        status, body = client.ask(asked)
        if status != 200:
            progress.failed = f"{status}: {body[:300]!r}"
        progress.count += 1


def resident_mib(pid: int) -> float:
    """What a process holds in memory now."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def watch(pid: int, *, progress: Progress, clients: list[threading.Thread]) -> list[Sample]:
    """Samples until the clients are done."""
    samples = []
    while any(thread.is_alive() for thread in clients):
        samples.append(Sample(progress.count, resident_mib(pid)))
        if len(samples) % 60 == 0:
            print(f"  {progress.count:>9,} requests  {samples[-1].rss_mib:7.1f} MiB", flush=True)
        time.sleep(0.5)
    assert not progress.failed, progress.failed
    return samples


def tell(samples: list[Sample], *, options: argparse.Namespace, seconds: float, added: int) -> None:
    """Print the growth."""
    first = options.requests * options.warm_up
    width = (options.requests - first) / 20
    early = [sample.rss_mib for sample in samples if first <= sample.requests < first + width]
    late = [sample.rss_mib for sample in samples if sample.requests >= options.requests - width]
    warm = [(sample.requests, sample.rss_mib) for sample in samples if sample.requests >= first]
    assert early and late, "too few samples: make more requests"
    per_request, _ = np.polyfit(*np.array(warm).T, 1)
    before, after = float(np.mean(early)), float(np.mean(late))
    print(f"command: {shlex.join(['python', *sys.argv])}")
    print(f"machine: {platform.machine()}, Python {platform.python_version()}, {options.clients} clients")
    rate = options.requests / seconds
    print(f"requests: {options.requests:,} in {seconds:.0f} s ({rate:.0f}/s), {added} of them misses")
    print(f"resident: {before:.1f} MiB after {first:,.0f} requests, {after:.1f} MiB at the end (n={len(warm)} samples)")
    print(f"growth: {100 * (after / before - 1):+.2f} %; line: {100 * per_request * 1e6 / before:+.2f} % per million")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--misses", type=int, default=2000, help="images that nobody has asked about before")
    parser.add_argument("--warm-up", type=float, default=0.1, help="part of the requests before memory is compared")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "teacher_server.cli", "serve", "--teacher", "fake:10", "--dataset", "digits"]
        # Not in this file's folder: it holds a cache.py.
        server = subprocess.Popen(
            [*command, "--cache", f"{folder}/store", "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        try:
            assert server.stdout is not None
            host, port = server.stdout.readline().split("//")[1].split(":")
            measure(server.pid, address=(host, int(port)), options=options)
        finally:
            server.terminate()
            server.wait(timeout=60)


def measure(pid: int, *, address: tuple[str, int], options: argparse.Namespace) -> None:
    """Cache what will be asked, then ask."""
    asker = Client(address)
    _, inventory = asker.ask(request("GET", "/v1/cache"))
    pools = make_pools(json.loads(inventory)["teachers"][0]["id"])
    kept = rows_request(list(range(ROWS)), accept="application/json")
    for asked in [kept, *itertools.chain(*pools.values())]:
        status, body = asker.ask(asked)
        assert status == 200, body[:300]
    before = json.loads(asker.ask(request("GET", "/v1/ledger"))[1])["teacher_calls"]
    progress = Progress(options.requests)
    every = options.requests // options.misses if options.misses else 0
    arguments = {"pools": pools, "progress": progress, "every": every}
    clients = [
        threading.Thread(target=drive, args=(address,), kwargs={**arguments, "seed": seed}, daemon=True)
        for seed in range(options.clients)
    ]
    began = time.perf_counter()
    for thread in clients:
        thread.start()
    samples = watch(pid, progress=progress, clients=clients)
    seconds = time.perf_counter() - began
    added = json.loads(Client(address).ask(request("GET", "/v1/ledger"))[1])["teacher_calls"] - before
    tell(samples, options=options, seconds=seconds, added=added)


if __name__ == "__main__":
    main()
