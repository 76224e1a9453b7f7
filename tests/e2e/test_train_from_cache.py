"""Trainings from a real cache folder: what they leave, what they count, and that they repeat."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache.reader import CacheReader
from cache.writer import CacheWriter
from shared.datasets.base import ImageDataset
from shared.datasets.spec import open_dataset
from shared.errors import IdentityError, InputError, MissingRowsError, OutputNotCachedError
from shared.fake_teacher import FakeTeacher
from shared.identity import pixel_keys, sample_rows
from shared.models.loading import load_network
from shared.teacher import load_teacher
from student_trainer.device_data import DeviceImages
from student_trainer.loop import TrainConfig, train
from student_trainer.loss_watch import DivergedError
from student_trainer.progress import Quiet

ROWS = 48


def fill(
    path: Path, dataset: ImageDataset, *, rows: Sequence[int], views: Sequence[int] = (0,), classes: int = 10
) -> None:
    """Answers of a fake teacher, as a server would have committed them."""
    teacher = FakeTeacher(classes=classes)
    with CacheWriter.open(path) as writer:
        writer.ensure_run("test")
        cache = writer.open_cache(
            teacher.description, dataset.description, {"logits": "float16", "features": "float16"}
        )
        for view in views:
            images = [dataset.rendered(row, view) for row in rows]
            writer.commit(
                cache,
                run="test",
                reservation=writer.reserve(run="test", cache=cache, calls=len(rows)),
                keys=pixel_keys(images),
                rows=rows,
                views=[view] * len(rows),
                labels=dataset.labels[list(rows)],
                outputs=teacher.answer(images),
            )


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return open_dataset("digits/train")


@pytest.fixture(scope="module")
def store_path(digits: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers to the first rows of sample seed 0, views 0 to 8."""
    path = tmp_path_factory.mktemp("store") / "cache"
    rows = sample_rows(num_rows=digits.num_rows, count=ROWS, seed=0).tolist()
    fill(path, digits, rows=rows, views=range(9))
    return path


