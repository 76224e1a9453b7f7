"""Every misalignment that silently spoiled other people's distillations is staged here, and refused with the remedy.

Shuffled rows, another split, another crop, other weights, shifted labels, an image encoded anew, another decoder: see
the reports about haitongli/knowledge-distillation-pytorch #9, EfficientAT #6 and #7, easydistill #21.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk_faults import Fault, FaultyProcesses
from PIL import Image

from cache.reader import CacheReader
from cache.verify import find_damage
from cache.writer import CacheWriter
from shared.datasets.base import ArrayDataset, ImageDataset, SplitFacts
from shared.datasets.spec import open_dataset
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.errors import IdentityError, UnknownNameError
from shared.fake_teacher import FakeTeacher
from shared.identity import pixel_keys, teacher_id, weights_digest

ROWS = 60
REMEDY = "use the images the cache was made from, or fill a new cache from these"
FILL = "from teacher_server.cli import main; main()"


@dataclass(frozen=True, kw_only=True)
class Images:
    """What a data set is made of; tests change one thing."""

    pixels: np.ndarray = field(
        default_factory=lambda: np.random.default_rng(0).integers(0, 256, (ROWS, 8, 8, 3), dtype=np.uint8)
    )
    labels: np.ndarray = field(default_factory=lambda: np.arange(ROWS) * 7 % 5)
    name: str = "toy/train"
    view_policy: str = "crop1flip"
    decoder: str = "pillow 12.0.0"

    def dataset(self) -> ImageDataset:
        facts = SplitFacts(
            name=self.name,
            classes=("ant", "bee", "cat", "dog", "eel"),
            labels=self.labels,
            view_policy=self.view_policy,
            decoder=self.decoder,
        )
        return ArrayDataset(facts, pixels=self.pixels)


def fill(path: Path, dataset: ImageDataset, *, rows: list[int], views: tuple[int, ...] = (0, 5)) -> None:
    teacher = FakeTeacher(classes=5)
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(teacher.description, dataset.description)
        for view in views:
            images = [dataset.rendered(row, view) for row in rows]
            writer.commit(
                cache,
                run="default",
                reservation=writer.reserve(run="default", cache=cache, calls=len(rows)),
                keys=pixel_keys(images),
                rows=rows,
                views=[view] * len(rows),
                labels=dataset.labels[rows],
                outputs=teacher.answer(images),
            )


@pytest.fixture(scope="module")
def images() -> Images:
    return Images()


@pytest.fixture(scope="module")
def store(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers about some rows only, as a budget allows."""
    path = tmp_path_factory.mktemp("misalignment") / "store"
    fill(path, images.dataset(), rows=list(range(0, ROWS, 2)))
    return path


def shuffled(images: Images) -> Images:
    order = np.random.default_rng(1).permutation(ROWS)
    return replace(images, pixels=images.pixels[order], labels=images.labels[order])


def two_rows_swapped_that_nobody_asked_about(images: Images) -> Images:
    order = np.arange(ROWS)
    order[[1, 3]] = [3, 1]
    return replace(images, pixels=images.pixels[order], labels=images.labels[order])


def another_split(images: Images) -> Images:
    return replace(images, pixels=np.random.default_rng(2).integers(0, 256, images.pixels.shape, dtype=np.uint8))


def one_row_missing_in_front(images: Images) -> Images:
    return replace(images, pixels=images.pixels[1:], labels=images.labels[1:])


def another_crop(images: Images) -> Images:
    return replace(images, pixels=np.roll(images.pixels, 1, axis=2))


def another_size(images: Images) -> Images:
    return replace(images, pixels=images.pixels[:, :7, :7])


def flipped(images: Images) -> Images:
    return replace(images, pixels=images.pixels[:, :, ::-1])


def other_views(images: Images) -> Images:
    return replace(images, view_policy="crop2flip")


def labels_shifted_by_one(images: Images) -> Images:
    return replace(images, labels=np.roll(images.labels, 1))


def classes_counted_from_one(images: Images) -> Images:
    return replace(images, labels=(images.labels + 1) % 5)


def channels_reversed(images: Images) -> Images:
    return replace(images, pixels=images.pixels[..., ::-1])


