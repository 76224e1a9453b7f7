"""What the routes stand on: the data sets served, their caches, the runs that exist, and the way to an answer."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request

from cache.handle import CacheHandle
from cache.history_report import measured_time
from cache.layout import UPLOADS as UPLOADS_NAME
from cache.payer import LOCAL_OWNER
from cache.writer import CacheWriter
from shared.datasets.base import ImageDataset
from shared.descriptions import DatasetDescription
from shared.errors import InputError, TooLargeError, UnknownNameError
from shared.identity import NAME_PATTERN, pixel_key
from shared.outputs import CONSTANTS, OutputForm, beside, check_offered
from shared.pixels import DECODER
from shared.teacher import Teacher
from teacher_server.answering import Answering
from teacher_server.beside import run_beside
from teacher_server.decoders import Decoders
from teacher_server.fills import Fills
from teacher_server.keys import ApiKey
from teacher_server.observer import Observer
from teacher_server.questions import ImagesQuestion, Pixels, RowsQuestion
from teacher_server.settings import ServerSettings

UPLOADS = DatasetDescription(
    name=UPLOADS_NAME, rows=0, classes=(), fingerprint="", view_policy="crop0", decoder=DECODER
)
"""Where answers to images from outside any data set are kept."""
DEFAULT_RUN = "default"


class Service:
    """One teacher, its cache folder and the data sets it is asked about."""

    def __init__(
        self,
        settings: ServerSettings,
        *,
        teacher: Teacher,
        datasets: Sequence[ImageDataset],
        writer: CacheWriter,
        outputs: Mapping[str, str] | None,
        observer: Observer,
    ) -> None:
        self.settings = settings
        self.teacher = teacher
        self.answering = Answering(writer, teacher=teacher, settings=settings.answering, observer=observer)
        self.fills = Fills(
            self.answering,
            writer=writer,
            settings=settings.answering,
            teacher=teacher.description.id,
            shared=settings.api_key_file is not None,
        )
        self.datasets = {dataset.name: dataset for dataset in datasets}
        self.decoders = Decoders()
        self._writer = writer
        self._outputs = outputs
        self._caches = {
            name: self._open(dataset.description, image=partial(dataset.image, 0))
            for name, dataset in self.datasets.items()
        }
        self._runs = {DEFAULT_RUN, *writer.ledger_counts()["runs"]}

    def _open(self, description: DatasetDescription, *, image: Callable[[], Pixels]) -> CacheHandle:
        return open_cache(self._writer, teacher=self.teacher, dataset=description, image=image, outputs=self._outputs)

    def rows(self, dataset: str, *, rows: Sequence[int], view: int) -> RowsQuestion:
        """A question about rows; raises `UnknownNameError` and `RowRangeError`."""
        if dataset not in self.datasets:
            served = ", ".join(self.datasets) or "none, it takes images only"
            raise UnknownNameError(f"unknown data set {dataset[:160]!r}; this server has {served}")
        return RowsQuestion.ask(self.datasets[dataset], cache=self._caches[dataset], rows=rows, view=view)

    @property
    def caches(self) -> Mapping[str, CacheHandle]:
        """By NAME/SPLIT: the data sets served, and uploads once there is one."""
        return self._caches

    def cache_of(self, dataset: str) -> CacheHandle:
        """The cache of a data set; raises `UnknownNameError` also for uploads, which have no rows."""
        if dataset not in self.datasets:
            served = ", ".join(self.datasets) or "none"
            raise UnknownNameError(f"no rows of {dataset[:160]!r}; this server has those of {served}")
        return self._caches[dataset]

    def teacher_time(self) -> tuple[int, float]:
        """Calls of the history and the seconds they took; reads the whole of it, in a thread of the caller's."""
        return measured_time(self._writer.path)

    async def images(self, images: Sequence[Pixels]) -> ImagesQuestion:
        """A question about images that a caller brought."""
        # Opened with the first upload: a cache of one data set stays a cache of one.
        if UPLOADS.name not in self._caches:
            self._caches[UPLOADS.name] = await asyncio.to_thread(self._open, UPLOADS, image=partial(_first, images))
        keys = await run_beside(sum(image.nbytes for image in images), _keys_of, images)
        return ImagesQuestion(cache=self._caches[UPLOADS.name], images=images, known_keys=keys)

    def check_count(self, count: int) -> None:
        """Raise `TooLargeError` for more images than one request may have."""
        limit = self.settings.images_per_request
        if count > limit:
            raise TooLargeError(f"{count} images in one request; send at most {limit} at a time")

    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """What is kept for one image, by name; -1 where data sets differ."""
        specs = [spec for cache in self._caches.values() for spec in cache.specs if spec.is_output]
        if not specs:
            about = self.teacher.description
            widths = {"logits": about.classes, "features": about.features}
            return {name: (width,) for name, width in widths.items() if width}
        shapes: dict[str, tuple[int, ...]] = {}
        for spec in specs:
            known = shapes.setdefault(spec.name, spec.shape)
            shapes[spec.name] = tuple(a if a == b else -1 for a, b in zip(known, spec.shape, strict=True))
        return shapes

    def check_run(self, name: str) -> str:
        """``name`` if the run exists; raises `UnknownNameError`."""
        if name not in self._runs:
            raise UnknownNameError(f"unknown run {name[:80]!r}; make it with PUT /v1/runs/NAME, or leave run out")
        return name

    def admit_key(self, key: ApiKey) -> None:
        """Make the runs of an API key and give its owner its budget, in a thread that may wait for a commit."""
        for run in key.runs or ():
            self._writer.ensure_run(run)
            self._runs.add(run)
        if key.name != LOCAL_OWNER:
            self._writer.bound_owner(key.name, key.budget)

    async def ledger(self) -> dict[str, Any]:
        """Counts of everything asked, as ``GET /v1/ledger`` shows them."""
        return await asyncio.to_thread(self.ledger_now)

    def ledger_now(self) -> dict[str, Any]:
        """The same, from a thread that may wait for a commit."""
        return self._writer.ledger_counts()

    @property
    def teacher_id(self) -> str:
        """Which teacher answers."""
        return self.teacher.description.id

    async def run_counts(self, name: str) -> dict[str, Any]:
        """Counts of one run."""
        self.check_run(name)
        counts: dict[str, Any] = (await self.ledger())["runs"][name]
        return counts

    async def set_budget(self, name: str, *, budget: int | None) -> None:
        """Make a run, or give it another budget; raises `BudgetConflictError` below what it has used."""
        if not NAME_PATTERN.fullmatch(name):
            raise UnknownNameError(f"{name[:80]!r} cannot name a run: 1 to 64 of a-z 0-9 . _ -")
        # A new run has its budget from the first moment: nobody spends in between.
        await asyncio.to_thread(self._writer.ensure_run, name, budget)
        await asyncio.to_thread(self._writer.set_budget, name, budget)
        self._runs.add(name)

    async def inventory(self) -> dict[str, Any]:
        """What is cached and what can be asked, as ``GET /v1/cache`` shows it."""
        info = await asyncio.to_thread(self._writer.info)
        about = self.teacher.description
        teacher = {
            "id": about.id,
            "arch": about.arch,
            "classes": about.classes,
            "features": about.features,
            "input": self.teacher.input,
            "description": about.attributes(),
        }
        described = [dataset.description.attributes() for dataset in self.datasets.values()]
        return {"caches": info["caches"], "teachers": [teacher], "datasets": described}


