"""Asking the teacher once, before any training: every budget is a run of its own in the ledger.

Shape key: B rows of a request, N rows.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.client import TeacherClient
from shared.errors import InputError
from student_trainer.config import TrainConfig
from student_trainer.job import open_data
from student_trainer.mirror import fetch_missing, read_api_key
from student_trainer.progress import Quiet
from student_trainer.rows import read_rows
from student_trainer.server_process import serving
from student_trainer.sweep.worker import Event, tell

Ints = NDArray[np.int64]
ROWS_PER_REQUEST = 128
"""One request is one batch of the teacher, kept whole or not at all: stopped and started again, a sweep forms the same
batches, and so gets the same low bits."""
DEADLINE_S = 600.0
MOST_START_S = 3600.0
"""The server looks at every image of all splits before it listens, once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """One run of the ledger: what it may ask."""

    name: str
    budget: int
    dataset: str
    """``NAME/SPLIT``."""
    rows: Path
    """File of the images."""
    views: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCounts:
    """What the ledger counted for one run."""

    budget: int | None
    attempts: int
    teacher_calls: int
    charged: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What asking led to; OUT/asked.json holds these fields."""

    teacher: str
    """Id of who answered."""
    attempts: int
    teacher_calls: int
    runs: dict[str, RunCounts] = field(default_factory=dict)

    @classmethod
    def read(cls, record: dict[str, Any]) -> "Asked":
        """`attributes` backwards."""
        return cls(**record | {"runs": _counts(record["runs"])})

    def attributes(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inquiry:
    """Everything that is asked about, and how."""

    name: str
    """Of the task."""
    config: TrainConfig
    """Says where the data set lies; its ``cache`` is the folder of the answers, or the address of a server."""
    server: tuple[str, ...]
    """Options of `teacher-server serve`; none for a server that runs elsewhere."""
    spendings: tuple[Spending, ...]
    outputs: tuple[str, ...]
    """Of every row."""
    classes: int
    """Of the data set: a teacher with others is asked nothing."""
    log: Path
    """What the server says."""


def ask(inquiry: Inquiry) -> Asked:
    """Serve the teacher, ask it about every row that is not answered yet, and stop."""
    done = 0
    with serving([*inquiry.server, f"--deadline-s={DEADLINE_S}"], log=inquiry.log, timeout_s=MOST_START_S) as client:
        teacher = _check_teacher(client, classes=inquiry.classes)
        for spending in inquiry.spendings:
            _open_run(client, spending.name, budget=spending.budget)
            for rows_B, view in _requests(spending):
                client.logits(spending.dataset, rows_B, view=view, outputs=inquiry.outputs, run=spending.name)
                done += len(rows_B)
                tell(Event(name=inquiry.name, done=done))
        ledger = client.ledger()
    return Asked(
        teacher=teacher,
        attempts=ledger["attempts"],
        teacher_calls=ledger["teacher_calls"],
        runs=_counts({name: run for name, run in ledger["runs"].items() if name != "default"}),
    )


def fetch(inquiry: Inquiry) -> Asked:
    """Ask a running server for what the local copy of its answers lacks; its own ledger keeps the counts."""
    config = inquiry.config
    train_set, _ = open_data(config)
    done = 0
    with TeacherClient(str(config.cache), api_key=read_api_key(config.api_key_file)) as client:
        teacher = _check_teacher(client, classes=inquiry.classes)
        for spending in inquiry.spendings:
            _open_run(client, spending.name, budget=spending.budget)
            rows_N = read_rows(spending.rows)
            fetch_missing(
                replace(config, run_name=spending.name),
                dataset=train_set,
                rows=rows_N,
                views=spending.views,
                choose=lambda _served: inquiry.outputs,
                progress=Quiet(),
            )
            done += len(rows_N) * len(spending.views)
            tell(Event(name=inquiry.name, done=done))
        counts = _counts({spending.name: client.run(spending.name) for spending in inquiry.spendings})
    return Asked(
        teacher=teacher,
        attempts=sum(run.attempts for run in counts.values()),
        teacher_calls=sum(run.teacher_calls for run in counts.values()),
        runs=counts,
    )


def _check_teacher(client: TeacherClient, *, classes: int) -> str:
    """The id of who will answer; InputError, before the first call, where it knows other classes."""
    teacher = client.cache()["teachers"][0]
    if teacher["classes"] != classes:
        raise InputError(
            f"teacher: {teacher['id']} tells {teacher['classes']} classes apart and the data set has {classes}; give"
            " weights that were trained on this data set"
        )
    return str(teacher["id"])


def _open_run(client: TeacherClient, name: str, *, budget: int) -> None:
    """Make a run with its budget. Attempts that a killed server took with it are paid for again, and stay counted."""
    before = client.ledger()["runs"].get(name, {"attempts": 0, "teacher_calls": 0})
    client.set_budget(name, budget + before["attempts"] - before["teacher_calls"])


def _requests(spending: Spending) -> Iterator[tuple[Ints, int]]:
    """(rows [B], view) of each request."""
    rows_N = read_rows(spending.rows)
    for view in spending.views:
        for start in range(0, len(rows_N), ROWS_PER_REQUEST):
            yield rows_N[start : start + ROWS_PER_REQUEST], view


def _counts(runs: dict[str, dict[str, Any]]) -> dict[str, RunCounts]:
    names = RunCounts.__dataclass_fields__
    return {name: RunCounts(**{key: run[key] for key in names}) for name, run in runs.items()}
