"""The answering path in one process: single flight, refusals, failures, fairness, with a real cache behind it."""

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cache.history_report import describe_history
from cache.writer import CacheWriter
from shared.datasets.base import ArrayDataset, SplitFacts
from shared.errors import (
    AnswerError,
    BudgetExhaustedError,
    DeadlineError,
    DiskFullError,
    OutputNotCachedError,
    TeacherFailedError,
    UnavailableError,
    UnknownNameError,
)
from shared.fake_teacher import FakeTeacher
from shared.identity import pixel_key
from teacher_server.answering import Answering, Answers
from teacher_server.fill import fill
from teacher_server.questions import ImagesQuestion, RowsQuestion
from teacher_server.service import UPLOADS
from teacher_server.settings import AnsweringSettings

ROWS = 60


class ScriptedTeacher(FakeTeacher):
    """A fake teacher that can be told to wait, to fail, or to answer NaN for images whose first pixel is red 255."""

    def __init__(self) -> None:
        super().__init__(classes=10)
        self.batches: list[list[bytes]] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.error: BaseException | None = None

    def answer(self, images: Sequence[NDArray[np.uint8]]) -> dict[str, NDArray[np.float32]]:
        self.batches.append([image.tobytes() for image in images])
        assert self.may_answer.wait(timeout=20)
        if self.error is not None:
            raise self.error
        answers = super().answer(images)
        for index, image in enumerate(images):
            if tuple(image[0, 0]) == (255, 0, 0):
                answers["logits"][index, 3] = np.nan
        return answers


def make_dataset(red_rows: slice | int = 7) -> ArrayDataset:
    pixels = np.random.default_rng(0).integers(0, 200, (ROWS, 8, 8, 3), dtype=np.uint8)
    pixels[red_rows, 0, 0] = (255, 0, 0)
    pixels[9] = pixels[8]
    facts = SplitFacts(name="tiny/train", classes=("a", "b"), labels=np.arange(ROWS) % 2, view_policy="crop1")
    return ArrayDataset(facts, pixels=pixels)


class Bench:
    """An open cache, a data set and a scripted teacher."""

    def __init__(self, path: Path) -> None:
        self.writer = CacheWriter.open(path)
        self.teacher = ScriptedTeacher()
        self.dataset = make_dataset()
        self.cache = self.writer.open_cache(self.teacher.description, self.dataset.description)

    def run(self, story: Callable[[Answering], Coroutine[Any, Any, Any]], **settings: Any) -> Any:
        async def inside() -> Any:
            chosen = AnsweringSettings(**({"batch_images": 16, "max_delay_s": 0.01} | settings))
            async with Answering(self.writer, teacher=self.teacher, settings=chosen) as answering:
                return await story(answering)

        return asyncio.run(inside())

    def rows(self, *rows: int, view: int = 0) -> RowsQuestion:
        return RowsQuestion.ask(self.dataset, cache=self.cache, rows=rows, view=view)

    async def ask(self, answering: Answering, *rows: int, run: str = "default", view: int = 0) -> Answers:
        return await answering.answer(self.rows(*rows, view=view), outputs=("logits", "features"), run=run)

    def asked_images(self) -> list[bytes]:
        return [image for batch in self.teacher.batches for image in batch]


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    made = Bench(tmp_path / "store")
    yield made
    made.writer.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def test_answers_come_in_request_order_rounded_as_they_are_kept(bench: Bench) -> None:
    answers = bench.run(lambda answering: bench.ask(answering, 5, 3, 5, 4))
    expected = FakeTeacher(classes=10).answer([bench.dataset.image(row) for row in (5, 3, 5, 4)])
    np.testing.assert_array_equal(answers.outputs["logits"], expected["logits"].astype(np.float16))
    np.testing.assert_array_equal(answers.outputs["features"], expected["features"].astype(np.float16))
    assert answers.teacher_calls == 3
    assert len(bench.asked_images()) == 3


def test_callers_who_ask_together_share_one_call(bench: Bench) -> None:
    async def story(answering: Answering) -> list[Answers]:
        return await asyncio.gather(*(bench.ask(answering, 1, 2) for _ in range(20)))

    everyone = bench.run(story)
    assert sorted(answers.teacher_calls for answers in everyone) == [0] * 19 + [2]
    counts = bench.writer.ledger_counts()
    assert (counts["teacher_calls"], counts["hits"], counts["joined"]) == (2, 0, 38)


