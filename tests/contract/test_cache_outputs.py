"""Caches that keep more than logits and features: filled, planned, added to, killed meanwhile, read by every tool."""

import asyncio
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import zarr
from numpy.typing import NDArray
from typer.testing import CliRunner

from cache.backup import back_up
from cache.export import export_answers
from cache.fidelity import measure_fidelity
from cache.history_report import describe_history
from cache.info import describe_cache
from cache.merge import merge_caches
from cache.reader import CacheReader
from cache.removal import remove
from cache.repair import repair_cache
from cache.tensor_file import TensorFile
from cache.verify import find_damage
from cache.writer import CacheWriter
from shared.datasets.base import ArrayDataset, SplitFacts
from shared.datasets.spec import open_dataset
from shared.errors import (
    BudgetExhaustedError,
    CorruptCacheError,
    IdentityError,
    InputError,
    TeacherFailedError,
    TeachonceError,
)
from shared.fake_teacher import FakeTeacher
from shared.identity import pixel_key
from shared.outputs import OutputForm
from shared.teacher import load_teacher
from shared.wire import CONTENT_TYPE, pack_tensors, unpack_tensors
from student_trainer.data import CachedTeacherDataset, CachedTeacherLoader
from teacher_server.answering import Answering
from teacher_server.app import create_app
from teacher_server.backfill import backfill, unanswered_keys
from teacher_server.cli import app
from teacher_server.questions import ImagesQuestion, RowsQuestion
from teacher_server.service import UPLOADS
from teacher_server.settings import AnsweringSettings, ServerSettings

ROWS = 30
BATCH = 8
ADDED = {"maps.0": "float16", "input_grad": "int8"}


class MappedFake(FakeTeacher):
    """A fake teacher with one map and a gradient, both exact."""

    def __init__(self) -> None:
        super().__init__(classes=10)

    def answer(
        self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[np.float32]]:
        said = super().answer(images)
        if outputs:
            said["maps.0"] = said["features"].reshape(-1, 1, 4, 4)
            said["input_grad"] = np.stack(images).transpose(0, 3, 1, 2) / np.float32(256)
        return said

    def forms(self, size: tuple[int, int]) -> dict[str, OutputForm]:
        sides = {"image_height": size[0], "image_width": size[1]}
        return {
            **super().forms(size),
            "maps.0": OutputForm(shape=(1, 4, 4), attributes=sides),
            "input_grad": OutputForm(shape=(3, *size), attributes=sides),
        }


def make_dataset(seed: int = 0) -> ArrayDataset:
    pixels = np.random.default_rng(seed).integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)
    pixels[9] = pixels[8]
    pixels[20] = pixels[3]
    facts = SplitFacts(name="tiny/train", classes=("a", "b"), labels=np.arange(ROWS) % 2, view_policy="crop1")
    return ArrayDataset(facts, pixels=pixels)


DATASET = make_dataset()
DISTINCT = ROWS - 2
"""Images."""


