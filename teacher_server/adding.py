"""``teacher-server fill --add-outputs``: what caches that exist are to keep besides, for all of their slots."""

import logging
import time
from collections.abc import Mapping
from contextlib import closing

import numpy as np

from cache.handle import CacheHandle
from cache.writer import CacheWriter
from shared.datasets.base import ImageDataset
from shared.errors import InputError
from shared.outputs import CONSTANTS, check_offered
from shared.progress import FillProgress
from shared.replicas import replicas_of
from shared.teacher import Teacher
from teacher_server.backfill import backfill, check_size, unanswered_keys
from teacher_server.commands import FillOptions, check_budget, open_jobs, summary
from teacher_server.fill import FillCounts
from teacher_server.opening import open_teacher
from teacher_server.serve import INDEX_FOLDER
from teacher_server.service import keep_constants

log = logging.getLogger(__name__)


def add_outputs(options: FillOptions) -> str:
    """Answer what caches are to keep besides, for all of their slots; one line that says what was done.

    Raises `BudgetExhaustedError` before computing anything where the budget cannot cover all of it.
    """
    added = options.added or {}
    if options.teacher.compiled:
        raise InputError("outputs are added by a network that is not compiled: leave out --compile")
    total, began_s = FillCounts(total=0), time.monotonic()
    with closing(CacheWriter.open(options.cache)) as writer:
        jobs = open_jobs(options, index_dir=options.cache / INDEX_FOLDER)
        with closing(open_teacher(options.teacher, datasets=[job.dataset for job in jobs])) as teacher:
            if len(replicas_of(teacher)) > 1:
                log.warning("outputs are added on %s alone", replicas_of(teacher)[0].device)
            writer.ensure_run(options.run)
            if CONSTANTS in added:
                writer.additions.cache(teacher.description.id, jobs[0].dataset.description)
                keep_constants(writer, teacher=teacher)
            pairs = [_begin(writer, teacher=teacher, dataset=job.dataset, added=added) for job in jobs]
            needed = sum(unanswered_keys(writer, *pair) * pair[1].calls_per_answer for pair in pairs if pair)
            check_budget(options, writer=writer, needed=needed)
            for job in jobs:
                # Anew: joining the one before has made the handles anew.
                pair = _begin(writer, teacher=teacher, dataset=job.dataset, added=added)
                if pair is None:
                    continue
                remaining = writer.remaining(options.run)
                with FillProgress(job.dataset.name, budget_left=remaining) as progress:
                    counts = backfill(
                        writer,
                        teacher=teacher,
                        dataset=job.dataset,
                        cache=pair[0],
                        addition=pair[1],
                        run=options.run,
                        batch_images=options.batch_images,
                        progress=progress,
                    )
                writer.additions.join(*pair)
                total = total.plus(counts)
    return summary(total, seconds=time.monotonic() - began_s)


def _begin(
    writer: CacheWriter, *, teacher: Teacher, dataset: ImageDataset, added: Mapping[str, str]
) -> tuple[CacheHandle, CacheHandle] | None:
    """The cache, and what holds its new outputs; None where it has all of them."""
    cache = writer.additions.cache(teacher.description.id, dataset.description)
    new = new_outputs(added, kept=cache.outputs, dataset=dataset.name)
    if not new:
        return None
    # Asked for all of them: features may be new as well.
    height, width, _ = dataset.image(0).shape
    forms = teacher.forms((height, width))
    check_offered(new, offered=forms, teacher=teacher.description.id)
    addition = writer.additions.open(cache, new, forms)
    # Views of a random policy may all have another size than the images: found before the first call.
    for slot in _first_of_each_kind(cache):
        row, view = (int(cache.take(name, np.array([slot]))[0]) for name in ("rows", "views"))
        check_size(dataset.rendered(row, view), row=row, view=view, addition=addition)
    return cache, addition


def _first_of_each_kind(cache: CacheHandle) -> list[int]:
    """The first slot of view 0, and the first of another view."""
    views = cache.take("views", np.arange(cache.num_slots))
    return [int(found[0]) for found in (np.flatnonzero(views == 0), np.flatnonzero(views != 0)) if len(found)]


def new_outputs(added: Mapping[str, str], *, kept: Mapping[str, str], dataset: str) -> dict[str, str]:
    """Of what is to be added, what is not there; raises `InputError` for what is there in another dtype."""
    new = {name: dtype for name, dtype in added.items() if name != CONSTANTS}
    for name in new.keys() & kept.keys():
        if new[name] != kept[name]:
            raise InputError(f"{dataset} keeps {name} as {kept[name]} already, not as {new[name]}: use another folder")
    return {name: dtype for name, dtype in new.items() if name not in kept}