def test_rows_that_show_the_same_pixels_cost_one_call_and_get_a_slot_each(bench: Bench) -> None:
    async def story(answering: Answering) -> tuple[Answers, Answers]:
        return await bench.ask(answering, 8), await bench.ask(answering, 9)

    first, second = bench.run(story)
    assert (first.teacher_calls, second.teacher_calls, second.cached.tolist()) == (1, 0, [True])
    assert bench.cache.present()[[8, 9]].all()
    np.testing.assert_array_equal(first.outputs["logits"], second.outputs["logits"])


def test_what_is_kept_is_called_cached_to_all_who_ask_at_once(bench: Bench) -> None:
    async def story(answering: Answering) -> list[Answers]:
        await bench.ask(answering, 8)
        return await asyncio.gather(*(bench.ask(answering, 9) for _ in range(10)))

    assert [answers.cached.tolist() for answers in bench.run(story)] == [[True]] * 10
    counts = bench.writer.ledger_counts()
    assert (counts["teacher_calls"], counts["hits"], counts["joined"]) == (1, 10, 0)


def test_an_answer_that_is_not_finite_is_refused_alone(bench: Bench) -> None:
    async def story(answering: Answering) -> list[Answers | BaseException]:
        return await asyncio.gather(bench.ask(answering, 6, 7), bench.ask(answering, 10, 11), return_exceptions=True)

    bad, good = bench.run(story)
    assert isinstance(bad, AnswerError)
    assert "row 7 of tiny/train" in str(bad)
    assert good.teacher_calls == 2
    assert np.flatnonzero(bench.cache.present()).tolist() == [6, 10, 11]
    counts = bench.writer.ledger_counts()
    assert (counts["attempts"], counts["teacher_calls"], counts["reserved"]) == (4, 3, 0)


def test_a_teacher_that_raises_fails_its_batch_only_and_its_attempts_count(bench: Bench) -> None:
    async def story(answering: Answering) -> Answers:
        bench.teacher.error = RuntimeError("CUDA out of memory at 0x7f0000")
        with pytest.raises(TeacherFailedError, match="RuntimeError") as failed:
            await bench.ask(answering, 1, 2)
        assert "0x7f" not in str(failed.value)
        bench.teacher.error = None
        assert answering.trouble is None
        return await bench.ask(answering, 1, 2)

    assert bench.run(story).teacher_calls == 2
    counts = bench.writer.ledger_counts()
    assert (counts["attempts"], counts["teacher_calls"], counts["reserved"]) == (4, 2, 0)


def test_a_caller_that_leaves_changes_nothing_for_those_who_joined(bench: Bench) -> None:
    async def story(answering: Answering) -> Answers:
        bench.teacher.may_answer.clear()
        first = asyncio.create_task(bench.ask(answering, 1))
        await until(lambda: len(bench.teacher.batches) == 1)
        second = asyncio.create_task(bench.ask(answering, 1))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        bench.teacher.may_answer.set()
        return await second

    answers = bench.run(story)
    assert answers.teacher_calls == 0
    assert len(bench.asked_images()) == 1
    assert bench.writer.ledger_counts()["teacher_calls"] == 1


def test_a_caller_that_leaves_while_paying_has_paid_for_an_answer_that_is_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve_all = bench.writer.reserve_all

    def slowly(requests: Any) -> Any:
        time.sleep(0.1)
        return reserve_all(requests)

    async def story(answering: Answering) -> None:
        monkeypatch.setattr(bench.writer, "reserve_all", slowly)
        asked = asyncio.create_task(bench.ask(answering, 1))
        await until(lambda: answering.waiting_images == 1)
        asked.cancel()
        await until(lambda: bench.cache.place_of(1) is not None)

    bench.run(story)
    counts = bench.writer.ledger_counts()
    assert (counts["attempts"], counts["teacher_calls"], counts["reserved"]) == (1, 1, 0)


def test_a_deadline_tells_the_caller_and_keeps_the_answer(bench: Bench) -> None:
    async def story(answering: Answering) -> Answers:
        bench.teacher.may_answer.clear()
        with pytest.raises(DeadlineError, match="ask again"):
            await answering.answer(bench.rows(1), outputs=("logits",), run="default", timeout_s=0.05)
        bench.teacher.may_answer.set()
        await until(lambda: bench.cache.place_of(1) is not None)
        return await bench.ask(answering, 1)

    assert bench.run(story).cached.tolist() == [True]


