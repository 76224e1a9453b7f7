"""What distillation costs beside plain training, and what the cache saves: images per second of real trainings.

    python benchmarks/training.py [--networks vgg13:vgg8] [--pairs 15] [--steps 2] [--batch 64] [--threads 1]

For each teacher and student, on random 32 x 32 images of 100 classes: the student by plain cross-entropy, by KL from
the cache, and by KL with the teacher online. Each is one call of `student_trainer.loop.train` in a process of its
own; its progress view holds it between epochs, so that the three (and the bare teacher) work in turn, an epoch of
--steps steps each, in an order that alternates. A ratio is taken within each round of turns; printed are the median
over the rounds and its bootstrap interval (95 %).
"""

import argparse
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap
from torch import nn

from shared.datasets.base import ImageDataset
from shared.datasets.spec import open_dataset
from shared.models.build import build_model
from shared.models.checkpoint import CheckpointMetadata, save_checkpoint
from shared.teacher import Teacher, load_teacher
from student_trainer.config import TrainConfig
from student_trainer.device_data import DeviceImages
from student_trainer.loop import train
from student_trainer.progress import EpochMetrics, Quiet
from student_trainer.results import device_name

NETWORKS = "wrn_40_2:wrn_16_2,resnet32x4:resnet8x4,vgg13:vgg8,resnet110:resnet32"
CLASSES = 100
WARM_UP = 2
"""Turns before the clock counts: memory is taken, kernels are chosen or compiled."""
Clock = Callable[[], float]
CLOCKS: Mapping[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""``cpu`` counts this process's work: steadier where others use the machine too, and blind to a GPU."""
SPAWN = get_context("spawn")
OF_CE, OF_BOUND = 0.98, 0.97
"""What training from the cache is to reach, of plain cross-entropy and of the bound on online training."""
IMAGES = """
import numpy as np

class Images(list):
    classes = [str(label) for label in range({classes})]

def images(split):
    generator = np.random.default_rng(len(split))
    pixels = generator.integers(0, 256, ({count}, 32, 32, 3), dtype=np.uint8)
    return Images((image, row % {classes}) for row, image in enumerate(pixels))
"""
"""A data set of random images as a user would write it."""


class Turns(Quiet):
    """Holds a training between epochs, and times each from its first step to the device's end of the last."""

    def __init__(self, parent: Connection, *, clock: Clock) -> None:
        self._parent = parent
        self._clock = clock
        self._steps = self._left = 0
        self._began_s = self._seconds = 0.0

    def begin(self, *, epochs: int, steps: int, done_epochs: int) -> None:
        """Ready: wait for the first turn."""
        self._steps = steps
        self._hold()

    def step(self, *, images: int, loss: float) -> None:
        """Stop the clock after the last step."""
        self._left -= 1
        if self._left == 0:
            settle()
            self._seconds = self._clock() - self._began_s

    def epoch(self, metrics: EpochMetrics) -> None:
        """Wait for the next turn."""
        self._hold()

    def _hold(self) -> None:
        self._parent.send(self._seconds)
        self._parent.recv()
        self._left = self._steps
        self._began_s = self._clock()


def run_lane(config: TrainConfig, parent: Connection, clock: str) -> None:
    """The lane's process: one real training."""
    train(config, progress=Turns(parent, clock=CLOCKS[clock]))


class Lane:
    """One training in its own process, one epoch per turn."""

    def __init__(self, config: TrainConfig, *, clock: str) -> None:
        self.seconds: list[float] = []
        self._child, other = SPAWN.Pipe()
        self._process = SPAWN.Process(target=run_lane, args=(config, other, clock), daemon=True)
        self._process.start()
        other.close()
        self._child.recv()

    def turn(self) -> None:
        """One epoch, timed."""
        self._child.send("go")
        self.seconds.append(self._child.recv())

    def close(self) -> None:
        """Every epoch that counts is done: leave out what a training does at its end."""
        self._process.terminate()
        self._process.join()


class Bare:
    """The teacher alone on the same batches."""

    def __init__(self, teacher: Teacher, *, images: ImageDataset, batch: int, clock: Clock) -> None:
        self.seconds: list[float] = []
        self._clock = clock
        self._teacher = teacher
        starts = range(0, images.num_rows, batch)
        self._batches = [images.images(range(start, min(start + batch, images.num_rows))) for start in starts]

    def turn(self) -> None:
        """Every batch once, timed."""
        settle()
        began_s = self._clock()
        for batch in self._batches:
            self._teacher.answer(batch)
        self.seconds.append(self._clock() - began_s)

    def close(self) -> None:
        """Nothing to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What all four share."""

    folder: Path
    teacher: str
    student: str
    options: argparse.Namespace

    @property
    def dataset(self) -> str:
        """Random images, one epoch of --steps steps."""
        file = self.folder / "random_images.py"
        file.write_text(IMAGES.format(count=self.options.steps * self.options.batch, classes=CLASSES))
        return f"python:{file}:images"

    def lane(self, name: str, **changes: object) -> Lane:
        """A training held before its first epoch."""
        options = self.options
        given: dict[str, object] = {
            "dataset": self.dataset,
            "student": f"zoo:{self.student}",
            "out": self.folder / name,
            "val": 0.0,
            "student_views": "clean",
            "epochs": WARM_UP + options.pairs,
            "batch": options.batch,
            "lr": 0.001,
            "precision": options.precision,
            "compile": options.compile,
            "threads": options.threads,
            "test": False,
            "tensorboard": False,
            "checkpoint_every_s": 1e9,
        }
        return Lane(TrainConfig(**(given | changes)), clock=options.clock)  # type: ignore[arg-type]


def settle() -> None:
    """Wait until the device has nothing left to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def settled_teacher(setting: Setting, *, images: ImageDataset) -> Path:
    """A checkpoint of random weights whose batch norms know their inputs: without, resnet110 answers in millions."""
    model = build_model(f"zoo:{setting.teacher}", classes=CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    rows = np.arange(min(images.num_rows, 64))
    placed = DeviceImages(images, rows, normalisation=images.normalisation, device=torch.device("cpu"))
    with torch.no_grad():
        model.train()(placed.batch(torch.from_numpy(rows), np.zeros_like(rows)))
    metadata = CheckpointMetadata(
        architecture=f"zoo:{setting.teacher}",
        classes=CLASSES,
        mean=images.normalisation.mean,
        std=images.normalisation.std,
    )
    path = setting.folder / "teacher.safetensors"
    save_checkpoint(path, model, metadata=metadata)
    return path


def measure(setting: Setting) -> dict[str, list[float]]:
    """Seconds of each turn, by name, warm-up left out."""
    options = setting.options
    images = open_dataset(f"{setting.dataset}/train")
    teacher_spec = str(settled_teacher(setting, images=images))
    cache = filled_cache(setting, teacher=teacher_spec)
    teacher = load_teacher(teacher_spec)
    lanes: dict[str, Lane | Bare] = {
        "ce": setting.lane("ce", loss="ce"),
        "cache": setting.lane("kl", loss="kl", cache=str(cache), expect_teacher=teacher.id),
        "online": setting.lane("online", loss="kl", teacher=teacher_spec, expect_teacher=teacher.id),
        "teacher": Bare(teacher, images=images, batch=options.batch, clock=CLOCKS[options.clock]),
    }
    return take_turns(lanes, rounds=options.pairs)


def filled_cache(setting: Setting, *, teacher: str) -> Path:
    """The data set's answers, by the command with which a user fills a cache."""
    cache = setting.folder / "cache"
    fill = ["fill", "--teacher", teacher, "--dataset", f"{setting.dataset}/train", "--cache", str(cache)]
    command = [sys.executable, "-m", "teacher_server.cli", *fill]
    filled = subprocess.run(command, check=False, capture_output=True, text=True)
    if filled.returncode:
        sys.exit(f"teacher-server fill failed: {filled.stderr}")
    return cache


def take_turns(lanes: Mapping[str, Lane | Bare], *, rounds: int) -> dict[str, list[float]]:
    """Seconds of each turn, by name, warm-up left out."""
    for number in range(WARM_UP + rounds):
        # The order changes from round to round: a machine that slows down favours no side.
        for lane in lanes.values() if number % 2 == 0 else reversed(lanes.values()):
            lane.turn()
    for lane in lanes.values():
        lane.close()
    return {name: lane.seconds[WARM_UP:] for name, lane in lanes.items()}


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(median, low, high) of a 95 % percentile bootstrap."""
    found = bootstrap((values,), np.median, method="percentile", n_resamples=9999, rng=np.random.default_rng(0))
    return statistics.median(values), *found.confidence_interval


def ratios(seconds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Within each round of turns: speed from the cache against plain cross-entropy, online, and the bound."""
    rounds = [dict(zip(seconds, values, strict=True)) for values in zip(*seconds.values(), strict=True)]
    found: dict[str, Callable[[dict[str, float]], float]] = {
        "cache / ce": lambda s: s["ce"] / s["cache"],
        "cache / online": lambda s: s["online"] / s["cache"],
        "bound: 1 + teacher forward / student step": lambda s: 1 + s["teacher"] / s["ce"],
        "cache / online, of the bound": lambda s: (s["online"] / s["cache"]) / (1 + s["teacher"] / s["ce"]),
    }
    return {name: [ratio(each) for each in rounds] for name, ratio in found.items()}


def show(setting: Setting, seconds: Mapping[str, Sequence[float]]) -> None:
    """One network pair's lines."""
    images = setting.options.steps * setting.options.batch
    print(f"\n{setting.teacher} -> {setting.student}")
    for name, values in seconds.items():
        print(f"  {name:8s}{images / statistics.median(values):12,.1f} images/s")
    targets = {"cache / ce": OF_CE, "cache / online, of the bound": OF_BOUND}
    for name, values in ratios(seconds).items():
        median, low, high = interval(values)
        target = targets.get(name)
        verdict = "" if target is None else f"  target {target}: {'reached' if high >= target else 'MISSED'}"
        print(f"  {name:42s}{median:7.3f}  [{low:.3f}, {high:.3f}]{verdict}")


def main() -> None:
    """Measure and print."""
    on_cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=NETWORKS, help="teacher:student, several between commas")
    parser.add_argument("--pairs", type=int, default=15, help="rounds of turns that count")
    parser.add_argument("--steps", type=int, default=50 if on_cuda else 2, help="steps per turn")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: where others use the machine too")
    parser.add_argument("--precision", default="bfloat16" if on_cuda else "float32", help="of the student")
    parser.add_argument("--compile", action="store_true", help="the student by torch.compile")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"command: {shlex.join(['python', *sys.argv])}")
    device = device_name(torch.device("cuda" if on_cuda else "cpu"))
    print(
        f"{device}, torch {torch.__version__}, {options.threads} threads, {options.precision}, batch {options.batch},"
        f" {options.steps} steps a turn, n = {options.pairs} rounds, {options.clock} clock;"
        " medians [95 % bootstrap interval]"
    )
    for names in options.networks.split(","):
        teacher, student = names.split(":")
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(folder=Path(folder), teacher=teacher, student=student, options=options)
            show(setting, measure(setting))


if __name__ == "__main__":
    main()
