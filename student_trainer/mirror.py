"""A local cache of what a teacher server answered: every row is asked for once, then training needs no server.

Shape key: B rows of a request.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.layout import forms_of
from cache.reader import CacheReader
from cache.records import specs_from
from cache.writer import CacheHandle, CacheWriter
from shared.client import TeacherClient
from shared.datasets.base import ImageDataset
from shared.descriptions import TeacherDescription
from shared.errors import IdentityError, InputError, OutputNotCachedError, UnknownNameError
from shared.outputs import OutputForm
from student_trainer.config import TrainConfig
from student_trainer.lacking import ANOTHER_MIRROR, about_maps, fill_command, said
from student_trainer.progress import ProgressView

logger = logging.getLogger(__name__)

ROWS_PER_FETCH = 1024
"""Rows between two commits of the local cache."""
WELCOME_OUTPUTS = ("logits", "features")
"""Kept where the server has them, so that the next loss needs no request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fetched:
    """What asking a server led to."""

    teacher: str | None = None
    """Id of the teacher that answered; None where nobody was asked."""
    teacher_calls: int = 0
    """Teacher calls that the requests caused: rows that the server had answered before cost none."""


def mirror_path(config: TrainConfig) -> Path:
    """Folder of the local cache."""
    return config.mirror or config.out / "cache"


def fetch_missing(
    config: TrainConfig,
    *,
    dataset: ImageDataset,
    rows: NDArray[np.int64],
    views: Sequence[int],
    choose: Callable[[Collection[str]], Sequence[str]],
    progress: ProgressView,
) -> Fetched:
    """Ask the server for the rows and views that the local cache lacks; makes no request where it lacks none.

    ``choose`` names the outputs that are needed, of those that are kept. A local cache that exists goes on with the
    outputs that it has. Raises, before the first row is asked for, IdentityError where the server's data set or teacher
    is another one, OutputNotCachedError where the server or the local cache lacks an output that is needed, and
    InputError where the server lacks one that the local cache has.
    """
    path = mirror_path(config)
    if not any(_requests(path, teacher=config.expect_teacher, dataset=dataset, rows=rows, views=views)):
        logger.info("all %d rows are in %s: no request", len(rows), path)
        return Fetched()
    done = teacher_calls = 0
    with TeacherClient(str(config.cache), api_key=read_api_key(config.api_key_file)) as client:
        inventory = client.cache()
        teacher = _expected_teacher(inventory, expected=config.expect_teacher)
        check_served(inventory, dataset=dataset)
        _check_kept(path, config, dataset=dataset, teacher=teacher)
        requests = list(_requests(path, teacher=teacher.id, dataset=dataset, rows=rows, views=views))
        total = sum(len(rows_B) for _, rows_B in requests)
        forms = _served_forms(inventory, teacher=teacher, dataset=dataset)
        with _kept(path, teacher=teacher.id, dataset=dataset) as reader:
            wanted = _wanted(config, kept=None if reader is None else reader.outputs, served=forms, choose=choose)
        with closing(CacheWriter.open(path)) as writer:
            for view, rows_B in requests:
                answers = client.logits(dataset.name, rows_B, view=view, outputs=wanted, run=config.run_name)
                _check_answering(answers.teacher, teacher=teacher)
                dtypes = {name: str(array.dtype) for name, array in answers.outputs.items()}
                handle = writer.open_cache(teacher, dataset.description, dtypes, forms)
                _keep(writer, handle, dataset=dataset, rows_B=rows_B, view=view, outputs=answers.outputs)
                done, teacher_calls = done + len(rows_B), teacher_calls + answers.teacher_calls
                progress.fetch(done=done, total=total, teacher_calls=teacher_calls)
    return Fetched(teacher=teacher.id, teacher_calls=teacher_calls)


def _wanted(
    config: TrainConfig,
    *,
    kept: Collection[str] | None,
    served: Collection[str],
    choose: Callable[[Collection[str]], Sequence[str]],
) -> list[str]:
    """The outputs to ask for, all that the local cache keeps where there is one (``kept`` is not None)."""
    needed = list(dict.fromkeys(choose(served if kept is None else kept)))
    here, there = mirror_path(config), f"the server at {config.cache}"
    # Not known of a server that has opened no cache for these yet.
    unserved = [name for name in needed if name not in served] if served else []
    if unserved:
        command = fill_command(unserved, cache="CACHE", dataset=("--dataset", "DATASET"))
        raise OutputNotCachedError(
            f"{said(there, kept=served, lacking=unserved)}; stop the server, add it on its machine with `{command}`,"
            f" where CACHE, DATASET and TEACHER are the server's, and start it again{about_maps(unserved)}"
        )
    if kept is None:
        return sorted({*needed, *(set(served) & set(WELCOME_OUTPUTS))})
    lacking = [name for name in needed if name not in kept]
    if lacking:
        raise OutputNotCachedError(f"{said(str(here), kept=kept, lacking=lacking)}; {ANOTHER_MIRROR}")
    more = [name for name in kept if served and name not in served]
    if more:
        raise InputError(
            f"{here} holds {', '.join(kept)}, and {there} keeps no {', '.join(more)}, so that no row can be added;"
            f" {ANOTHER_MIRROR}"
        )
    return sorted(kept)