def test_a_large_request_is_split_and_a_small_one_of_another_run_is_not_held_up(bench: Bench) -> None:
    bench.writer.ensure_run("small")

    async def story(answering: Answering) -> None:
        bench.teacher.may_answer.clear()
        large = asyncio.create_task(bench.ask(answering, *range(20, 60)))
        await until(lambda: len(bench.teacher.batches) == 1)
        small = asyncio.create_task(bench.ask(answering, 1, 2, run="small"))
        await until(lambda: answering.waiting_images == 42)
        bench.teacher.may_answer.set()
        await asyncio.gather(large, small)

    bench.run(story, batch_images=8)
    small_images = {bench.dataset.image(row).tobytes() for row in (1, 2)}
    positions = [index for index, batch in enumerate(bench.teacher.batches) if small_images & set(batch)]
    assert [len(batch) for batch in bench.teacher.batches][:5] == [8] * 5
    # One batch is with the teacher and one is loaded ahead when the small request arrives.
    assert max(positions) <= 2


def test_a_run_that_cannot_pay_harms_nobody_who_joined_it(bench: Bench) -> None:
    bench.writer.ensure_run("poor", budget=1)

    async def story(answering: Answering) -> list[Answers | BaseException]:
        return await asyncio.gather(
            bench.ask(answering, 1, 2, run="poor"), bench.ask(answering, 1, 2), return_exceptions=True
        )

    poor, rich = bench.run(story)
    assert isinstance(poor, BudgetExhaustedError)
    assert (poor.needed, poor.remaining) == (2, 1)
    assert rich.teacher_calls == 2


def test_views_are_rendered_and_the_view_that_is_the_image_costs_nothing(bench: Bench) -> None:
    async def story(answering: Answering) -> list[Answers]:
        # crop1 without flip: view 5 is the crop in the middle.
        return [await bench.ask(answering, 1, 2, view=view) for view in (0, 5, 1)]

    clean, middle, corner = bench.run(story)
    assert [clean.teacher_calls, middle.teacher_calls, corner.teacher_calls] == [2, 0, 2]
    np.testing.assert_array_equal(clean.outputs["logits"], middle.outputs["logits"])
    expected = FakeTeacher(classes=10).answer([bench.dataset.rendered(row, 1) for row in (1, 2)])
    np.testing.assert_array_equal(corner.outputs["logits"], expected["logits"].astype(np.float16))


def test_uploads_are_known_by_their_pixels(bench: Bench) -> None:
    uploads = bench.writer.open_cache(bench.teacher.description, UPLOADS)
    images = [bench.dataset.image(1), bench.dataset.image(2), bench.dataset.image(1)]
    question = ImagesQuestion(cache=uploads, images=images, known_keys=[pixel_key(image) for image in images])

    async def story(answering: Answering) -> tuple[Answers, Answers, Answers]:
        first = await answering.answer(question, outputs=("logits",), run="default")
        second = await answering.answer(question, outputs=("logits",), run="default")
        return first, second, await bench.ask(answering, 2)

    first, second, row = bench.run(story)
    assert [first.teacher_calls, second.teacher_calls, row.teacher_calls] == [2, 0, 0]
    np.testing.assert_array_equal(first.outputs["logits"], second.outputs["logits"])
    np.testing.assert_array_equal(row.outputs["logits"][0], first.outputs["logits"][1])


def test_a_full_queue_refuses_before_anything_is_paid(bench: Bench) -> None:
    async def story(answering: Answering) -> None:
        bench.teacher.may_answer.clear()
        first = asyncio.create_task(bench.ask(answering, 1, 2, 3))
        await until(lambda: answering.waiting_images == 3)
        with pytest.raises(UnavailableError, match="waiting"):
            await bench.ask(answering, 4, 5)
        bench.teacher.may_answer.set()
        await first

    bench.run(story, queue_images=4)
    assert bench.writer.ledger_counts()["attempts"] == 3


def test_an_unknown_run_and_an_output_that_is_not_kept_are_refused(bench: Bench) -> None:
    async def story(answering: Answering) -> None:
        with pytest.raises(UnknownNameError, match="nobody"):
            await bench.ask(answering, 1, run="nobody")
        with pytest.raises(OutputNotCachedError, match=r"maps\.1"):
            await answering.answer(bench.rows(1), outputs=("maps.1",), run="default")

    bench.run(story)
    assert bench.asked_images() == []


def test_a_cache_that_can_no_longer_be_written_ends_the_loop_and_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    async def story(answering: Answering) -> None:
        monkeypatch.setattr(bench.writer, "commit_all", broken)
        with pytest.raises(UnavailableError, match="stopped"):
            await bench.ask(answering, 1)
        await asyncio.wait_for(answering.died.wait(), timeout=5)
        assert "batcher stopped" in (answering.trouble or "")
        with pytest.raises(UnavailableError):
            await bench.ask(answering, 2)

    bench.run(story)


