"""Several replicas of one teacher behind one queue: all work, none computes twice, none harms another."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.history_report import describe_history
from cache.writer import CacheWriter
from shared.datasets.base import ArrayDataset, SplitFacts
from shared.errors import BudgetExhaustedError, DeviceLostError, TeacherFailedError, UnavailableError
from shared.fake_teacher import FakeTeacher
from shared.replicas import ReplicatedTeacher
from shared.teacher import Teacher
from teacher_server.answering import Answering, Answers
from teacher_server.questions import RowsQuestion
from teacher_server.settings import AnsweringSettings

ROWS = 256
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)


class HostTeacher(FakeTeacher):
    """One replica, which remembers how many images it saw at a time, and can be told to wait or to fail."""

    def __init__(self, device: str) -> None:
        super().__init__(classes=10)
        self.device = device
        self.batches: list[int] = []
        self.before_answer: Callable[[], object] = lambda: None

    def answer(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        self.batches.append(len(images))
        self.before_answer()
        return super().answer(images)


class DeviceTeacher(HostTeacher):
    """Answers `start` at once and computes when told to."""

    overlaps = True

    def __init__(self, device: str) -> None:
        super().__init__(device)
        self.may_end = threading.Semaphore(0)

    def start(self, images: Sequence[NDArray[np.uint8]]) -> "DeviceTeacher.Begun":
        self.batches.append(len(images))
        return DeviceTeacher.Begun(self, images)

    def warm_up(self, batch_sizes: Sequence[int], *, size: tuple[int, int]) -> None: ...

    class Begun:
        def __init__(self, teacher: "DeviceTeacher", images: Sequence[NDArray[np.uint8]]) -> None:
            self.teacher, self.images = teacher, images

        def result(self) -> dict[str, NDArray[np.float32]]:
            assert self.teacher.may_end.acquire(timeout=5)
            self.teacher.before_answer()
            return FakeTeacher.answer(self.teacher, self.images)


class Bench:
    def __init__(self, path: Path) -> None:
        facts = SplitFacts(name="tiny/train", classes=("a", "b"), labels=np.arange(ROWS) % 2, view_policy="crop1")
        self.dataset = ArrayDataset(facts, pixels=PIXELS)
        self.writer = CacheWriter.open(path)
        self.cache = self.writer.open_cache(FakeTeacher(classes=10).description, self.dataset.description)

    def run(self, teacher: Teacher, story: Callable[[Answering], Coroutine[Any, Any, Any]], *, batch: int) -> Any:
        async def inside() -> Any:
            settings = AnsweringSettings(batch_images=batch, max_delay_s=0.0)
            async with Answering(self.writer, teacher=teacher, settings=settings) as answering:
                return await story(answering)

        return asyncio.run(inside())

    async def ask(self, answering: Answering, *rows: int, run: str = "default") -> Answers:
        question = RowsQuestion.ask(self.dataset, cache=self.cache, rows=rows, view=0)
        return await answering.answer(question, outputs=("logits",), run=run)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "store")
    yield made
    made.writer.close()


@pytest.fixture
def pair() -> tuple[HostTeacher, HostTeacher]:
    return HostTeacher("cpu"), HostTeacher("cpu too")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def meet(pair: tuple[HostTeacher, HostTeacher]) -> None:
    """Let every first batch of one replica wait for one of the other."""
    for replica in pair:
        met = threading.Event()
        barrier = pair[0].__dict__.setdefault("barrier", threading.Barrier(2, timeout=5))

        def wait(met: threading.Event = met, barrier: threading.Barrier = barrier) -> None:
            if not met.is_set():
                met.set()
                barrier.wait()

        replica.before_answer = wait


def test_replicas_work_side_by_side_and_every_key_is_one_call(
    bench: Bench, pair: tuple[HostTeacher, HostTeacher]
) -> None:
    meet(pair)

    async def story(answering: Answering) -> list[Answers]:
        # 64 callers; each asks about an image of its own and about one that all share.
        return await asyncio.gather(*(bench.ask(answering, row, 200) for row in range(64)))

    everyone = bench.run(ReplicatedTeacher(pair), story, batch=4)
    assert sum(pair[0].batches) + sum(pair[1].batches) == sum(one.teacher_calls for one in everyone) == 65
    counts = bench.writer.ledger_counts()
    assert (counts["attempts"], counts["teacher_calls"], counts["reserved"]) == (65, 65, 0)
    expected = FakeTeacher(classes=10).answer(list(PIXELS[:64]))["logits"].astype(np.float16)
    np.testing.assert_array_equal(np.stack([one.outputs["logits"][0] for one in everyone]), expected)
    bench.writer.info()  # writes what waits for a transaction
    by_device = {"cpu": 0, "cpu too": 0}
    for call in describe_history(bench.writer.path)["calls"]:
        by_device[call["device"]] += call["images"]
    assert by_device == {"cpu": sum(pair[0].batches), "cpu too": sum(pair[1].batches)}


def test_a_budget_is_exact_whoever_computes(bench: Bench, pair: tuple[HostTeacher, HostTeacher]) -> None:
    bench.writer.ensure_run("poor", budget=40)

    async def story(answering: Answering) -> list[Answers | BaseException]:
        asked = (bench.ask(answering, row, run="poor") for row in range(64))
        return await asyncio.gather(*asked, return_exceptions=True)

    everyone = bench.run(ReplicatedTeacher(pair), story, batch=3)
    assert sum(isinstance(one, BudgetExhaustedError) for one in everyone) == 24
    assert sum(pair[0].batches) + sum(pair[1].batches) == 40
    assert bench.writer.ledger_counts()["runs"]["poor"]["attempts"] == 40


def test_a_replica_that_raises_harms_only_its_own_batches(bench: Bench, pair: tuple[HostTeacher, HostTeacher]) -> None:
    barrier = threading.Barrier(2, timeout=5)

    def fail() -> None:
        barrier.wait()
        raise RuntimeError("this device is broken")

    pair[0].before_answer, pair[1].before_answer = fail, barrier.wait

    async def story(answering: Answering) -> list[Answers | BaseException]:
        outcomes = await asyncio.gather(*(bench.ask(answering, row) for row in (1, 2)), return_exceptions=True)
        assert answering.trouble is None
        return outcomes

    outcomes = bench.run(ReplicatedTeacher(pair), story, batch=1)
    assert sorted(type(one).__name__ for one in outcomes) == ["Answers", "TeacherFailedError"]
    counts = bench.writer.ledger_counts()
    assert (counts["attempts"], counts["teacher_calls"], counts["reserved"]) == (2, 1, 0)


def test_a_replica_that_fails_where_another_works_is_left_out(
    bench: Bench, pair: tuple[HostTeacher, HostTeacher], caplog: pytest.LogCaptureFixture
) -> None:
    met = threading.Event()

    def fail() -> None:
        # Not before the other one has answered.
        assert met.wait(timeout=5)
        raise RuntimeError("this device is broken")

    pair[0].before_answer = fail

    async def story(answering: Answering) -> list[Answers | BaseException]:
        asked = [asyncio.create_task(bench.ask(answering, row)) for row in range(2)]
        await until(lambda: bool(pair[0].batches) and any(one.done() for one in asked))
        met.set()
        asked += [asyncio.create_task(bench.ask(answering, row)) for row in range(2, 100)]
        return await asyncio.gather(*asked, return_exceptions=True)

    outcomes = bench.run(ReplicatedTeacher(pair), story, batch=1)
    failed = sum(isinstance(one, TeacherFailedError) for one in outcomes)
    # One more may be under way while the fifth is told.
    assert 5 <= failed == len(pair[0].batches) <= 6
    assert "replica 0 (cpu) failed" in caplog.text


def test_a_model_that_fails_goes_on_being_asked(bench: Bench, pair: tuple[HostTeacher, HostTeacher]) -> None:
    def fail() -> None:
        raise RuntimeError("no such image")

    pair[0].before_answer = pair[1].before_answer = fail

    async def story(answering: Answering) -> Answers:
        asked = [bench.ask(answering, row) for row in range(16)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        assert {type(one) for one in outcomes} == {TeacherFailedError}
        pair[0].before_answer = pair[1].before_answer = lambda: None
        return await bench.ask(answering, 20)

    assert bench.run(ReplicatedTeacher(pair), story, batch=1).teacher_calls == 1


def test_a_device_that_is_lost_ends_everything_after_its_batch(bench: Bench) -> None:
    teacher = HostTeacher("cuda:0")

    def fail() -> None:
        raise DeviceLostError("cuda:0 answers nothing any more")

    teacher.before_answer = fail

    async def story(answering: Answering) -> None:
        with pytest.raises(DeviceLostError):
            await bench.ask(answering, 1, 2)
        await asyncio.wait_for(answering.died.wait(), timeout=5)
        with pytest.raises(UnavailableError, match="stopped"):
            await bench.ask(answering, 3)

    bench.run(teacher, story, batch=4)
    assert bench.writer.ledger_counts()["attempts"] == 2


@pytest.mark.parametrize("place", ["the commit", "loading"])
def test_what_ends_one_replica_ends_all(
    bench: Bench, pair: tuple[HostTeacher, HostTeacher], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    async def story(answering: Answering) -> None:
        owner, name = (bench.writer, "commit_all") if place == "the commit" else (bench.dataset, "images")
        monkeypatch.setattr(owner, name, broken)
        with pytest.raises(UnavailableError, match="stopped"):
            await asyncio.wait_for(bench.ask(answering, 1), timeout=5)
        await asyncio.wait_for(answering.died.wait(), timeout=5)
        with pytest.raises(UnavailableError):
            await bench.ask(answering, 2)

    bench.run(ReplicatedTeacher(pair), story, batch=4)


def test_a_full_batch_is_brought_while_one_is_computed_and_a_partial_one_grows(bench: Bench) -> None:
    teacher = DeviceTeacher("cuda:0")

    async def story(answering: Answering) -> None:
        asked = [asyncio.create_task(bench.ask(answering, *range(0, 4)))]
        await until(lambda: teacher.batches == [4])
        # Behind what is computed nothing is begun that could still grow.
        asked.append(asyncio.create_task(bench.ask(answering, 4)))
        await until(lambda: answering.queue_images == 1)
        await asyncio.sleep(0.02)
        assert teacher.batches == [4]
        asked.append(asyncio.create_task(bench.ask(answering, *range(5, 12))))
        await until(lambda: teacher.batches == [4, 4])
        # Two at most: the third waits, though it is full.
        await asyncio.sleep(0.02)
        assert teacher.batches == [4, 4]
        for _ in range(3):
            teacher.may_end.release()
        await asyncio.gather(*asked)

    bench.run(teacher, story, batch=4)
    assert teacher.batches == [4, 4, 4]
    assert bench.writer.ledger_counts()["teacher_calls"] == 12


def test_a_device_that_fails_while_it_computes_fails_that_batch_alone(bench: Bench) -> None:
    teacher = DeviceTeacher("cuda:0")
    failures = iter([True, False])

    def fail_once() -> None:
        if next(failures):
            raise RuntimeError("an illegal memory access was encountered")

    teacher.before_answer = fail_once

    async def story(answering: Answering) -> list[Answers | BaseException]:
        asked = asyncio.gather(bench.ask(answering, 0, 1), bench.ask(answering, 2, 3), return_exceptions=True)
        await until(lambda: teacher.batches == [2, 2])
        teacher.may_end.release(2)
        return await asked

    bad, good = bench.run(teacher, story, batch=2)
    assert isinstance(bad, TeacherFailedError)
    assert good.teacher_calls == 2


def test_the_history_counts_no_second_twice_where_batches_overlap(bench: Bench) -> None:
    teacher = DeviceTeacher("cuda:0")
    teacher.before_answer = lambda: time.sleep(0.05)

    async def story(answering: Answering) -> float:
        began_s = time.perf_counter()
        asked = asyncio.gather(bench.ask(answering, 0, 1), bench.ask(answering, 2, 3))
        await until(lambda: teacher.batches == [2, 2])
        teacher.may_end.release(2)
        await asked
        return time.perf_counter() - began_s

    wall_s = bench.run(teacher, story, batch=2)
    bench.writer.info()
    seconds = [call["ms"] / 1000 for call in describe_history(bench.writer.path)["calls"]]
    assert len(seconds) == 2
    assert min(seconds) >= 0.05
    assert sum(seconds) <= wall_s