STAGED: dict[str, tuple[Callable[[Images], Images], str]] = {
    "shuffled rows": (shuffled, "shows other pixels than the cache's"),
    "swapped rows": (two_rows_swapped_that_nobody_asked_about, "labels, pixels or their order differ"),
    "another split": (another_split, "shows other pixels than the cache's"),
    "a missing file": (one_row_missing_in_front, "shows other pixels than the cache's"),
    "another crop": (another_crop, "row [0-9]+ view [0-9]+ of toy/train shows other pixels"),
    "another size": (another_size, "shows other pixels than the cache's"),
    "flipped": (flipped, "shows other pixels than the cache's"),
    "other views": (other_views, "row [0-9]+ view 5 of toy/train shows other pixels"),
    "shifted labels": (labels_shifted_by_one, "labels, pixels or their order differ"),
    "classes from one": (classes_counted_from_one, "labels, pixels or their order differ"),
    "BGR": (channels_reversed, "shows other pixels than the cache's"),
}


@pytest.mark.parametrize("staged", STAGED)
def test_a_misaligned_data_set_is_refused_with_the_remedy(staged: str, images: Images, store: Path) -> None:
    change, named = STAGED[staged]
    with CacheReader.open(store) as reader:
        reader.check_dataset(images.dataset())
        with pytest.raises(IdentityError, match=f"{named}.*{REMEDY}"):
            reader.check_dataset(change(images).dataset())


@pytest.mark.parametrize("staged", STAGED)
def test_a_misaligned_data_set_is_not_filled_into_the_same_cache(
    staged: str, images: Images, store: Path, tmp_path: Path
) -> None:
    fill(tmp_path / "store", images.dataset(), rows=[0])
    with pytest.raises(IdentityError, match=r"not the data set this cache was made for.*use the original data"):
        fill(tmp_path / "store", STAGED[staged][0](images).dataset(), rows=[1])


def test_another_split_by_name_is_not_found(store: Path) -> None:
    with pytest.raises(UnknownNameError, match="holds nothing about 'toy/test'; it has toy/train"):
        CacheReader.open(store, dataset="toy/test")


def test_other_weights_are_another_teacher(store: Path) -> None:
    weights = np.random.default_rng(0).normal(size=64).astype(np.float32)
    fine_tuned = weights.copy()
    fine_tuned[17] = np.nextafter(fine_tuned[17], np.inf)
    ids = [
        teacher_id(
            arch="fake",
            weights=weights_digest([("fc.weight", "float32", [8, 8], tensor.tobytes())]),
            preprocessing={},
            precision="float32",
            classes=5,
        )
        for tensor in (weights, fine_tuned)
    ]
    assert ids[0] != ids[1]
    with pytest.raises(IdentityError, match=rf"not of {ids[1]}: use the teacher that filled it"):
        CacheReader.open(store, teacher=ids[1])
    assert CacheReader.open(store, teacher="fake").teacher.id == FakeTeacher(classes=5).id


def encode_anew(file: Path) -> None:
    """As a picture is after somebody opened and saved it: it looks the same, and is another one."""
    buffer = io.BytesIO()
    with Image.open(file) as image:
        image.convert("RGB").save(buffer, "JPEG", quality=95)
    with Image.open(buffer) as image:
        image.save(file)