def test_a_full_disk_is_told_to_the_callers_and_passes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise DiskFullError("no room")

    async def story(answering: Answering) -> Answers:
        with monkeypatch.context() as broken:
            broken.setattr(bench.writer, "commit_all", full)
            with pytest.raises(DiskFullError):
                await bench.ask(answering, 1)
            assert "disk is full" in (answering.trouble or "")
        answers = await bench.ask(answering, 1)
        assert answering.trouble is None
        return answers

    assert bench.run(story).teacher_calls == 1
    counts = bench.writer.ledger_counts()
    assert (counts["attempts"], counts["teacher_calls"], counts["reserved"]) == (2, 1, 0)


def test_while_draining_nothing_new_is_taken_on(bench: Bench) -> None:
    async def story(answering: Answering) -> Answers:
        bench.teacher.may_answer.clear()
        asked = asyncio.create_task(bench.ask(answering, 1))
        await until(lambda: len(bench.teacher.batches) == 1)
        draining = asyncio.create_task(answering.drain())
        await asyncio.sleep(0.01)
        with pytest.raises(UnavailableError, match="draining"):
            await bench.ask(answering, 2)
        bench.teacher.may_answer.set()
        await draining
        return await asked

    assert bench.run(story).teacher_calls == 1


@pytest.mark.parametrize("failure", ["the teacher raises", "answers are not finite"])
def test_a_fill_that_fails_logs_no_traceback_for_every_image(
    bench: Bench, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    if failure == "the teacher raises":
        bench.teacher.error = ValueError("no")
    else:
        bench.dataset = make_dataset(red_rows=slice(None))

    async def story(answering: Answering) -> None:
        rows = np.arange(ROWS)
        await fill(
            answering,
            dataset=bench.dataset,
            cache=bench.cache,
            rows=rows,
            views=[0],
            run="default",
            batch_images=16,
            progress=lambda _: None,
        )

    with pytest.raises((TeacherFailedError, AnswerError)):
        bench.run(story)
    gc.collect()
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


def test_every_batch_is_in_the_history_with_what_came_of_it(bench: Bench) -> None:
    async def story(answering: Answering) -> None:
        await bench.ask(answering, *range(20, 40))
        with pytest.raises(AnswerError):
            await bench.ask(answering, 6, 7)
        bench.teacher.error = RuntimeError("out of memory")
        with pytest.raises(TeacherFailedError):
            await bench.ask(answering, 1, 2, 3)
        bench.teacher.error = None
        bench.teacher.may_answer.clear()
        # Both are in one batch: the teacher is busy with the first.
        first = asyncio.create_task(bench.ask(answering, 10))
        await until(lambda: len(bench.teacher.batches) == 5)
        both = [
            asyncio.create_task(answering.answer(bench.rows(row), outputs=("logits",), run="default", owner=owner))
            for row, owner in ((11, "alice"), (12, "bob"), (13, "bob"))
        ]
        await until(lambda: answering.waiting_images == 4)
        bench.teacher.may_answer.set()
        await asyncio.gather(first, *both)

    bench.run(story)
    bench.writer.info()  # writes what waits for a transaction
    counts, described = bench.writer.ledger_counts(), describe_history(bench.writer.path)
    told = [(call["owner"], call["images"], call["answers"], call["batch_images"]) for call in described["calls"]]
    assert sorted(told) == [
        ("alice", 1, 1, 3),
        ("bob", 2, 2, 3),
        ("local", 1, 0, 2),
        ("local", 1, 1, 1),
        ("local", 1, 1, 2),
        ("local", 3, 0, 3),
        ("local", 4, 4, 4),
        ("local", 16, 16, 16),
    ]
    assert described["images"] == counts["attempts"] == 29
    assert described["answers"] == counts["teacher_calls"] == 25
    assert described["batches"] == 6
    assert {call["device"] for call in described["calls"]} == {"cpu"}
    assert all({"teachonce", "python", "numpy"} <= call["versions"].keys() for call in described["calls"])
    times = [call["time"] for call in described["calls"]]
    assert all(abs(time.time() - datetime.fromisoformat(text).timestamp()) < 60 for text in times)


def test_the_owner_of_a_key_pays_and_is_bounded(bench: Bench) -> None:
    bench.writer.set_owner_budget("alice", 2)

    async def story(answering: Answering) -> None:
        async def ask(*rows: int) -> None:
            await answering.answer(bench.rows(*rows), outputs=("logits",), run="default", owner="alice")

        await ask(1, 2)
        with pytest.raises(BudgetExhaustedError, match="key owner alice"):
            await ask(3)
        await bench.ask(answering, 3)
        await ask(3)

    bench.run(story)
    owners = bench.writer.ledger_counts()["owners"]
    assert {name: (one["attempts"], one["hits"], one["charged"]) for name, one in owners.items()} == {
        "alice": (2, 1, 3),
        "local": (1, 0, 1),
    }