def teacher_server(*arguments: object) -> str:
    """What a command prints; its error is raised."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout


def filled(store: Path) -> Path:
    """A cache of logits and features, in an order of its own, one row folded and others in the journal."""
    teacher = MappedFake()
    rows = np.random.default_rng(1).permutation(ROWS)
    with closing(CacheWriter.open(store)) as writer:
        cache = writer.open_cache(teacher.description, DATASET.description)
        for part in np.array_split(rows, 4):
            unknown = [row for row in part.tolist() if writer.find(teacher.id, DATASET.keys[row].tobytes()) is None]
            writer.commit(
                cache,
                run="default",
                reservation=writer.reserve(run="default", cache=cache, calls=len(part)),
                keys=DATASET.keys[part],
                rows=part,
                views=np.zeros(len(part), dtype=np.int64),
                labels=DATASET.labels[part],
                outputs=teacher.answer(DATASET.images(part)),
            )
            assert unknown
    return store


def add(store: Path, *, dataset: ArrayDataset = DATASET, run: str = "default", adding: dict[str, str] = ADDED) -> None:
    teacher = MappedFake()
    with closing(CacheWriter.open(store)) as writer:
        writer.ensure_run(run)
        cache = writer.additions.cache(teacher.id, dataset.description)
        if adding.keys() <= cache.outputs.keys():
            return
        addition = writer.additions.open(cache, adding, teacher.forms((8, 8)))
        options = {"run": run, "batch_images": BATCH, "progress": lambda counts: None}
        backfill(writer, teacher=teacher, dataset=dataset, cache=cache, addition=addition, **options)
        writer.additions.join(cache, addition)


def check_added(store: Path) -> None:
    teacher, rows = MappedFake(), np.arange(ROWS)
    expected = teacher.answer(DATASET.images(rows), list(ADDED))
    assert list(find_damage(store)) == []
    with CacheReader.open(store, check=True) as reader:
        assert reader.outputs == ("logits", "features", "input_grad", "maps.0")
        assert reader.num_slots == ROWS
        read = reader.gather(rows, outputs=("logits", "maps.0", "input_grad"))
    np.testing.assert_array_equal(read["maps.0"], expected["maps.0"].astype(np.float16))
    np.testing.assert_array_equal(read["logits"], expected["logits"].astype(np.float16))
    assert np.abs(read["input_grad"] - expected["input_grad"]).max() <= 1 / 255
    with CacheReader.open(store, journal=True) as reader:
        np.testing.assert_array_equal(reader.gather(rows, outputs="maps.0")["maps.0"], read["maps.0"])


def test_added_outputs_are_those_of_every_slot_and_cost_each_image_once(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    before = describe_cache(store)
    add(store, run="more")
    check_added(store)
    after = describe_cache(store)
    # A forward again, and a backward.
    assert after["budgets"]["more"] == {
        "budget": None,
        "attempts": 2 * DISTINCT,
        "teacher_calls": 2 * DISTINCT,
        "charged": DISTINCT,
    }
    assert after["teacher_calls"] == before["teacher_calls"] + 2 * DISTINCT
    assert after["caches"][0]["teacher_calls"] == after["teacher_calls"]
    assert len(after["caches"]) == 1
    assert [file.parent.name for file in store.glob("data.zarr/*/*/*/zarr.json")] == ["train"]
    add(store, run="more")
    assert describe_cache(store) == after


@pytest.fixture
def steps() -> Iterator[Callable[[int | None], list[int]]]:
    """Counts writes, renames, fsyncs and SQL statements from its call on; kills this process at one of them."""
    patch = pytest.MonkeyPatch()

    def begin(kill_at: int | None) -> list[int]:
        count = [0]

        def step(*_: object) -> None:
            count[0] += 1
            if count[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def counted(work: Callable) -> Callable:
            def wrapped(*arguments: object, **named: object) -> object:
                step()
                return work(*arguments, **named)

            return wrapped

        connect = sqlite3.connect

        def traced(*arguments: object, **named: object) -> sqlite3.Connection:
            database = connect(*arguments, **named)
            database.set_trace_callback(step)
            return database

        patch.setattr(sqlite3, "connect", traced)
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "rename")):
            patch.setattr(owner, name, counted(getattr(owner, name)))
        return count

    yield begin
    patch.undo()


def test_outputs_added_in_spite_of_kills_are_whole_and_counted_once(
    tmp_path: Path, steps: Callable[[int | None], list[int]]
) -> None:
    origin = filled(tmp_path / "origin")
    calls = describe_cache(origin)["teacher_calls"]
    whole = shutil.copytree(origin, tmp_path / "whole")
    with pytest.MonkeyPatch.context():
        count = steps(None)
        add(whole)
    draws = random.Random(4).sample(range(1, count[0]), 10)
    for kill_at in sorted(draws):
        store = shutil.copytree(origin, tmp_path / f"killed{kill_at}")
        child = os.fork()
        if child == 0:
            try:
                steps(kill_at)
                add(store)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        with CacheReader.open(store) as reader:
            np.testing.assert_array_equal(reader.present(), True)
            reader.gather(np.arange(ROWS))
        assert len(describe_cache(store)["caches"]) == 1
        add(store)
        check_added(store)
        counts = describe_cache(store)
        assert counts["teacher_calls"] == calls + 2 * DISTINCT
        assert (
            0 <= counts["attempts"] - counts["teacher_calls"] <= 2 * BATCH + describe_cache(origin)["attempts"] - calls
        )
        assert counts["budgets"]["default"]["charged"] == DISTINCT


def test_adding_outputs_is_bounded_and_refuses_other_images(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    teacher = MappedFake()
    with closing(CacheWriter.open(store)) as writer:
        writer.ensure_run("poor", 2 * BATCH)
        cache = writer.additions.cache(teacher.id, DATASET.description)
        addition = writer.additions.open(cache, ADDED, teacher.forms((8, 8)))
        assert unanswered_keys(writer, cache, addition) == DISTINCT
        options = {"run": "poor", "batch_images": BATCH, "progress": lambda counts: None}
        with pytest.raises(BudgetExhaustedError):
            backfill(writer, teacher=teacher, dataset=DATASET, cache=cache, addition=addition, **options)
        assert writer.ledger_counts()["runs"]["poor"]["attempts"] == 2 * BATCH
        with pytest.raises(InputError, match="8 of 30 slots"):
            writer.additions.join(cache, addition)
        with pytest.raises(InputError, match=r"in the middle of --add-outputs .*maps.0=float16"):
            writer.additions.open(cache, {"maps.0": "float16"}, teacher.forms((8, 8)))
        other = make_dataset(seed=1)
        with pytest.raises(IdentityError, match="not the data set"):
            writer.additions.cache(teacher.id, other.description)
        # What a stale index of keys would let through.
        with pytest.raises(IdentityError, match="other pixels"):
            backfill(writer, teacher=teacher, dataset=other, cache=cache, addition=addition, **options)
    with pytest.raises(InputError, match="in the middle of"):
        merge_caches([store], tmp_path / "merged")
    assert list(find_damage(store)) == []
    assert [one.record.dataset.name for one in remove(store, what=teacher.id)] == ["tiny/train", "tiny/train+adding"]


def renamed(name: str) -> ArrayDataset:
    """The same images under another name."""
    facts = SplitFacts(name=name, classes=("a", "b"), labels=DATASET.labels, view_policy="crop1")
    return ArrayDataset(facts, pixels=np.stack(DATASET.images(np.arange(ROWS))))


def ask(store: Path, dataset: ArrayDataset, *, outputs: dict[str, str] | None = None, teacher: MappedFake) -> int:
    """Answer all rows as a server would; how many calls that took."""
    with closing(CacheWriter.open(store)) as writer:
        kept = outputs or {"logits": "float16", "features": "float16"}
        cache = writer.open_cache(teacher.description, dataset.description, kept, teacher.forms((8, 8)))

        async def answer() -> int:
            settings = AnsweringSettings(batch_images=BATCH, max_delay_s=0.0)
            async with Answering(writer, teacher=teacher, settings=settings) as answering:
                question = RowsQuestion.ask(dataset, cache=cache, rows=list(range(ROWS)), view=0)
                return (await answering.answer(question, outputs=(), run="default")).teacher_calls

        return asyncio.run(answer())


def test_answers_with_added_outputs_serve_other_data_sets_of_the_same_images(tmp_path: Path) -> None:
    store, teacher = tmp_path / "store", MappedFake()
    assert ask(store, renamed("first/train"), teacher=teacher) == DISTINCT
    assert ask(store, DATASET, teacher=teacher) == 0
    # All of these slots are aliases of the first data set's, which does not get the map.
    add(store, adding={"maps.0": "float16"})
    mapped = {"logits": "float16", "features": "float16", "maps.0": "float16"}
    assert ask(store, renamed("third/train"), outputs=mapped, teacher=teacher) == 0
    counts = describe_cache(store)
    assert counts["teacher_calls"] == 2 * DISTINCT


def test_outputs_joined_before_a_crash_are_seen_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_arguments: object, **_options: object) -> None:
        raise SystemExit

    store = filled(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr("cache.additions.finish_moves", crash)
        with pytest.raises(SystemExit):
            add(store)
    with pytest.raises(InputError, match=r"files of .* are being moved .* try again when that is done"):
        back_up(store, tmp_path / "copy")
    CacheWriter.open(store).close()
    check_added(store)
    back_up(store, tmp_path / "copy")


def test_images_of_another_size_are_refused_before_they_are_paid_for(digits_store: Path) -> None:
    store = digits_store.with_name("sized")
    options = (
        "--teacher",
        "zoo:resnet8x4",
        "--dataset",
        "digits/test",
        "--cache",
        store,
        "--view-policy",
        "rrc:size=16",
    )
    teacher_server("fill", *options, "--sample", 4, "--views", "0-1")
    with pytest.raises(InputError, match="view 1 of digits/test is 16 x 16 pixels"):
        teacher_server("fill", *options, "--add-outputs", "maps.1")
    assert describe_cache(store)["attempts"] == 8


def test_a_teacher_that_fails_while_outputs_are_added_is_one_line_and_stays_in_the_history(tmp_path: Path) -> None:
    class Failing(MappedFake):
        def answer(
            self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()
        ) -> dict[str, NDArray[np.float32]]:
            raise RuntimeError("out of memory")

    store, teacher = filled(tmp_path / "store"), Failing()
    with closing(CacheWriter.open(store)) as writer:
        cache = writer.additions.cache(teacher.id, DATASET.description)
        addition = writer.additions.open(cache, ADDED, teacher.forms((8, 8)))
        options = {"run": "default", "batch_images": BATCH, "progress": lambda counts: None}
        with pytest.raises(TeacherFailedError, match="the teacher raised RuntimeError on a batch of 8 images: out of"):
            backfill(writer, teacher=teacher, dataset=DATASET, cache=cache, addition=addition, **options)
    (call,) = describe_history(store)["calls"]
    # An image whose gradient is kept is two calls.
    assert (call["images"], call["answers"]) == (2 * BATCH, 0)


def test_teachers_of_one_cache_are_merged_one_after_the_other(tmp_path: Path) -> None:
    class Other(MappedFake):
        def __init__(self) -> None:
            super().__init__()
            self.description = replace(self.description, id="fake-other")

        @property
        def id(self) -> str:
            return self.description.id

    source, target = tmp_path / "source", tmp_path / "target"
    first, other = MappedFake(), Other()
    assert [ask(source, DATASET, teacher=teacher) for teacher in (first, other)] == [DISTINCT, DISTINCT]
    for _ in range(2):
        for teacher in (first, other):
            merge_caches([source], target, teacher=teacher.id)
    counts, history = describe_cache(target), describe_history(target)
    assert counts["attempts"] == counts["teacher_calls"] == history["images"] == 2 * DISTINCT


def test_a_server_gives_the_outputs_that_its_cache_keeps(tmp_path: Path) -> None:
    teacher = MappedFake()
    said = teacher.answer(DATASET.images([3, 20]), list(ADDED))
    small, large = (
        pack_tensors({"images": np.full((1, side, side, 3), side, np.uint8)}, metadata={}) for side in (8, 9)
    )

    async def story(client: httpx.AsyncClient) -> list[httpx.Response]:
        rows = {"dataset": DATASET.name, "rows": [3, 20], "outputs": ["maps.0", "input_grad"]}
        binary = {"accept": CONTENT_TYPE}
        image = {"content-type": CONTENT_TYPE}
        return [
            await client.post("/v1/logits", json=rows),
            await client.post("/v1/logits", json=rows, headers=binary),
            await client.post("/v1/logits", json=rows | {"outputs": ["features"]}),
            await client.post("/v1/images?outputs=maps.0", content=small, headers=image),
            await client.post("/v1/images?outputs=maps.0", content=large, headers=image),
        ]

    async def inside(writer: CacheWriter) -> list[httpx.Response]:
        kept = {"logits": "float16", "maps.0": "float16", "input_grad": "float32"}
        app = create_app(ServerSettings(), teacher=teacher, datasets=[DATASET], writer=writer, outputs=kept)
        transport = httpx.ASGITransport(app=app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            return await story(client)

    with CacheWriter.open(tmp_path / "store") as writer:
        texts, tensors, missing, uploaded, refused = asyncio.run(inside(writer))
        counts = writer.ledger_counts()
    # Rows 3 and 20 show one image: a forward and a backward.
    assert texts.headers["x-teacher-calls"] == "2"
    np.testing.assert_array_equal(np.array(texts.json()["maps.0"], np.float32), said["maps.0"].astype(np.float16))
    arrays, metadata = unpack_tensors(tensors.content)
    assert (arrays["maps.0"].dtype, metadata["teacher_calls"]) == (np.float16, "0")
    np.testing.assert_array_equal(arrays["input_grad"], said["input_grad"])
    assert (missing.status_code, missing.json()["code"]) == (400, "output_not_cached")
    assert np.shape(uploaded.json()["maps.0"]) == (1, 1, 4, 4)
    assert refused.status_code == 400
    assert "9 x 9 pixels" in refused.json()["error"]
    assert (counts["teacher_calls"], counts["attempts"]) == (4, 4)


def test_gradients_are_computed_for_nobody_who_did_not_pay_for_them(tmp_path: Path) -> None:
    teacher = MappedFake()
    asked: list[tuple[int, tuple[str, ...]]] = []

    class Watched(MappedFake):
        def answer(self, images: Sequence[NDArray[np.uint8]], outputs: Sequence[str] = ()) -> dict:
            asked.append((len(images), tuple(outputs)))
            return super().answer(images, outputs)

    async def ask(writer: CacheWriter) -> list[int]:
        plain = writer.open_cache(teacher.description, DATASET.description)
        kept = {"logits": "float16", **ADDED}
        wide = writer.open_cache(teacher.description, UPLOADS, kept, teacher.forms((8, 8)))
        images = [np.full((8, 8, 3), level, np.uint8) for level in range(5)]
        uploads = ImagesQuestion(cache=wide, images=images, known_keys=[pixel_key(image) for image in images])
        rows = RowsQuestion.ask(DATASET, cache=plain, rows=range(4), view=0)
        settings = AnsweringSettings(batch_images=9, max_delay_s=0.2)
        async with Answering(writer, teacher=Watched(), settings=settings) as answering:
            answers = await asyncio.gather(
                *(answering.answer(question, outputs=["logits"], run="default") for question in (rows, uploads))
            )
        return [answer.teacher_calls for answer in answers]

    with CacheWriter.open(tmp_path / "store") as writer:
        assert asyncio.run(ask(writer)) == [4, 10]
        assert sorted(asked) == [(4, ()), (5, ("input_grad", "maps.0"))]
        counts = writer.ledger_counts()
        assert (counts["teacher_calls"], counts["attempts"], counts["reserved"]) == (14, 14, 0)


def test_batches_of_the_loader_carry_maps_and_gradients(tmp_path: Path) -> None:
    store = filled(tmp_path / "store")
    add(store)
    with CacheReader.open(store) as reader:
        dataset = CachedTeacherDataset(
            [(image, 0) for image in DATASET.images(range(ROWS))], reader, transform=np.array
        )
        batch = next(iter(CachedTeacherLoader(dataset, outputs=("logits", "maps.0", "input_grad"), batch_size=4)))
        given = batch.distill(torch.zeros(4, 10))
        assert [tuple(one.shape) for one in given.teacher_maps] == [(4, 1, 4, 4)]
        assert given.teacher_input_grad is not None
        np.testing.assert_array_equal(
            given.teacher_maps[0], reader.gather(batch.rows.numpy(), outputs="maps.0")["maps.0"]
        )
        assert given.teacher_features is None


OUTPUTS = ("maps.3", "attention.1", "input_grad")


@pytest.fixture(scope="module")
def digits_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo network's maps of 40 digits, filled by the command; what it planned stands beside."""
    store = tmp_path_factory.mktemp("digits") / "store"
    options = ("--teacher", "zoo:resnet8", "--dataset", "digits/test", "--cache", store, "--sample", 40, "--batch", 40)
    kept = ("--outputs", f"logits,features,constants,{','.join(OUTPUTS)}")
    (store.parent / "plan.txt").write_text(teacher_server("plan", *options, *kept))
    (store.parent / "fill.txt").write_text(teacher_server("fill", *options, *kept))
    return store