class Losses(Quiet):
    """Remembers every step's loss."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def step(self, *, images: int, loss: float) -> None:
        self.values.append(loss)


@pytest.fixture
def config(store_path: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        dataset="digits",
        student="zoo:resnet8",
        loss="kl",
        cache=str(store_path),
        sample=ROWS,
        val=0.0,
        epochs=2,
        batch=16,
        tensorboard=False,
        out=tmp_path / "run",
    )


def weights_of(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / f"{name}.safetensors")


def same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_leaves_its_settings_metrics_rows_weights_and_results(config: TrainConfig) -> None:
    config = replace(config, val=0.25, epochs=3, tensorboard=True, command="student-trainer train ...")
    result = train(config)
    assert (result.rows, result.val_rows, result.test_rows) == (36, 12, 360)
    assert (result.teacher_calls, result.charged) == (0, 36)
    assert (result.student_forwards, result.online_calls_equivalent) == (108, 108)
    assert result.teacher == FakeTeacher(classes=10).id
    assert result.hyper == {"temperature": 4.0, "scale": "tau2"}
    assert 0 <= result.test_accuracy_last <= 1
    assert result.val_accuracy_best is not None
    assert result.best_epoch in {1, 2, 3}
    saved = json.loads((config.out / "results.json").read_text())
    assert saved["test_accuracy_last"] == result.test_accuracy_last
    assert saved["command"] == "student-trainer train ..."
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert max(line["val_accuracy"] for line in lines) == result.val_accuracy_best
    assert len(np.load(config.out / "rows.npy")) == 36
    assert json.loads((config.out / "config.json").read_text())["settings"]["loss"] == "kl"
    assert list((config.out / "tensorboard").iterdir())
    assert {"last.safetensors", "best.safetensors"} <= {path.name for path in config.out.iterdir()}


def test_an_infinite_temperature_is_recorded_as_strict_json_and_resumes(config: TrainConfig) -> None:
    config = replace(config, hyper={"temperature": float("inf")}, epochs=1)
    result = train(config)
    assert result.hyper == {"temperature": "inf", "scale": "tau2"}
    for name in ("config.json", "results.json", "metrics.jsonl"):
        json.loads((config.out / name).read_text(), parse_constant=pytest.fail)
    assert train(replace(config, hyper={"temperature": "inf"}, resume=True)) == result


def test_a_training_without_validation_has_no_best_weights(config: TrainConfig) -> None:
    assert train(replace(config, epochs=1)).val_accuracy_best is None
    assert not (config.out / "best.safetensors").exists()


def test_a_cached_run_and_an_online_run_have_the_same_first_losses(config: TrainConfig) -> None:
    cached, online = Losses(), Losses()
    train(replace(config, epochs=7), progress=cached)
    asked = train(
        replace(config, epochs=7, cache=None, teacher="fake:10", out=config.out.with_name("online")), progress=online
    )
    assert len(cached.values) == 21
    np.testing.assert_allclose(online.values[:20], cached.values[:20], rtol=1e-6)
    assert asked.teacher_calls == 7 * ROWS
    assert asked.charged == ROWS


def test_online_views_are_the_cached_ones(config: TrainConfig) -> None:
    cached, online = Losses(), Losses()
    views = replace(config, teacher_views="0-8")
    train(views, progress=cached)
    train(replace(views, cache=None, teacher="fake:10", out=config.out.with_name("online")), progress=online)
    np.testing.assert_allclose(online.values, cached.values, rtol=1e-6)


def test_a_real_network_online_gives_what_its_cache_gives(
    config: TrainConfig, digits: ImageDataset, tmp_path: Path
) -> None:
    teacher = load_teacher("zoo:resnet8", classes=10, normalisation=digits.normalisation, device="cpu")
    rows = sample_rows(num_rows=digits.num_rows, count=ROWS, seed=0)
    with CacheWriter.open(tmp_path / "net") as writer:
        cache = writer.open_cache(teacher.description, digits.description, {"logits": "float16"})
        images = digits.images(rows)
        answers = {"logits": np.asarray(teacher.answer(images)["logits"])}
        facts = {"rows": rows, "views": np.zeros(ROWS, dtype=np.int64), "labels": digits.labels[rows]}
        writer.adopt(cache, keys=pixel_keys(images), outputs=answers, **facts)
    cached, online = Losses(), Losses()
    train(replace(config, epochs=7, cache=str(tmp_path / "net")), progress=cached)
    running = replace(config, epochs=7, cache=None, teacher="zoo:resnet8", device="cpu", out=tmp_path / "online")
    train(running, progress=online)
    np.testing.assert_allclose(online.values[:20], cached.values[:20], rtol=1e-4)


def test_one_seed_gives_the_same_bits_and_another_seed_others(config: TrainConfig) -> None:
    runs = [
        replace(config, loss="ckd", out=config.out / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    for run in runs:
        train(run)
    first, again, other = (weights_of(run.out) for run in runs)
    assert same_bits(first, again)
    assert not same_bits(first, other)


def test_training_leaves_the_caller_s_torch_as_it_was(config: TrainConfig) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    train(replace(config, epochs=1, threads=2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("views", ["same", "fresh", "clean"])
def test_the_student_s_views_may_differ_from_the_teacher_s(views: str, config: TrainConfig) -> None:
    result = train(replace(config, teacher_views="1-8", student_views=views, epochs=3))  # type: ignore[arg-type]
    # Eight views of 48 rows; three epochs draw one each, and some are drawn twice.
    assert ROWS < result.charged <= 3 * ROWS


def test_a_missing_row_is_an_error_and_the_folder_stays_free(config: TrainConfig) -> None:
    with pytest.raises(
        MissingRowsError, match=r"2 training rows of digits/train.*teacher-server fill.*--sample 50 --seed 0"
    ):
        train(replace(config, sample=50))
    assert not config.out.exists()


def test_skip_trains_on_the_rows_that_are_present(config: TrainConfig) -> None:
    result = train(replace(config, sample=None, missing="skip", epochs=1))
    assert (result.rows, result.answered_rows, result.charged) == (ROWS, ROWS, ROWS)


def test_label_only_uses_the_labels_of_all_other_rows(config: TrainConfig) -> None:
    result = train(replace(config, sample=100, missing="label-only", epochs=2))
    assert (result.rows, result.answered_rows, result.charged) == (100, ROWS, ROWS)
    assert (result.student_forwards, result.online_calls_equivalent) == (200, 2 * ROWS)


def test_label_only_without_a_label_term_is_refused(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="--ce-weight, which is 0 for mse"):
        train(replace(config, loss="mse", missing="label-only"))


def test_calibration_changes_the_last_bias_only(config: TrainConfig) -> None:
    plain = replace(config, loss="ckd", out=config.out / "plain")
    calibrated = replace(plain, hyper={"offset": "calibrate"}, out=config.out / "calibrated")
    train(plain)
    assert train(calibrated).teacher_calls == 0
    before, after = weights_of(plain.out), weights_of(calibrated.out)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["fc.bias"]


def test_calibration_is_tried_at_every_validation_and_undone(config: TrainConfig) -> None:
    validated = replace(config, loss="ckd", val=0.25, hyper={"offset": "calibrate"}, epochs=3, out=config.out / "a")
    plain = replace(validated, hyper={}, out=config.out / "b")
    first, second = Losses(), Losses()
    train(validated, progress=first)
    train(plain, progress=second)
    assert first.values == second.values


def test_a_loss_that_is_no_number_stops_before_the_weights_move(config: TrainConfig) -> None:
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at epoch \d+, step \d+, lr 1e\+30.*lower --lr"):
        train(replace(config, loss="mse", lr=1e30, epochs=5, checkpoint_every_s=0))
    assert not (config.out / "results.json").exists()


def test_a_last_image_alone_does_not_stop_batch_norm(config: TrainConfig) -> None:
    result = train(replace(config, sample=33, batch=16, epochs=1))
    assert result.student_forwards == 33


def test_a_run_is_not_overwritten(config: TrainConfig) -> None:
    train(replace(config, epochs=1))
    with pytest.raises(InputError, match="already holds a run: continue it with --resume, or choose another --out"):
        train(replace(config, epochs=1))


def test_a_finished_run_resumed_is_read_back(config: TrainConfig) -> None:
    result = train(replace(config, epochs=1))
    assert train(replace(config, epochs=1, resume=True)) == result


def test_a_run_resumed_with_other_settings_names_them(config: TrainConfig) -> None:
    train(replace(config, epochs=1))
    with pytest.raises(IdentityError, match=r"cannot resume.*lr was 0\.05, is 0\.1"):
        train(replace(config, epochs=1, lr=0.1, resume=True))


def test_a_trained_student_is_a_teacher_by_its_path_alone(config: TrainConfig, digits: ImageDataset) -> None:
    result = train(replace(config, loss="ce", cache=None, sample=400, epochs=6, batch=32))
    assert result.teacher is None
    assert result.teacher_calls == 0
    teacher = load_teacher(str(config.out / "last.safetensors"), device="cpu")
    test = open_dataset("digits/test")
    logits = teacher.answer(test.images(np.arange(test.num_rows)))["logits"]
    accuracy = float((logits.argmax(axis=1) == test.labels).mean())
    assert accuracy == pytest.approx(result.test_accuracy_last, abs=1e-6)
    assert accuracy > 0.3


def test_another_teacher_than_expected_is_refused(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="wrn_40_2"):
        train(replace(config, expect_teacher="wrn_40_2-000000000000"))
    train(replace(config, epochs=1, expect_teacher=FakeTeacher(classes=10).id))


SWAPPED = """
import numpy as np
from shared.datasets.spec import open_dataset