def _requests(
    path: Path, *, teacher: str | None, dataset: ImageDataset, rows: NDArray[np.int64], views: Sequence[int]
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(view, rows [B]) of each request that is still to be made; of all, where nothing is kept."""
    with _kept(path, teacher=teacher, dataset=dataset) as reader:
        for view in views:
            lacking = rows if reader is None else rows[~reader.present(view)[rows]]
            for start in range(0, len(lacking), ROWS_PER_FETCH):
                yield view, lacking[start : start + ROWS_PER_FETCH]


@contextmanager
def _kept(path: Path, *, teacher: str | None, dataset: ImageDataset) -> Iterator[CacheReader | None]:
    """What the local cache has of this data set; None where that is nothing, or of several teachers."""
    try:
        reader = CacheReader.open(path, teacher=teacher, dataset=dataset.name)
    except InputError:  # killed before its first answer, or other answers lie there: these have room beside them
        yield None
        return
    with reader:
        reader.check_dataset(dataset)
        yield reader


def _check_kept(path: Path, config: TrainConfig, *, dataset: ImageDataset, teacher: TeacherDescription) -> None:
    """Raise IdentityError rather than pay another teacher for rows that one has answered."""
    with _kept(path, teacher=None, dataset=dataset) as reader:
        if reader is not None and reader.teacher.id != teacher.id and config.expect_teacher is None:
            raise IdentityError(
                f"{path} holds answers of {reader.teacher.id}, and the server's teacher is {teacher.id}: give"
                f" --expect-teacher {teacher.id} to ask it for all rows, or another --out"
            )


def _keep(
    writer: CacheWriter,
    handle: CacheHandle,
    *,
    dataset: ImageDataset,
    rows_B: NDArray[np.int64],
    view: int,
    outputs: dict[str, NDArray[Any]],
) -> None:
    writer.adopt(
        handle,
        keys=keys_of(dataset, rows_B, view=view),
        rows=rows_B,
        views=np.full(len(rows_B), view, dtype=np.int64),
        labels=dataset.labels[rows_B],
        outputs=outputs,
    )


def keys_of(dataset: ImageDataset, rows_B: NDArray[np.int64], *, view: int) -> NDArray[np.uint8]:
    """Keys of one view of rows, uint8 [B, 32]."""
    if view == 0:
        return dataset.keys[rows_B]
    joined = b"".join(dataset.key_of(row, view) for row in rows_B.tolist())
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(rows_B), -1)


def _expected_teacher(inventory: dict[str, Any], *, expected: str | None) -> TeacherDescription:
    found = [TeacherDescription(**entry["description"]) for entry in inventory["teachers"]]
    matching = [teacher for teacher in found if expected is None or teacher.id.startswith(expected)]
    if len(matching) != 1:
        named = ", ".join(teacher.id for teacher in found)
        raise IdentityError(
            f"the server's teacher is {named}, not {expected}; ask another server or change --expect-teacher"
        )
    return matching[0]


def check_served(inventory: dict[str, Any], *, dataset: ImageDataset) -> None:
    """Raise where the server has no data set of this name, or one with other images, labels or classes."""
    served = {entry["name"]: entry for entry in inventory["datasets"]}
    entry = served.get(dataset.name)
    if entry is None:
        named = ", ".join(served) or "none"
        raise UnknownNameError(f"the server has no data set {dataset.name}; it serves {named}")
    if entry["fingerprint"] != dataset.fingerprint:
        raise IdentityError(
            f"the server's {dataset.name} ({entry['rows']} rows, {len(entry['classes'])} classes) is not the local one"
            f" ({dataset.num_rows} rows, {len(dataset.classes)} classes): images, labels or class names differ;"
            " give both the same files"
        )
    if entry["view_policy"] != dataset.view_policy:
        raise IdentityError(
            f"the server's {dataset.name} has view policy {entry['view_policy']}, the local one {dataset.view_policy};"
            f" ask for --view-policy {entry['view_policy']}"
        )


def _served_forms(
    inventory: dict[str, Any], *, teacher: TeacherDescription, dataset: ImageDataset
) -> dict[str, OutputForm]:
    """What the outputs look like that the server keeps."""
    for entry in inventory["caches"]:
        if entry["teacher"] == teacher.id and entry["dataset"] == dataset.name:
            return forms_of(specs_from(entry["outputs"]))
    return {}


def _check_answering(answering: str, *, teacher: TeacherDescription) -> None:
    if answering != teacher.id:
        raise IdentityError(f"the server's teacher changed from {teacher.id} to {answering} while rows were fetched")


def read_api_key(path: Path | None) -> str | None:
    """The first key of a key file; None without a file."""
    if path is None:
        return None
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise InputError(f"cannot read the API key file {path}: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise InputError(f"the API key file {path} holds no key; one key per line")
    if keys[0].startswith("{"):
        # The server's own file: nobody can tell a key from its digest.
        raise InputError(f"{path} is a server's file of digests; give one with the key that teacher-server key printed")
    return keys[0]
