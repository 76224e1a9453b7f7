"""Forms batches of images and has the teacher's replicas answer them; an idle replica takes the next batch.

For each replica one batch is loaded ahead while it works on another and the one before is being committed.

Shape key: B images of one batch.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from cache.model_call import ModelCall
from shared.errors import DeviceLostError, InputError, TeacherFailedError, TeachonceError
from shared.replicas import replicas_of
from shared.teacher import Teacher
from teacher_server.observer import Observer
from teacher_server.questions import Pixels, Question
from teacher_server.queueing import FairQueue, Item
from teacher_server.replica import Forward, Replica
from teacher_server.settings import AnsweringSettings

log = logging.getLogger(__name__)

PART_IMAGES = 32
"""Images that one loading thread takes at a time."""
MOST_FAILURES = 5
"""Batches in a row after which a replica is left out, where another works."""

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """A batch whose pixels are in memory."""

    items: list[Item]
    images: list[Pixels]


class Batcher:
    """Takes items, returns nothing: what happens to them is told to ``settle`` and ``give_up``, awaited in order."""

    def __init__(
        self,
        teacher: Teacher,
        *,
        settings: AnsweringSettings,
        settle: Callable[[list[Item], Outputs, ModelCall], Awaitable[None]],
        fail: Callable[[list[Item], TeachonceError, ModelCall], Awaitable[None]],
        give_up: Callable[[list[Item], TeachonceError], Awaitable[None]],
        observer: Observer,
    ) -> None:
        """``settle`` gets answers, ``fail`` items whose forward raised, ``give_up`` items whose forward never began."""
        self._replicas = [Replica(one, number=number) for number, one in enumerate(replicas_of(teacher))]
        self._settings = settings
        self._settle = settle
        self._fail = fail
        self._give_up = give_up
        self._observer = observer
        self._queue = FairQueue()
        self._grown = asyncio.Event()
        self._ahead: deque[asyncio.Task[Loaded]] = deque()
        self._awaited = 0
        self._closing = False
        self._broken: BaseException | None = None
        self._load_threads = ThreadPoolExecutor(settings.load_threads, thread_name_prefix="load")

    def submit(self, items: Sequence[Item]) -> None:
        """Queue items for the next batches."""
        self._queue.push(items)
        self._load_full_batches()
        self._grown.set()

    @property
    def queue_images(self) -> int:
        """Images that no batch has taken yet."""
        return len(self._queue)

    @property
    def batches_under_way(self) -> int:
        """Full batches that keep all replicas busy."""
        return sum(replica.batches for replica in self._replicas)

    async def keys(self, question: Question, indices: Sequence[int]) -> list[bytes]:
        """Keys of images of a question; rendering happens in the loading threads."""
        loop = asyncio.get_running_loop()
        parts = [indices[start : start + PART_IMAGES] for start in range(0, len(indices), PART_IMAGES)]
        if question.keys_are_known:
            return question.keys(indices)
        jobs = [loop.run_in_executor(self._load_threads, question.keys, part) for part in parts]
        return [key for keys in await asyncio.gather(*jobs) for key in keys]

    def close(self) -> None:
        """Let `run` end once everything that was submitted is settled."""
        self._closing = True
        self._grown.set()

    async def run(self) -> None:
        """Work until closed; an exception out of here means that answers can no longer be kept."""
        replicas = list(self._replicas)
        workers = [asyncio.create_task(self._work(replica)) for replica in replicas]
        try:
            for ended in asyncio.as_completed(workers):
                await ended
        finally:
            # Where one could not go on, none can.
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            for replica in replicas:
                replica.close()
            self._load_threads.shutdown(wait=False, cancel_futures=True)

    async def _work(self, replica: Replica) -> None:
        """Ask one replica about batches until closed."""
        settling: asyncio.Task[None] | None = None
        while not self._left_out(replica) and (batch := await self._next()) is not None:
            if not batch.items:
                continue
            asked = [(part, await replica.ask(part.images, outputs=outputs)) for outputs, part in _parts(batch)]
            # One commit may overlap the next forward, never two: answers wait for nothing else.
            if settling is not None:
                await settling
            settling = asyncio.create_task(self._finish(replica, asked))
            settling.add_done_callback(self._notice)
            await self._until_wanted(asked[-1][1])
        if settling is not None:
            await settling

    def _left_out(self, replica: Replica) -> bool:
        """Whether a replica fails where others work; all that fail alike are the model's, and go on."""
        if replica.failed_in_a_row < MOST_FAILURES or not any(
            other.is_proven and not other.failed_in_a_row for other in self._replicas
        ):
            return False
        log.error("%s failed %d batches in a row, others work: left out", replica.name, replica.failed_in_a_row)
        self._replicas.remove(replica)
        return True

    async def _next(self) -> Loaded | None:
        """The next batch: a full one as soon as there is one, else whatever waits; None when closed and empty."""
        while not self._ahead:
            if self._broken is not None:
                raise self._broken
            if self._queue:
                self._load_ahead()
            elif self._closing:
                return None
            else:
                self._grown.clear()
                await self._grown.wait()
                if not self._ahead and not self._closing:
                    await asyncio.sleep(self._settings.max_delay_s)
        loading = self._ahead.popleft()
        self._awaited += 1
        batch = await loading
        self._awaited -= 1
        self._load_full_batches()
        return batch

    async def _until_wanted(self, forward: Forward) -> None:
        """A full batch may be brought to a device that still computes; a partial one waits and grows meanwhile."""
        while not forward.said.done() and not self._ahead:
            self._grown.clear()
            grown = asyncio.create_task(self._grown.wait())
            either: set[asyncio.Future[Any]] = {forward.said, grown}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            grown.cancel()

    def _notice(self, settled: asyncio.Future[None]) -> None:
        """Wake up for a commit that failed while nothing else is going on."""
        if not settled.cancelled() and settled.exception() is not None:
            self._broken = settled.exception()
            self._grown.set()

    def _load_full_batches(self) -> None:
        """Load ahead, one for each replica, only what cannot grow any more: a partial batch waits for a free one."""
        while (
            len(self._ahead) + self._awaited < len(self._replicas) and len(self._queue) >= self._settings.batch_images
        ):
            self._load_ahead()

    def _load_ahead(self) -> None:
        self._ahead.append(asyncio.create_task(self._load(self._queue.take(self._settings.batch_images))))

    async def _load(self, items: list[Item]) -> Loaded:
        """Pixels of a batch; an image that cannot be read is given up alone."""
        began_s = perf_counter()
        parts = _parts_of_one_question(items)
        good = Loaded(items=[], images=[])
        for part, images in zip(parts, await self._load_parts(parts), strict=True):
            for item, image in zip(part, images, strict=True):
                if isinstance(image, TeachonceError):
                    await self._give_up([item], image)
                else:
                    good.items.append(item)
                    good.images.append(image)
        self._observer.loaded(perf_counter() - began_s)
        for queued_s in {id(item.question): item.queued_s for item in items}.values():
            self._observer.queued(began_s - queued_s)
        return good

    async def _load_parts(self, parts: list[list[Item]]) -> list[list[Pixels | TeachonceError]]:
        """Images of parts, in their order; those that a caller brought are in memory already."""
        loop = asyncio.get_running_loop()
        jobs = {
            number: loop.run_in_executor(self._load_threads, _load_part, part)
            for number, part in enumerate(parts)
            if not part[0].question.known_by_key
        }
        await asyncio.gather(*jobs.values())
        return [jobs[number].result() if number in jobs else _load_part(part) for number, part in enumerate(parts)]

    async def _finish(self, replica: Replica, asked: Sequence[tuple[Loaded, Forward]]) -> None:
        """Have what a replica says kept, or tell that it failed."""
        lost: DeviceLostError | None = None
        failed = False
        for part, forward in asked:
            try:
                said = await forward.said
            # The one broad except of the project: whatever a model raises, the loop must outlive it.
            except Exception as error:
                log.exception("the teacher failed on a batch of %d images", len(part.items))
                if not isinstance(error, TeachonceError):
                    kind = type(error).__name__
                    message = f"the teacher raised {kind} on a batch of {len(part.items)} images; see the server's log"
                    error = TeacherFailedError(message)
                lost, failed = error if isinstance(error, DeviceLostError) else lost, True
                await self._fail(part.items, error, self._call(replica, forward, part=part))
            else:
                await self._settle(part.items, dict(said), self._call(replica, forward, part=part))
        replica.note(failed=failed)
        if lost is not None:
            raise lost

    def _call(self, replica: Replica, forward: Forward, *, part: Loaded) -> ModelCall:
        self._observer.forwarded(len(part.images), seconds=forward.watch.duration_s)
        # What the history counts are calls: with input gradients an image is two.
        return replica.call(forward, images=len(part.images) * part.items[0].question.cache.calls_per_answer)