def chunk_bytes(store: Path) -> int:
    return sum(file.stat().st_size for file in store.glob("data.zarr/*/*/*/*/c.*"))


def test_a_plan_says_what_outputs_cost_in_calls_and_on_disk(digits_store: Path) -> None:
    planned = (digits_store.parent / "plan.txt").read_text()
    assert "80 teacher calls" in planned
    assert "maps.3: float16 [64, 2, 2], 512 bytes per row" in planned
    assert "input_grad: float16 [3, 8, 8], 384 bytes per row, one more call per row" in planned
    size = 40 * (8 + 8 + 4 + 32 + 2 * (10 + 64 + 256 + 64 + 192))
    assert f"{size / 1000:.1f} kB, " in planned
    assert f"{chunk_bytes(digits_store) / 1e6:.1f} MB on disk" in planned
    assert "40 rows, 80 teacher calls, 0 hits" in (digits_store.parent / "fill.txt").read_text()
    assert describe_cache(digits_store)["budgets"]["default"] == {
        "budget": None,
        "attempts": 80,
        "teacher_calls": 80,
        "charged": 40,
    }


def test_maps_of_a_cache_are_what_the_teacher_says_rounded(digits_store: Path) -> None:
    digits = open_dataset("digits/test")
    teacher = load_teacher("zoo:resnet8", classes=10, normalisation=digits.normalisation, device="cpu")
    with CacheReader.open(digits_store) as reader:
        rows = np.flatnonzero(reader.present())
        read = reader.gather(rows, outputs=OUTPUTS)
        said = teacher.answer(digits.images(rows), OUTPUTS)
        for name in OUTPUTS:
            assert read[name].dtype == np.float16
            np.testing.assert_allclose(read[name], said[name], rtol=2e-3, atol=1e-4)
        assert reader.forms["attention.1"].attributes["height"] == 8
        for name, values in teacher.constants().items():
            np.testing.assert_array_equal(reader.constants[name], values)
        group = zarr.open_group(str(digits_store / "data.zarr"), mode="r")[reader.teacher.id]
        np.testing.assert_array_equal(
            group["digits/test/maps.3"][:][np.argsort(group["digits/test/rows"][:])], read["maps.3"]
        )
        np.testing.assert_array_equal(group["_constants/margins.3"][:], reader.constants["margins.3"])
        assert dict(group["digits/test/attention.1"].attrs)["width"] == 8


