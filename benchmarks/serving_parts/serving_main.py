"""Takes turns between the bare model, teachonce and LitServe, and prints what each reached.

Shape key: B images, H height, W width.
"""

import argparse
import base64
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from load import Load, drive, post
from scipy.stats import bootstrap
from serving_side import BATCH, CLASSES, PARTS, SIZE, STATISTICS, TEACHER, Side, running

from shared.identity import pixel_keys
from shared.teacher import Teacher, load_teacher
from shared.wire import CONTENT_TYPE, pack_tensors, unpack_tensors

JSON = "application/json"
OCTETS = "application/octet-stream"
CLIENTS = (1, 8, 64)
ROWS = 1024
"""Rows of digits that are asked about again and again."""


class Images:
    """Images that were never seen before, and requests that carry them."""

    def __init__(self) -> None:
        self._generator = np.random.default_rng(0)

    def fresh(self, count: int) -> np.ndarray:
        """Random images uint8 [B, H, W, 3]."""
        return self._generator.integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)

    def single(self, count: int) -> list[bytes]:
        """One raw image per request, for teachonce."""
        return [image_request(image) for image in self.fresh(count)]

    def peer(self, count: int) -> list[bytes]:
        """One image per request, for LitServe."""
        bodies = [json.dumps({"image": base64.b64encode(image.tobytes()).decode()}) for image in self.fresh(count)]
        return [post("/predict", body.encode(), kind=JSON) for body in bodies]

    def batches(self, count: int, *, model: str) -> list[bytes]:
        """32 images per request in the Open Inference Protocol, tensors as bytes both ways."""
        return [oip_request(images, model=model) for images in np.split(self.fresh(count), count // BATCH)]


def image_request(image: np.ndarray) -> bytes:
    """``POST /v1/images`` with one raw image."""
    body = pack_tensors({"images": image[None]}, metadata={})
    return post("/v1/images?outputs=logits", body, kind=CONTENT_TYPE, accept=CONTENT_TYPE)


def oip_request(images: np.ndarray, *, model: str) -> bytes:
    """One inference request with its tensor behind the JSON."""
    tensor = images.tobytes()
    head = {
        "inputs": [
            {
                "name": "image",
                "datatype": "UINT8",
                "shape": list(images.shape),
                "parameters": {"binary_data_size": len(tensor)},
            }
        ],
        "outputs": [{"name": "logits", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head).encode()
    more = f"Inference-Header-Content-Length: {len(text)}\r\n"
    return post(f"/v2/models/{model}/infer", text + tensor, kind=OCTETS, more=more)


def rows_request(rows: list[int]) -> bytes:
    """``POST /v1/logits``."""
    body = json.dumps({"dataset": "digits/train", "rows": rows}).encode()
    return post("/v1/logits", body, kind=JSON, accept=CONTENT_TYPE)


class Results:
    """Images per second and processor milliseconds per image of every turn, by name of the side."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = defaultdict(list)
        self.cpu_ms: dict[str, list[float]] = defaultdict(list)
        self.latencies_ms: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def note(self, name: str, *, images: int, seconds: float, cpu_s: float) -> None:
        """One turn."""
        self.rates[name].append(images / seconds)
        self.cpu_ms[name].append(1000 * cpu_s / images)

    def serve(self, name: str, side: Side, requests: list[bytes], *, clients: int, images: int = 1) -> None:
        """One turn of a server; ``images`` per request."""
        began_s = side.cpu_s()
        load: Load = drive(side.port, requests, clients=clients)
        self.note(name, images=images * len(requests), seconds=load.seconds, cpu_s=side.cpu_s() - began_s)
        self.latencies_ms[name].append((load.percentile_ms(50), load.percentile_ms(99)))

    def ratio(self, name: str, other: str, *, of: str = "rates") -> str:
        """Median ratio of two sides within rounds, with its 95 % bootstrap interval."""
        pairs = zip(getattr(self, of)[name], getattr(self, of)[other], strict=True)
        return interval([one / two for one, two in pairs])

    def line(self, name: str) -> str:
        """One side."""
        text = f"{name:34s}{interval(self.rates[name])} images/s  {interval(self.cpu_ms[name])} CPU ms/image"
        if self.latencies_ms[name]:
            p50, p99 = (statistics.median(column) for column in zip(*self.latencies_ms[name], strict=True))
            text += f"  p50 {p50:7.2f} ms  p99 {p99:7.2f} ms"
        return text


def interval(values: list[float]) -> str:
    """Median and its 95 % bootstrap interval."""
    found = bootstrap((values,), np.median, method="percentile", n_resamples=2000, rng=np.random.default_rng(0))
    low, high = found.confidence_interval
    return f"{statistics.median(values):8.4g} [{low:.3g}, {high:.3g}]"


def turns(
    results: Results, *, teacher: Teacher, ours: Side, peer: Side, images: Images, count: int
) -> Iterator[Callable[[], None]]:
    """The turns of one round, ``count`` images each; the single client gets an eighth."""
    batches, model = images.batches(count, model=teacher.id), images.fresh(count)

    def bare() -> None:
        began_s, cpu_s = time.perf_counter(), time.process_time()
        for start in range(0, count, BATCH):
            teacher.answer(list(model[start : start + BATCH]))
        results.note(
            "bare loop", images=count, seconds=time.perf_counter() - began_s, cpu_s=time.process_time() - cpu_s
        )

    yield bare
    yield lambda: results.serve("teachonce, 32 per body, 4 clients", ours, batches, clients=4, images=BATCH)
    for clients in CLIENTS:
        few = count if clients > 1 else count // 8
        mine, theirs = images.single(few), images.peer(few)
        yield lambda c=clients, r=mine: results.serve(f"teachonce, {c} clients", ours, r, clients=c)
        yield lambda c=clients, r=theirs: results.serve(f"LitServe, {c} clients", peer, r, clients=c)


def cached_turns(results: Results, *, ours: Side, again: list[bytes], count: int) -> None:
    """Questions whose answers are there: rows one by one and by the thousand, images one by one."""
    generator = np.random.default_rng(0)
    singles = [rows_request([row]) for row in generator.integers(0, ROWS, count).tolist()]
    many = [rows_request(generator.permutation(ROWS).tolist()) for _ in range(count // 64)]
    results.serve("cached row", ours, singles, clients=16)
    results.serve("cached rows, 1024 per request", ours, many, clients=4, images=ROWS)
    results.serve("cached image", ours, again, clients=16)


def parts_of_an_image(images: Images) -> dict[str, float]:
    """Milliseconds that reading the body and hashing the pixels of one raw image take."""
    body = pack_tensors({"images": images.fresh(1)}, metadata={})
    array = images.fresh(1)
    timed = {"decode": lambda: unpack_tensors(body), "hash": lambda: pixel_keys(array)}
    found = {}
    for name, work in timed.items():
        began_s = time.process_time()
        for _ in range(5000):
            work()
        found[name] = (time.process_time() - began_s) / 5
    return found


def main(description: str) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--images", type=int, default=512, help="per turn")
    parser.add_argument("--cached", type=int, default=4096, help="cached questions per turn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    teacher = load_teacher(TEACHER, classes=CLASSES, normalisation=STATISTICS)
    results, images = Results(), Images()
    with ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "cache"
        serve = ["-m", "teacher_server.cli", "serve", "--teacher", TEACHER, "--classes", str(CLASSES)]
        serve += ["--dataset", "digits", "--cache", str(cache), "--batch", str(BATCH), "--threads", "1"]
        ours = stack.enter_context(running(*serve, "--log-level", "warning", "--port", path="/readyz"))
        peer = stack.enter_context(running(str(PARTS / "serving_peer.py"), path="/health"))
        served: Teacher = teacher
        model = ours.get("/v1/cache").json()["teachers"][0]["id"]
        drive(ours.port, [rows_request(list(range(ROWS)))], clients=1)
        again = images.single(options.cached)
        drive(ours.port, again, clients=64)
        for number in range(options.rounds):
            asked = list(
                turns(results, teacher=_Named(served, model), ours=ours, peer=peer, images=images, count=options.images)
            )
            for turn in asked if number % 2 == 0 else reversed(asked):
                turn()
            cached_turns(results, ours=ours, again=again, count=options.cached)
    _print(results, options=options, images=images)


class _Named:
    """The bare teacher under the id that the server gave it: data sets differ in their statistics."""

    def __init__(self, teacher: Teacher, name: str) -> None:
        self.answer, self.id = teacher.answer, name


def _print(results: Results, *, options: argparse.Namespace, images: Images) -> None:
    print(f"command: {shlex.join(['python', *sys.argv])}")
    print(
        f"{TEACHER}, {SIZE} x {SIZE}, batch {BATCH}, 1 thread; torch {torch.__version__},"
        f" LitServe {version('litserve')}, {os.cpu_count()} cores, n = {options.rounds} rounds,"
        " medians [95 % bootstrap interval]"
    )
    for name in results.rates:
        print(results.line(name))
    batched = "teachonce, 32 per body, 4 clients"
    print(f"\n32 per body / bare loop, images/s       {results.ratio(batched, 'bare loop')}   (to reach: 0.95)")
    for clients in CLIENTS:
        ours, theirs = f"teachonce, {clients} clients", f"LitServe, {clients} clients"
        print(f"teachonce / LitServe, {clients:2d} clients, images/s {results.ratio(ours, theirs)}")
        print(f"teachonce / LitServe, {clients:2d} clients, CPU      {results.ratio(ours, theirs, of='cpu_ms')}")
    parts = parts_of_an_image(images)
    rest = [milliseconds - sum(parts.values()) for milliseconds in results.cpu_ms["cached image"]]
    print(f"front end of one raw image, CPU ms      {interval(rest)}   (to reach: 0.25), without", end=" ")
    print(", ".join(f"{name} {milliseconds:.4f}" for name, milliseconds in parts.items()))
