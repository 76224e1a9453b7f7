"""What keeping, counting and committing cost: `fill` against the bare model in a loop, images per second.

    python benchmarks/fill.py [--teacher zoo:wrn_40_2] [--images 2048] [--pairs 7] [--batch 64]

Both sides run the same teacher on the same images in this process, in turn. The ratio is taken pair by pair.
"""

import argparse
import asyncio
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from cache.writer import CacheWriter
from shared.datasets.base import ArrayDataset, ImageDataset, Normalisation, SplitFacts
from shared.malloc import keep_freed_memory
from shared.teacher import Teacher, load_teacher
from teacher_server.answering import Answering
from teacher_server.fill import fill
from teacher_server.settings import AnsweringSettings

STATISTICS = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
CLASSES = 100


def random_images(count: int) -> ImageDataset:
    """Random 32 x 32 images: distinct keys, the cost of CIFAR's."""
    generator = np.random.default_rng(0)
    facts = SplitFacts(
        name="random/train",
        classes=[str(label) for label in range(CLASSES)],
        labels=generator.integers(0, CLASSES, count),
        view_policy="crop4flip",
        normalisation=STATISTICS,
    )
    return ArrayDataset(facts, pixels=generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))


def bare_loop(teacher: Teacher, *, images: ImageDataset, batch: int) -> None:
    """The teacher on every image, answers thrown away."""
    for start in range(0, images.num_rows, batch):
        teacher.answer(images.images(range(start, min(start + batch, images.num_rows))))


def kept_fill(teacher: Teacher, *, images: ImageDataset, batch: int) -> None:
    """The same through the ledger into a new cache, folded at its end."""
    with tempfile.TemporaryDirectory() as folder, closing(CacheWriter.open(Path(folder) / "cache")) as writer:
        cache = writer.open_cache(teacher.description, dataset=images.description, outputs=None)

        async def run() -> None:
            settings = AnsweringSettings(batch_images=batch, max_delay_s=0.0)
            async with Answering(writer, teacher=teacher, settings=settings) as answering:
                counts = await fill(
                    answering,
                    dataset=images,
                    cache=cache,
                    rows=np.arange(images.num_rows),
                    views=(0,),
                    run="default",
                    batch_images=batch,
                    progress=lambda _: None,
                )
            assert counts.teacher_calls == images.num_rows

        asyncio.run(run())


def seconds(work: Callable[[], None]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="zoo:wrn_40_2")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    # As the command does; both sides have it.
    keep_freed_memory(os.environ)
    torch.set_num_threads(options.threads)
    teacher = load_teacher(options.teacher, classes=CLASSES, normalisation=STATISTICS)
    images = random_images(options.images)
    images.keys  # noqa: B018 - fingerprinted before the clock starts: `fill` does it once per data set, not per run
    bare_loop(teacher, images=images, batch=options.batch)
    bare, kept = [], []
    for pair in range(options.pairs):
        # The order changes from pair to pair: a machine that slows down favours neither side.
        sides = [(bare, bare_loop), (kept, kept_fill)]
        for times, work in sides if pair % 2 == 0 else reversed(sides):
            times.append(seconds(lambda work=work: work(teacher, images=images, batch=options.batch)))
    ratios = sorted(loop / filled for loop, filled in zip(bare, kept, strict=True))
    print(f"command: {shlex.join(['python', *sys.argv])}")
    print(f"torch {torch.__version__}, {options.threads} threads, batch {options.batch}, n = {options.pairs} pairs")
    print(f"bare loop   {options.images / statistics.median(bare):8.1f} images/s (median)")
    print(f"fill        {options.images / statistics.median(kept):8.1f} images/s (median)")
    print(f"fill / bare {statistics.median(ratios):8.3f} (median of pairs; {ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