def swapped(split):
    data = open_dataset(f"digits/{split}")
    rows = np.arange(data.num_rows)
    rows[:2] = [1, 0]
    return [(data.image(row), int(data.labels[row])) for row in rows.tolist()]
"""


def test_another_data_set_of_the_same_size_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    file = tmp_path / "swapped.py"
    file.write_text(SWAPPED)
    with pytest.raises(IdentityError, match="digits/train"):
        train(replace(config, dataset=f"digits=python:{file}:swapped"))


def test_an_output_that_the_cache_lacks_is_named_with_the_fill_that_adds_it(
    config: TrainConfig, digits: ImageDataset, tmp_path: Path
) -> None:
    with CacheWriter.open(tmp_path / "logits") as writer:
        cache = writer.open_cache(FakeTeacher(classes=10).description, digits.description, {"logits": "float16"})
        images = digits.images(np.arange(4))
        answers = {"logits": FakeTeacher(classes=10).answer(images)["logits"]}
        places = {"rows": range(4), "views": [0] * 4, "labels": digits.labels[:4]}
        writer.adopt(cache, keys=pixel_keys(images), outputs=answers, **places)
    expected = (
        f"{tmp_path}/logits holds logits, and the loss needs features; add it with `teacher-server fill --cache"
        f" {tmp_path}/logits --dataset digits/train --teacher TEACHER --add-outputs features`, where TEACHER, --weights"
        f" and --precision are those of {FakeTeacher(classes=10).description.id}: at most 4 teacher calls"
    )
    with pytest.raises(OutputNotCachedError, match=re.escape(expected)):
        train(replace(config, cache=str(tmp_path / "logits"), loss="rkd"))


def test_a_teacher_of_other_classes_is_refused(config: TrainConfig, digits: ImageDataset, tmp_path: Path) -> None:
    fill(tmp_path / "seven", digits, rows=range(4), classes=7)
    with pytest.raises(InputError, match="has 7 classes and digits/train has 10"):
        train(replace(config, cache=str(tmp_path / "seven")))


TWINS = """
import numpy as np

