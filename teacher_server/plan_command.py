"""``teacher-server plan``: what a fill, or adding outputs, would cost; neither calls the teacher nor changes a cache.

Shape key: N rows of a data set.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shutil import disk_usage

import numpy as np
from numpy.typing import NDArray

from cache.layout import BLOCK_SLOTS, DEFAULT_OUTPUTS, INDEX_ARRAYS, LEDGER, ArraySpec, formed_specs, output_specs
from shared.datasets.base import ImageDataset
from shared.errors import UnknownNameError
from shared.outputs import CONSTANTS, INPUT_GRAD, beside, calls_per_answer, check_offered
from shared.sizes import readable_size
from shared.teacher import Teacher
from teacher_server.adding import new_outputs
from teacher_server.commands import FillOptions, Job, open_jobs
from teacher_server.opening import open_teacher
from teacher_server.plan import disk_bytes, plan_fill, slot_bytes
from teacher_server.planning import CachedAlready
from teacher_server.serve import INDEX_FOLDER
from teacher_server.service import offered_forms


def plan_fills(options: FillOptions, *, rate: float | None) -> Iterator[str]:
    """Lines that say what the fill would cost; neither calls the teacher nor changes the cache."""
    # A folder that is no cache yet stays as it is.
    index_dir = options.cache / INDEX_FOLDER if (options.cache / LEDGER).exists() else None
    jobs = open_jobs(options, index_dir=index_dir)
    with closing(open_teacher(options.teacher, datasets=[job.dataset for job in jobs])) as teacher:
        about = teacher.description
        known = CachedAlready.open(options.cache, teacher=about.id)
        planned = [_plan_job(options, job=job, teacher=teacher, known=known) for job in jobs]
    for plan in planned:
        yield from plan.lines
    calls, size, disk = (sum(getattr(plan, name) for plan in planned) for name in ("calls", "size_bytes", "disk_bytes"))
    duration = f"{calls / rate / 60:.1f} minutes at {rate:g} images/s" if rate else "minutes unknown (give --rate)"
    free = disk_usage(_existing(options.cache)).free
    yield (
        f"teacher {about.id}: {calls} teacher calls, {readable_size(size)}, {readable_size(disk)} on disk, "
        f"{duration}, {readable_size(free)} free"
    )
    remaining = known.remaining(options.run, budget=options.budget)
    if remaining is not None:
        verdict = "enough" if remaining >= calls else f"{calls - remaining} short"
        yield f"run {options.run}: {remaining} calls remain, {verdict}"


MUCH_MEMORY_BYTES = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class JobPlan:
    """What one data set would cost."""

    lines: tuple[str, ...]
    calls: int
    size_bytes: int
    """Of answers, and of what lies beside each."""
    disk_bytes: int
    """By which chunk files would grow."""


def _plan_job(options: FillOptions, *, job: Job, teacher: Teacher, known: CachedAlready) -> JobPlan:
    name, about = job.dataset.name, teacher.description
    if options.added is not None:
        return _plan_addition(options, job=job, teacher=teacher, known=known)
    outputs = dict(known.outputs(name) or options.outputs or DEFAULT_OUTPUTS)
    if outputs.pop(CONSTANTS, None) and not teacher.constants():
        check_offered([CONSTANTS], offered=teacher.outputs, teacher=about.id)
    forms = known.forms(name) or offered_forms(teacher, names=outputs, image=partial(job.dataset.image, 0))
    specs = output_specs(outputs, classes=about.classes, features=about.features, forms=forms)
    plan = plan_fill(
        job.dataset,
        rows=job.rows,
        views=job.views,
        present=partial(_present, known, job.dataset),
        is_known=partial(known.has_key, outputs=outputs),
        calls_per_answer=calls_per_answer(outputs),
    )
    line = (
        f"{name}: {plan.answers} answers, {plan.present} cached, "
        f"{plan.shared_pixels} with pixels answered otherwise, {plan.calls} teacher calls"
    )
    before = known.slots(name)
    return JobPlan(
        lines=(line, *_lines_of_outputs(specs), *_line_of_memory(specs, slots=plan.new_slots)),
        calls=plan.calls,
        size_bytes=plan.new_slots * slot_bytes(specs),
        disk_bytes=disk_bytes((*specs, *INDEX_ARRAYS), before=before, slots=plan.new_slots),
    )


def _plan_addition(options: FillOptions, *, job: Job, teacher: Teacher, known: CachedAlready) -> JobPlan:
    name, kept = job.dataset.name, known.outputs(job.dataset.name)
    if kept is None:
        raise UnknownNameError(f"{options.cache} has no answers about {name} to add outputs to: plan with --outputs")
    known.check_same(job.dataset)
    new = new_outputs(options.added or {}, kept=kept, dataset=name)
    height, width, _ = job.dataset.image(0).shape
    forms = teacher.forms((height, width))
    check_offered(new, offered=forms, teacher=teacher.description.id)
    specs = formed_specs(new, forms=forms)
    slots, images = known.unanswered(options.cache, name) if new else (0, 0)
    calls = images * calls_per_answer(new)
    line = f"{name}: {known.slots(name)} answers get {', '.join(new) or 'nothing new'}, {calls} teacher calls"
    return JobPlan(
        lines=(line, *_lines_of_outputs(specs), *_line_of_memory(specs, slots=slots)),
        calls=calls,
        size_bytes=slots * sum(spec.slot_bytes for spec in specs),
        disk_bytes=disk_bytes(specs, before=known.slots(name) - slots, slots=slots),
    )


def _lines_of_outputs(specs: Sequence[ArraySpec]) -> Iterator[str]:
    """What each output that is not always there costs."""
    for spec in specs:
        if spec.is_output and spec.name in beside([spec.name]):
            note = ", one more call per row" if spec.name == INPUT_GRAD else ""
            yield f"  {spec.name}: {spec.dtype} {list(spec.shape)}, {spec.slot_bytes} bytes per row{note}"


def _line_of_memory(specs: Sequence[ArraySpec], *, slots: int) -> Iterator[str]:
    """What a fill holds until a block is folded, where that is much: the block, and a copy of its largest array."""
    sizes = [spec.slot_bytes for spec in specs]
    held = min(slots, BLOCK_SLOTS) * (sum(sizes) + max(sizes, default=0))
    if held > MUCH_MEMORY_BYTES:
        yield f"  holds {readable_size(held)} of answers in memory until they are folded, and more if the disk is slow"


def _present(known: CachedAlready, dataset: ImageDataset, view: int) -> NDArray[np.bool_]:
    return known.present(dataset, view=view)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