def test_an_image_that_was_encoded_anew_is_refused_wherever_it_is(
    faulty: FaultyProcesses, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "store"
    options = ["--teacher", "fake:2", "--dataset", f"folder:{pictures}/train", "--cache", path]
    assert faulty.run(FILL, "fill", *options, "--sample", 10, fault=Fault(root=path)).code == 0
    with CacheReader.open(path) as reader:
        unasked = int(np.flatnonzero(~reader.present())[0])
    rows = sorted((pictures / "train").rglob("*.png"))
    encode_anew(rows[unasked])
    dataset = open_dataset(f"folder:{pictures}/train")
    with CacheReader.open(path) as reader, pytest.raises(IdentityError, match=f"order differ.*{REMEDY}"):
        reader.check_dataset(dataset)
    outcome = faulty.run(FILL, "fill", *options, fault=Fault(root=path))
    assert outcome.code == 2
    assert "use the original data, or name this one differently" in outcome.err
    assert "Traceback" not in outcome.err


def test_the_same_pixels_in_another_file_are_the_same_image(pictures: Path, tmp_path: Path) -> None:
    dataset = open_dataset(f"folder:{pictures}/train")
    fill(tmp_path / "store", dataset, rows=[0, 1], views=(0,))
    for file in (pictures / "train").rglob("*.png"):
        with Image.open(file) as image:
            image.save(file.with_suffix(".webp"), lossless=True)
        file.unlink()
    with CacheReader.open(tmp_path / "store") as reader:
        reader.check_dataset(open_dataset(f"folder:{pictures}/train"))


def test_another_decoder_is_named_where_its_pixels_differ(images: Images, store: Path) -> None:
    pixels = images.pixels.copy()
    pixels[4, 3, 3, 0] ^= 1
    with CacheReader.open(store) as reader:
        # The same pixels by another version are the same images.
        reader.check_dataset(replace(images, decoder="pillow 13.1.0").dataset())
        with pytest.raises(IdentityError, match=r"by pillow 12\.0\.0 for the cache, by pillow 13\.1\.0 now") as caught:
            reader.check_dataset(replace(images, decoder="pillow 13.1.0", pixels=pixels).dataset())
    assert "row 4 view" in str(caught.value)
    assert REMEDY in str(caught.value)


# What lies in a cache already, beside other labels


@dataclass(frozen=True, kw_only=True)
class Told:
    """A teacher's answers about N images of C classes."""

    classes: int = 10
    rows: int = 8 * 1024
    skill: float = 0.8
    """Share of right first choices, beyond chance."""
    noise: float = 0.0
    """Share of labels that are random."""
    sorted_by_class: bool = False
    block: tuple[int, int] = (0, 0)
    """First and end of the slots whose answers are about other rows."""
    shift: int = 1
    """How far away these rows are."""

    def keep(self, path: Path) -> None:
        random = np.random.default_rng(0)
        truth = random.integers(0, self.classes, self.rows)
        if self.sorted_by_class:
            truth = np.sort(truth)
        logits = random.normal(size=(self.rows, self.classes)).astype(np.float32)
        knows = random.random(self.rows) < self.skill
        logits[np.flatnonzero(knows), truth[knows]] += 9
        labels = np.where(random.random(self.rows) < self.noise, random.integers(0, self.classes, self.rows), truth)
        block = slice(*self.block)
        logits[block] = np.roll(logits, self.shift, axis=0)[block]
        teacher = TeacherDescription(
            id="t-000000000000",
            arch="t",
            weights="",
            preprocessing={},
            precision="float32",
            classes=self.classes,
            features=0,
        )
        dataset = DatasetDescription(
            name="toy/train",
            rows=self.rows,
            classes=tuple(map(str, range(self.classes))),
            fingerprint="f",
            view_policy="crop1",
        )
        with CacheWriter.open(path) as writer:
            cache = writer.open_cache(teacher, dataset)
            keys = random.integers(0, 256, (self.rows, 32), dtype=np.uint8)
            places: dict[str, Any] = {"rows": range(self.rows), "views": [0] * self.rows, "labels": labels}
            writer.adopt(cache, keys=keys, outputs={"logits": logits}, **places)


@pytest.mark.parametrize(
    "told",
    [
        Told(block=(2048, 4096)),
        Told(block=(3000, 4100), shift=500),
        Told(block=(2048, 3072), skill=0.3),
        Told(block=(2048, 3072), noise=0.4),
        Told(block=(2048, 3072), classes=100, skill=0.5),
    ],
)
def test_a_block_of_other_rows_answers_stands_out(told: Told, tmp_path: Path) -> None:
    told.keep(tmp_path / "store")
    findings = list(find_damage(tmp_path / "store"))
    assert findings
    for finding in findings:
        first = int(finding.split()[1])
        assert told.block[0] - 1024 < first < told.block[1]
        assert "look like answers about other rows; fill a new cache" in finding


@pytest.mark.parametrize(
    "told",
    [
        Told(),
        Told(skill=0.0),
        Told(skill=0.03),
        Told(skill=0.1, noise=0.5),
        Told(noise=0.9),
        Told(classes=100, skill=0.05),
        Told(classes=2, skill=0.1),
        Told(sorted_by_class=True),
        Told(sorted_by_class=True, skill=0.2, noise=0.3),
        Told(sorted_by_class=True, classes=100),
        Told(rows=300),
    ],
)
def test_weak_teachers_noisy_labels_and_sorted_rows_raise_no_alarm(told: Told, tmp_path: Path) -> None:
    told.keep(tmp_path / "store")
    assert not list(find_damage(tmp_path / "store"))