def twins(split):
    images = np.random.default_rng(0).integers(0, 256, size=(12, 8, 8, 3), dtype=np.uint8)
    return [(images[row // 2], row // 2 % 3) for row in range(24)]
"""


def test_rows_of_one_image_are_charged_once(tmp_path: Path) -> None:
    (tmp_path / "twins.py").write_text(TWINS)
    spec = f"python:{tmp_path / 'twins.py'}:twins"
    fill(tmp_path / "cache", open_dataset(f"{spec}/train"), rows=range(24), classes=3)
    result = train(
        TrainConfig(
            dataset=spec,
            student="zoo:resnet8",
            cache=str(tmp_path / "cache"),
            val=0.0,
            epochs=1,
            tensorboard=False,
            out=tmp_path / "run",
        )
    )
    assert (result.rows, result.charged) == (24, 12)


def test_training_changes_nothing_in_the_cache(config: TrainConfig, store_path: Path) -> None:
    def contents() -> dict[str, bytes]:
        files = (path for path in sorted((store_path / "data.zarr").rglob("*")) if path.is_file())
        return {str(path): path.read_bytes() for path in files}

    before = contents()
    train(replace(config, epochs=1))
    assert contents() == before
    assert CacheReader.open(store_path).present().sum() == ROWS


SIZES = """
import numpy as np

def sizes(split):
    random = np.random.default_rng(0)
    shapes = [(8, 8 + row % 3, 3) for row in range(24)]
    return [(random.integers(0, 256, size=shape, dtype=np.uint8), row % 3) for row, shape in enumerate(shapes)]
"""


def test_images_of_different_sizes_train_a_student_of_one_size(tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text(SIZES)
    config = TrainConfig(
        dataset=f"python:{tmp_path / 'sizes.py'}:sizes",
        student="zoo:resnet8",
        teacher="fake:3",
        val=0.0,
        epochs=1,
        tensorboard=False,
        out=tmp_path / "run",
    )
    with pytest.raises(InputError, match="--image-size N"):
        train(config)
    with pytest.raises(InputError, match="--student-views fresh or clean"):
        train(replace(config, image_size=8, teacher_views="1-3"))
    result = train(replace(config, image_size=8, teacher_views="1-3", student_views="fresh"))
    assert result.teacher_calls == 24
    assert load_teacher(str(config.out / "last.safetensors"), device="cpu").input == (8, 8)


WIDE = """
import numpy as np

def wide(split):
    random = np.random.default_rng(len(split))
    labels = [row % 3 for row in range(48)]
    images = random.integers(0, 256, size=(48, 8, 16, 3), dtype=np.uint8)
    for image, label in zip(images, labels):
        image[:, 5 + 2 * label : 7 + 2 * label] = 255  # what tells the classes apart lies in the middle
    return list(zip(images, labels))
"""


@pytest.mark.parametrize("image_size", [None, 6])
def test_a_student_turned_teacher_sees_the_pixels_that_it_was_trained_on(
    image_size: int | None, tmp_path: Path
) -> None:
    (tmp_path / "wide.py").write_text(WIDE)
    spec = f"python:{tmp_path / 'wide.py'}:wide"
    out = tmp_path / "run"
    settings = {"dataset": spec, "student": "zoo:resnet8", "loss": "ce", "student_views": "clean", "out": out}
    result = train(TrainConfig(**settings, image_size=image_size, val=0.0, epochs=6, batch=16, tensorboard=False))  # type: ignore[arg-type]
    teacher = load_teacher(str(out / "last.safetensors"), device="cpu")
    test = open_dataset(f"{spec}/test")
    logits = teacher.answer(test.images(np.arange(test.num_rows)))["logits"]
    assert teacher.input == ((8, 16) if image_size is None else (6, 6))
    assert float((logits.argmax(axis=1) == test.labels).mean()) == pytest.approx(result.test_accuracy_last, abs=1e-6)
    train_set = open_dataset(f"{spec}/train")
    student = DeviceImages(
        train_set,
        np.arange(4),
        normalisation=train_set.normalisation,
        device=torch.device("cpu"),
        image_size=image_size,
    )
    seen = load_network(str(out / "last.safetensors")).preprocessing.resized(train_set.images(np.arange(4)))
    assert np.array_equal(np.stack(seen), student.pixels(torch.arange(4), np.zeros(4, dtype=np.int64)).numpy())


def test_answers_that_calibration_used_are_charged(config: TrainConfig, digits: ImageDataset, tmp_path: Path) -> None:
    fill(tmp_path / "views", digits, rows=range(16), views=range(1, 9))
    few = replace(config, cache=str(tmp_path / "views"), sample=None, missing="skip", teacher_views="1-8", epochs=1)
    plain = train(replace(few, loss="ckd", out=tmp_path / "plain"))
    calibrated = train(replace(few, loss="ckd", hyper={"offset": "calibrate"}, out=tmp_path / "calibrated"))
    assert plain.charged == 16  # one view of each row
    assert calibrated.charged > 16