def test_every_tool_takes_a_cache_with_maps_and_constants(digits_store: Path, tmp_path: Path) -> None:
    assert list(find_damage(digits_store)) == []
    assert repair_cache(digits_store) == []
    assert measure_fidelity(digits_store)
    back_up(digits_store, tmp_path / "backup")
    merge_caches([digits_store], tmp_path / "merged")
    export_answers(digits_store, tmp_path / "all.safetensors")
    exported = TensorFile(tmp_path / "all.safetensors")
    with CacheReader.open(digits_store) as reader:
        rows = exported.get("rows")
        expected = reader.gather(rows)  # type: ignore[arg-type]  # it has rows
        for copy in (tmp_path / "backup", tmp_path / "merged"):
            assert list(find_damage(copy)) == []
            with CacheReader.open(copy) as other:
                assert other.forms == reader.forms
                assert other.constants.keys() == reader.constants.keys()
                for name, values in other.gather(rows).items():  # type: ignore[arg-type]
                    np.testing.assert_array_equal(values, expected[name])
                    np.testing.assert_array_equal(exported.get(name), values)
    flipped = next((tmp_path / "backup").glob("data.zarr/*/_constants/margins.3/c.0"))
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\x01")
    assert any("margins.3" in line for line in find_damage(tmp_path / "backup"))
    with CacheReader.open(tmp_path / "backup") as reader, pytest.raises(CorruptCacheError, match="constants"):
        _ = reader.constants
    remove(tmp_path / "backup", what="resnet8")
    assert not list((tmp_path / "backup").glob("data.zarr/*/"))


