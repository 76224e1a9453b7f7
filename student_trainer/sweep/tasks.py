"""The tasks that a sweep gives to its processes: training a student, or drawing an order of asking."""

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache.atomic_file import read_json, write_json
from shared.datasets.base import ImageDataset
from student_trainer.config import TrainConfig
from student_trainer.job import open_data
from student_trainer.loop import train
from student_trainer.loss_watch import DivergedError
from student_trainer.progress import EpochMetrics, Quiet
from student_trainer.run_folder import RESULTS, forget_unbegun
from student_trainer.selecting import LOOKING, asking_order, first_student
from student_trainer.sweep.draws import RowFiles, draw_rows
from student_trainer.sweep.worker import Event, tell

DIVERGED = "diverged.json"
"""Takes the place of results.json in the run folder of a training whose loss left the numbers."""
TELL_EVERY_S = 1.0

Result = dict[str, Any]
"""The fields of a `RunResult`; of a diverged training, only ``diverged``, the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """One training and what it is called."""

    name: str
    config: TrainConfig
    rows: int
    """Images per epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordering:
    """Orders of asking of one seed, for all selections."""

    seed: int
    selects: tuple[str, ...]
    files: RowFiles
    images: tuple[int, ...]
    """Numbers of images, rising: those of the budgets."""
    val: bool
    first: TrainConfig
    """The student that some selections look at."""


def train_student(training: Training) -> Result:
    """Train one student, or go on, or read back what it became."""
    # What an option leaves without effect is the recipe's doing, and said once per trial it would hide the progress.
    logging.getLogger("student_trainer").setLevel(logging.ERROR)
    out = training.config.out
    if (out / DIVERGED).exists():
        return read_json(out / DIVERGED)
    forget_unbegun(out)
    try:
        return asdict(train(training.config, progress=Teller(training)))
    except DivergedError as error:
        result = {"diverged": str(error)}
        write_json(out / DIVERGED, result)
        return result


def read_result(out: Path) -> Result | None:
    """What a training became; None while it is not finished."""
    for name in (RESULTS, DIVERGED):
        if (out / name).exists():
            return read_json(out / name)
    return None


class Teller(Quiet):
    """Tells the sweep how many student forwards are done."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._told_s = 0.0

    def begin(self, *, epochs: int, steps: int, done_epochs: int) -> None:
        """The training runs now."""
        self._tell(epochs=done_epochs)

    def epoch(self, metrics: EpochMetrics) -> None:
        """An epoch is done."""
        if time.monotonic() - self._told_s >= TELL_EVERY_S:
            self._tell(epochs=metrics.epoch)

    def _tell(self, *, epochs: int) -> None:
        self._told_s = time.monotonic()
        tell(Event(name=self._training.name, done=epochs * self._training.rows))


def order_rows(ordering: Ordering) -> None:
    """`write_orders` in a process of its own."""
    write_orders(ordering, dataset=open_data(ordering.first)[0])


def write_orders(ordering: Ordering, *, dataset: ImageDataset) -> None:
    """Write the rows that one seed asks about, for every selection and budget."""
    draw = draw_rows(num_rows=dataset.num_rows, seed=ordering.seed, val=ordering.val)
    ordering.files.keep_draw(draw, seed=ordering.seed, images=list(ordering.images))
    # The first student begins where every order does, so its rows are written whatever is selected.
    for select in dict.fromkeys(("random", *ordering.selects)):
        order = asking_order(
            select,
            pool=draw.pool,
            labels=dataset.labels,
            count=ordering.images[-1],
            initial=ordering.images[0],
            look=first_student(ordering.first) if select in LOOKING else None,
        )
        ordering.files.keep_order(order, select=select, seed=ordering.seed, images=list(ordering.images))