def _keys_of(images: Sequence[Pixels]) -> list[bytes]:
    return [pixel_key(image) for image in images]


def service_of(request: Request) -> Service:
    """What the application of a request stands on."""
    service: Service = request.app.state.service
    return service


def _first(images: Sequence[Pixels]) -> Pixels:
    if not images:
        raise InputError("nothing was uploaded yet, and this upload holds no image: send at least one")
    return images[0]


def open_cache(
    writer: CacheWriter,
    *,
    teacher: Teacher,
    dataset: DatasetDescription,
    image: Callable[[], Pixels],
    outputs: Mapping[str, str] | None,
) -> CacheHandle:
    """The cache of this teacher and data set, with ``outputs`` (name to dtype; None = as created, else the default).

    ``image`` is one of its images: what else than logits and features is asked for takes its form from its size.
    """
    asked = dict(outputs) if outputs is not None else None
    constants = asked is not None and asked.pop(CONSTANTS, None) is not None
    forms = offered_forms(teacher, names=asked or (), image=image)
    cache = writer.open_cache(teacher.description, dataset, asked, forms)
    check_forms(cache, teacher=teacher, image=image)
    if constants:
        keep_constants(writer, teacher=teacher)
    return cache


def offered_forms(teacher: Teacher, *, names: Collection[str], image: Callable[[], Pixels]) -> Mapping[str, OutputForm]:
    """What these outputs look like; raises `InputError` that lists what the teacher can give."""
    if not beside(names):
        return {}
    height, width, _ = image().shape
    forms = teacher.forms((height, width))
    check_offered(names, offered=forms, teacher=teacher.description.id)
    return forms


def check_forms(cache: CacheHandle, *, teacher: Teacher, image: Callable[[], Pixels]) -> None:
    """Raise `InputError` where a cache keeps maps of images of another size."""
    forms = offered_forms(teacher, names=cache.beside, image=image)
    for spec in cache.specs:
        if spec.name in cache.beside and forms[spec.name].shape != spec.shape:
            raise InputError(
                f"{spec.name} of {cache.dataset.name} is kept as {list(spec.shape)}, and images of this size give "
                f"{list(forms[spec.name].shape)}: use images of one size, or another folder"
            )


def keep_constants(writer: CacheWriter, *, teacher: Teacher) -> None:
    """Keep what a teacher says once for all images, at no call; raises `InputError` where that is nothing."""
    arrays = teacher.constants()
    check_offered(
        [CONSTANTS], offered=[*teacher.outputs, *([CONSTANTS] if arrays else [])], teacher=teacher.description.id
    )
    writer.additions.keep_constants(teacher.description.id, arrays)