def _parts(batch: Loaded) -> list[tuple[tuple[str, ...], Loaded]]:
    """The batch by what is asked for besides logits and features; nearly always that is one part."""
    parts: dict[tuple[str, ...], Loaded] = {}
    for item, image in zip(batch.items, batch.images, strict=True):
        part = parts.setdefault(item.question.cache.beside, Loaded(items=[], images=[]))
        part.items.append(item)
        part.images.append(image)
    return list(parts.items())


def _parts_of_one_question(items: list[Item]) -> list[list[Item]]:
    """Cut a batch into parts that one call of one question can load."""
    by_question: dict[int, list[Item]] = {}
    for item in items:
        by_question.setdefault(id(item.question), []).append(item)
    return [
        group[start : start + PART_IMAGES]
        for group in by_question.values()
        for start in range(0, len(group), PART_IMAGES)
    ]


def _load_part(part: list[Item]) -> list[Pixels | TeachonceError]:
    """Pixels of items of one question; where that fails, one by one, with the error in the place of the image."""
    question = part[0].question
    try:
        images: list[Pixels | TeachonceError] = [*question.pixels([item.index for item in part])]
    except TeachonceError:
        images = [_load_one(item) for item in part]
    size = question.cache.image_size
    if size is None:
        return images
    return [_of_size(image, size=size, item=item) for item, image in zip(part, images, strict=True)]


def _of_size(image: Pixels | TeachonceError, *, size: tuple[int, int], item: Item) -> Pixels | TeachonceError:
    """An error instead of an image that the cache's maps cannot be about."""
    if isinstance(image, TeachonceError) or image.shape[:2] == size:
        return image
    return InputError(
        f"{item.question.name(item.index)} has {image.shape[0]} x {image.shape[1]} pixels; this cache keeps outputs "
        f"({', '.join(item.question.cache.beside)}) whose shape is that of images of {size[0]} x {size[1]}: resize it, "
        "or ask a cache without them"
    )


def _load_one(item: Item) -> Pixels | TeachonceError:
    try:
        return item.question.pixels([item.index])[0]
    except TeachonceError as error:
        return error