def test_the_command_adds_outputs_and_says_what_it_cannot(digits_store: Path, tmp_path: Path) -> None:
    store = shutil.copytree(digits_store, tmp_path / "store")
    options = ("--teacher", "zoo:resnet8", "--dataset", "digits/test", "--cache", store)
    before = chunk_bytes(store)
    planned = teacher_server("plan", *options, "--add-outputs", "maps.2=int8")
    assert "40 answers get maps.2, 40 teacher calls" in planned
    assert teacher_server("fill", *options, "--add-outputs", "maps.2=int8", "--budget", 120).startswith(
        "40 rows, 40 teacher calls"
    )
    assert f"{(chunk_bytes(store) - before) / 1e6:.1f} MB on disk" in planned
    assert teacher_server("fill", *options, "--add-outputs", "maps.2=int8,constants").startswith("0 rows, 0 teacher")
    for refused, reason in (
        (("--add-outputs", "maps.4"), r"cannot give 'maps.4'; it gives logits, features, maps.0"),
        (("--add-outputs", "maps.2"), "keeps maps.2 as int8 already"),
        (("--add-outputs", "maps.0", "--budget", 125), "40 teacher calls needed, 5 remain"),
        (("--add-outputs", "maps.0", "--sample", 3), "leave out"),
        (("--outputs", "logits,maps.x"), "maps.K"),
        (("--outputs", "logits,maps.1"), "--add-outputs"),
    ):
        with pytest.raises(TeachonceError, match=reason):
            teacher_server("fill", *options, *refused)
    with CacheReader.open(store) as reader:
        assert reader.gather(np.flatnonzero(reader.present()), outputs="maps.2")["maps.2"].shape == (40, 32, 4, 4)
