"""Cached answers around a user's own data set and loop."""

import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cache.reader import CacheReader
from cache.writer import CacheWriter
from shared.datasets.base import ImageDataset
from shared.datasets.spec import open_dataset
from shared.errors import IdentityError, InputError, MissingRowsError, RowRangeError
from shared.fake_teacher import FakeTeacher
from shared.identity import pixel_keys
from student_trainer.data import CachedTeacherDataset, CachedTeacherLoader
from student_trainer.losses import build_loss

ANSWERED = [3, 5, 8, 13, 21, 34, 55, 89]


class OwnDataset:
    """What a user has: anything with a length and (image, label) by index."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset
        self.seen: list[tuple[str, int]] = []

    def __len__(self) -> int:
        return self._dataset.num_rows

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        self.seen.append((multiprocessing.current_process().name, row))
        return self._dataset.image(row), int(self._dataset.labels[row])


def to_tensor(image: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return open_dataset("digits/train")


@pytest.fixture(scope="module")
def reader(digits: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> CacheReader:
    path = tmp_path_factory.mktemp("store") / "cache"
    teacher = FakeTeacher(classes=10)
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(teacher.description, digits.description, {"logits": "float16", "features": "float16"})
        for view in (0, 2):
            images = [digits.rendered(row, view) for row in ANSWERED]
            writer.adopt(
                cache,
                keys=pixel_keys(images),
                rows=ANSWERED,
                views=[view] * len(ANSWERED),
                labels=digits.labels[ANSWERED],
                outputs=teacher.answer(images),
            )
    return CacheReader.open(path)


def test_items_are_image_label_row_and_view_of_the_answered_rows(digits: ImageDataset, reader: CacheReader) -> None:
    dataset = CachedTeacherDataset(OwnDataset(digits), reader=reader)
    assert len(dataset) == len(ANSWERED)
    image, label, row, view = dataset[4]
    assert (label, row, view) == (digits.labels[21], 21, 0)
    assert np.array_equal(image, digits.image(21))


def test_a_view_s_item_shows_the_view_s_pixels(digits: ImageDataset, reader: CacheReader) -> None:
    dataset = CachedTeacherDataset(OwnDataset(digits), reader=reader, views=(2,))
    image, _, row, view = dataset[0]
    assert view == 2
    assert np.array_equal(image, digits.rendered(row, 2))


def test_views_are_drawn_again_for_every_epoch(digits: ImageDataset, reader: CacheReader) -> None:
    dataset = CachedTeacherDataset(OwnDataset(digits), reader=reader, views=(0, 2), seed=1)
    drawn = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        drawn.append([dataset[index][3] for index in range(len(dataset))])
    assert drawn[0] == drawn[2]
    assert drawn[0] != drawn[1]
    assert set(drawn[0] + drawn[1]) == {0, 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_carry_the_answers_of_their_rows(workers: int, digits: ImageDataset, reader: CacheReader) -> None:
    own = OwnDataset(digits)
    dataset = CachedTeacherDataset(own, reader=reader, transform=to_tensor)
    own.seen.clear()
    loader = CachedTeacherLoader(
        dataset, outputs=("logits", "features"), batch_size=3, shuffle=True, num_workers=workers
    )
    rows: list[int] = []
    for batch in loader:
        expected = reader.gather(batch.rows.numpy(), outputs=("logits", "features"))
        assert np.array_equal(batch.teacher["logits"].numpy(), expected["logits"])
        assert np.array_equal(batch.teacher["features"].numpy(), expected["features"])
        assert torch.equal(batch.images[0], to_tensor(digits.image(int(batch.rows[0]))))
        assert batch.labels.tolist() == digits.labels[batch.rows.numpy()].tolist()
        images, _, same_rows, _, teacher = batch
        assert images is batch.images
        assert same_rows is batch.rows
        assert set(teacher) == {"logits", "features"}
        rows.extend(batch.rows.tolist())
    assert sorted(rows) == ANSWERED
    assert len(loader) == 3
    assert bool(own.seen) == (workers == 0)


def test_a_user_s_own_loop_learns_from_it(digits: ImageDataset, reader: CacheReader) -> None:
    torch.manual_seed(0)
    dataset = CachedTeacherDataset(OwnDataset(digits), reader=reader, transform=to_tensor)
    loader = CachedTeacherLoader(dataset, batch_size=4, shuffle=True)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    loss, optimizer = build_loss("mse"), torch.optim.SGD(model.parameters(), lr=0.02)
    values = []
    for _ in range(20):
        for batch in loader:
            value = loss(batch.distill(model(batch.images)))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
    assert values[-1] < values[0] / 2


def test_a_row_without_an_answer_is_named(digits: ImageDataset, reader: CacheReader) -> None:
    with pytest.raises(MissingRowsError, match=r"row 4 \(and 1 more\) of digits/train has no answer") as caught:
        CachedTeacherDataset(OwnDataset(digits), reader=reader, rows=[3, 4, 6])
    assert caught.value.rows == [4, 6]


def test_a_data_set_of_another_size_is_refused(reader: CacheReader) -> None:
    with pytest.raises(InputError, match="the data set has 360 rows and the cache's digits/train has 1437"):
        CachedTeacherDataset(OwnDataset(open_dataset("digits/test")), reader=reader)


def test_a_view_that_does_not_exist_is_refused(digits: ImageDataset, reader: CacheReader) -> None:
    with pytest.raises(RowRangeError, match="view 10 is out of range"):
        CachedTeacherDataset(OwnDataset(digits), reader=reader, views=(10,))


class Reversed(OwnDataset):
    """The same images in another order."""

    def __getitem__(self, row: int) -> tuple[Any, int]:
        return super().__getitem__(len(self) - 1 - row)


class AsTensors(Reversed):
    """Another order, and transformed inside, so that pixels cannot be compared."""

    def __getitem__(self, row: int) -> tuple[Any, int]:
        image, label = super().__getitem__(row)
        return to_tensor(image), label


class AsPictures(OwnDataset):
    """The right order, as PIL images."""

    def __getitem__(self, row: int) -> tuple[Any, int]:
        image, label = super().__getitem__(row)
        return Image.fromarray(image), label


@pytest.mark.parametrize("views", [(0,), (2,)])
@pytest.mark.parametrize(("own", "what"), [(Reversed, "image"), (AsTensors, "label")])
def test_rows_in_another_order_are_refused(
    own: type[OwnDataset], what: str, views: tuple[int, ...], digits: ImageDataset, reader: CacheReader
) -> None:
    with pytest.raises(IdentityError, match=f"of the data set has another {what} than row .* in the cache's order"):
        CachedTeacherDataset(own(digits), reader=reader, views=views)
    assert len(CachedTeacherDataset(own(digits), reader=reader, views=views, samples=0)) == len(ANSWERED)


def test_pictures_in_the_cache_s_order_are_accepted(digits: ImageDataset, reader: CacheReader) -> None:
    assert len(CachedTeacherDataset(AsPictures(digits), reader=reader, views=(0, 2))) == len(ANSWERED)


@pytest.mark.parametrize("row", [-1, 1437])
def test_a_row_out_of_range_is_refused(row: int, digits: ImageDataset, reader: CacheReader) -> None:
    with pytest.raises(RowRangeError, match=rf"row {row} is out of range: digits/train has rows 0 to 1436"):
        CachedTeacherDataset(OwnDataset(digits), reader=reader, rows=[3, row])
