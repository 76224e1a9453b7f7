"""Adds outputs to a cache that exists: its slots in their order, through the teacher once more.

Nobody else writes the cache meanwhile, so there is nothing to join and no order to keep but that of the slots.
Shape key: B slots of one batch, U images of it that the teacher is asked about.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.batch import AnswerBatch
from cache.handle import CacheHandle
from cache.layout import ADDING
from cache.model_call import ModelCall
from cache.writer import CacheWriter
from shared.answers import check_answers
from shared.datasets.base import ImageDataset
from shared.errors import AnswerError, IdentityError, InputError, TeacherFailedError, TeachonceError
from shared.identity import pixel_keys
from shared.outputs import beside
from shared.teacher import Teacher
from teacher_server.fill import FillCounts
from teacher_server.questions import Pixels
from teacher_server.stopwatch import Stopwatch, running_versions


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Part:
    """Slots that follow each other."""

    slots: NDArray[np.int64]
    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    labels: NDArray[np.int64]
    keys: NDArray[np.uint8]
    """uint8 [B, 32]."""
    asked: NDArray[np.int64]
    """Places [U] in the batch of images that nobody answered before."""


def unanswered_keys(writer: CacheWriter, cache: CacheHandle, addition: CacheHandle) -> int:
    """How many images the teacher has still to be asked about."""
    slots = np.arange(addition.num_slots, cache.num_slots)
    keys = {key.tobytes() for key in cache.take("keys", slots)}
    return sum(writer.find(cache.teacher.id, key, cache=addition) is None for key in keys)


def backfill(
    writer: CacheWriter,
    *,
    teacher: Teacher,
    dataset: ImageDataset,
    cache: CacheHandle,
    addition: CacheHandle,
    run: str,
    batch_images: int,
    progress: Callable[[FillCounts], None],
) -> FillCounts:
    """Answer every slot of ``cache`` that ``addition`` does not have yet; interrupted, all that is committed stays.

    Raises `BudgetExhaustedError`, and `IdentityError` for an image that is not the one that was answered.
    """
    counts = FillCounts(total=cache.num_slots - addition.num_slots)
    versions = running_versions(teacher)
    with ThreadPoolExecutor(1, thread_name_prefix="load") as loader:
        ahead: tuple[_Part, Future[list[Pixels]]] | None = None
        for slots in _slots(addition.num_slots, cache.num_slots, size=batch_images):
            part = _part(writer, cache, addition, slots=slots)
            loading = loader.submit(_load, dataset, part, addition=addition)
            if ahead is not None:
                _answer(writer, teacher, dataset, addition, ahead, run=run, counts=counts, versions=versions)
                progress(counts)
            ahead = part, loading
        if ahead is not None:
            _answer(writer, teacher, dataset, addition, ahead, run=run, counts=counts, versions=versions)
            progress(counts)
    return counts


def _slots(first: int, end: int, *, size: int) -> Iterator[NDArray[np.int64]]:
    return (np.arange(start, min(start + size, end)) for start in range(first, end, size))


def _part(writer: CacheWriter, cache: CacheHandle, addition: CacheHandle, *, slots: NDArray[np.int64]) -> _Part:
    keys = cache.take("keys", slots)
    seen: set[bytes] = set()
    asked = []
    for place, key in enumerate(one.tobytes() for one in keys):
        if key not in seen and writer.find(cache.teacher.id, key, cache=addition) is None:
            asked.append(place)
        seen.add(key)
    rows, views, labels = (cache.take(name, slots).astype(np.int64) for name in ("rows", "views", "labels"))
    return _Part(slots=slots, rows=rows, views=views, labels=labels, keys=keys, asked=np.array(asked, dtype=np.int64))


def check_size(pixels: Pixels, *, row: int, view: int, addition: CacheHandle) -> None:
    """Raise `InputError` for an image of another size than the one that gives the new outputs their shape."""
    size = addition.image_size
    if size is not None and pixels.shape[:2] != size:
        raise InputError(
            f"row {row} view {view} of {addition.dataset.name.removesuffix(ADDING)} is {pixels.shape[0]} x"
            f" {pixels.shape[1]} pixels, and what is to be added has the shape that {size[0]} x {size[1]} give: such"
            " outputs cannot be added to answers about images of several sizes"
        )


def _check_shapes(said: dict[str, NDArray[Any]], *, addition: CacheHandle) -> None:
    for spec in addition.specs:
        if spec.is_output and said[spec.name].shape[1:] != spec.shape:
            raise AnswerError(
                f"the teacher gave {spec.name} of shape {list(said[spec.name].shape[1:])}, not {list(spec.shape)}"
            )


def _load(dataset: ImageDataset, part: _Part, *, addition: CacheHandle) -> list[Pixels]:
    """Pixels of the images asked about, each held to the key that was answered."""
    places = list(zip(part.rows[part.asked].tolist(), part.views[part.asked].tolist(), strict=True))
    images = [dataset.rendered(row, view) for row, view in places]
    for (row, view), image in zip(places, images, strict=True):
        check_size(image, row=row, view=view, addition=addition)
    wrong = np.flatnonzero((pixel_keys(images) != part.keys[part.asked]).any(axis=1))
    if len(wrong):
        row, view = places[int(wrong[0])]
        raise IdentityError(
            f"row {row} view {view} of {dataset.name} shows other pixels than were answered: use the original images"
        )
    return images


def _answer(
    writer: CacheWriter,
    teacher: Teacher,
    dataset: ImageDataset,
    addition: CacheHandle,
    loaded: tuple[_Part, "Future[list[Pixels]]"],
    *,
    run: str,
    counts: FillCounts,
    versions: Mapping[str, str],
) -> None:
    """One batch: reserve, ask, check, commit."""
    part, images = loaded[0], loaded[1].result()
    # An earlier batch may have answered the same pixels since.
    left = [
        at
        for at, place in enumerate(part.asked.tolist())
        if writer.find(addition.teacher.id, part.keys[place].tobytes(), cache=addition) is None
    ]
    asked = part.asked[left]
    names = [name for name in addition.outputs if name in beside(addition.outputs)]
    reservation = writer.reserve(run=run, cache=addition, calls=len(asked) * addition.calls_per_answer)
    said: dict[str, NDArray[Any]] = {}
    call: ModelCall | None = None
    if len(asked):
        watch = Stopwatch()

        def told() -> ModelCall:
            return watch.call(
                images=len(asked) * addition.calls_per_answer,
                device=teacher.device,
                versions=versions,
            )

        try:
            said = dict(watch.run(teacher.answer, [images[at] for at in left], names))
            called = [f"row {row} of {dataset.name}" for row in part.rows[asked].tolist()]
            check_answers(said, description=teacher.description, names=called)
            _check_shapes(said, addition=addition)
        except BaseException as error:
            writer.fail(reservation, calls=reservation.left, call=told())
            # Whatever a model raises: no traceback for a model of the user's own.
            if isinstance(error, Exception) and not isinstance(error, TeachonceError):
                kind = type(error).__name__
                raise TeacherFailedError(
                    f"the teacher raised {kind} on a batch of {len(asked)} images: {error}"
                ) from error
            raise
        call = told()
    outputs: dict[str, NDArray[Any]] = {}
    for spec in addition.specs:
        if spec.is_output:
            # Where nothing was asked the slot gets what was said about these pixels before.
            outputs[spec.name] = np.zeros((len(part.slots), *spec.shape), dtype=np.float32)
            if len(asked):
                outputs[spec.name][asked] = said[spec.name]
    batch = AnswerBatch(
        cache=addition,
        run=run,
        reservation=reservation,
        keys=part.keys,
        rows=part.rows,
        views=part.views,
        labels=part.labels,
        outputs=outputs,
        paid_answers=len(asked),
        call=call,
    )
    writer.commit_all([batch])
    counts.done += len(part.slots)
    counts.teacher_calls += len(asked) * addition.calls_per_answer
    counts.computed += len(asked)
