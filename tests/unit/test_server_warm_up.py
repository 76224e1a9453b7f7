"""What happens before a server is ready: every replica has answered blank images, and nobody has paid for it."""

import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cache.history_report import describe_history
from cache.info import describe_cache
from shared.datasets.base import ArrayDataset, ImageDataset, SplitFacts
from shared.errors import BadImageError
from shared.fake_teacher import FakeTeacher
from shared.replicas import ReplicatedTeacher
from teacher_server import serve
from teacher_server.commands import FillOptions, fill_cache
from teacher_server.opening import RowOptions, TeacherOptions
from teacher_server.settings import AnsweringSettings, ServerSettings
from teacher_server.warm_up import UNKNOWN_SIZE, image_size, warm_up


class WarmTeacher(FakeTeacher):
    """Notes what it is warmed up with."""

    overlaps = True

    def __init__(self, events: list[object]) -> None:
        super().__init__(classes=10)
        self.events = events

    def start(self, images: Sequence[object]) -> object:
        raise AssertionError("nothing was asked")

    def warm_up(self, batch_sizes: Sequence[int], *, size: tuple[int, int]) -> None:
        self.events.append((tuple(batch_sizes), size))


def dataset(*, readable: bool = True) -> ImageDataset:
    facts = SplitFacts(name="tiny/train", classes=("a", "b"), labels=np.arange(4) % 2, view_policy="crop1")
    made = ArrayDataset(facts, pixels=np.zeros((4, 9, 7, 3), dtype=np.uint8))
    if not readable:

        def image(_: int) -> None:
            raise BadImageError("cut off")

        made.image = image  # type: ignore[method-assign,assignment]
    return made


def test_the_size_is_the_teachers_else_that_of_the_first_image_that_can_be_read() -> None:
    free, fixed = FakeTeacher(classes=2), FakeTeacher(classes=2)
    fixed.input = (5, 6)  # type: ignore[assignment]
    assert image_size(fixed, datasets=[dataset()]) == (5, 6)
    assert image_size(free, datasets=[dataset(readable=False), dataset()]) == (9, 7)
    assert image_size(free, datasets=[]) == UNKNOWN_SIZE


def test_a_server_is_ready_after_every_replica_is_warm_and_nothing_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []
    teacher = ReplicatedTeacher([WarmTeacher(events), WarmTeacher(events)])
    monkeypatch.setattr(serve, "open_teacher", lambda *_, **__: teacher)

    def ready(_: str) -> None:
        events.append("ready")
        signal.raise_signal(signal.SIGTERM)

    serve.serve_until_signal(
        ServerSettings(answering=AnsweringSettings(batch_images=64)),
        port=0,
        cache=tmp_path / "cache",
        teacher=TeacherOptions(spec="mine", compiled=True),
        datasets=[],
        data_root=None,
        download=False,
        view_policy=None,
        outputs=None,
        budgets=serve.RunBudgets(),
        ready=ready,
    )
    assert events == [((1, 8, 32, 64), (32, 32))] * 2 + ["ready"]
    assert describe_cache(tmp_path / "cache")["attempts"] == 0


def test_a_network_that_refuses_blank_images_is_told_and_served_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Picky(WarmTeacher):
        def warm_up(self, batch_sizes: Sequence[int], *, size: tuple[int, int]) -> None:
            raise ZeroDivisionError("blank")

    warm_up(Picky([]), batch_images=4, partial=True, compiled=False, datasets=[dataset()])
    assert "ZeroDivisionError on a blank image of 9 x 7: blank" in caplog.text


def test_a_fill_by_two_replicas_pays_once_for_every_row_and_not_for_blank_images(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for index in range(40):
        path = tmp_path / "pictures" / "train" / "cat" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    options = FillOptions(
        teacher=TeacherOptions(spec="zoo:resnet8", device="cpu,cpu", classes=3),
        datasets=(f"folder:{tmp_path / 'pictures'}",),
        cache=tmp_path / "cache",
        data_root=None,
        download=False,
        rows=RowOptions(),
        views="0",
        view_policy=None,
        outputs=None,
        added=None,
        budget=40,
        run="default",
        batch_images=4,
    )
    assert fill_cache(options).startswith("40 rows, 40 teacher calls, 0 hits")
    info, history = describe_cache(options.cache), describe_history(options.cache)
    assert (info["attempts"], info["teacher_calls"]) == (40, 40)
    assert (history["images"], {call["device"] for call in history["calls"]}) == (40, {"cpu"})
