"""What every kind of data set promises: stable rows, canonical pixels, keys, a fingerprint, statistics."""

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.datasets.base import ImageDataset, Normalisation, pixel_statistics
from shared.datasets.spec import open_dataset
from shared.errors import RowRangeError
from shared.identity import dataset_fingerprint, pixel_key
from shared.views import render, view_count

ROWS = 6


def picture(row: int) -> np.ndarray:
    """Rows 1 and 4 show the same image."""
    return np.random.default_rng(1 if row == 4 else row).integers(0, 256, (28, 28, 3), dtype=np.uint8)


def open_folder(place: Path) -> ImageDataset:
    for row in range(ROWS):
        folder = place / "pictures" / "train" / f"class{row // 2}"
        folder.mkdir(parents=True, exist_ok=True)
        # Two file formats on purpose: the key is the pixels'.
        Image.fromarray(picture(row)).save(folder / f"{row}.{'webp' if row == 4 else 'png'}", lossless=True)
    return open_dataset(f"folder:{place}/pictures/train", index_dir=place / "index")


def open_python(place: Path) -> ImageDataset:
    rows = [picture(row).tolist() for row in range(ROWS)]
    (place / "mine.py").write_text(
        "import numpy as np\n"
        f"ROWS = {rows}\n"
        "def mine(split):\n    return [(np.array(row, np.uint8), number // 2) for number, row in enumerate(ROWS)]\n"
    )
    return open_dataset(f"python:{place}/mine.py:mine/train")


def open_torchvision(place: Path) -> ImageDataset:
    pytest.importorskip("torchvision")
    raw = place / "FashionMNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    grey = np.stack([picture(row)[:, :, 0] for row in range(ROWS)])
    labels = np.array([row // 2 for row in range(ROWS)], dtype=np.uint8)
    for split in ("train", "t10k"):
        for name, array in (("images-idx3", grey), ("labels-idx1", labels)):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (raw / f"{split}-{name}-ubyte").write_bytes(header + array.tobytes())
    return open_dataset("torchvision:FashionMNIST/train", root=place)


def open_digits(place: Path) -> ImageDataset:
    return open_dataset("digits/train")


OPENERS = {"digits": open_digits, "folder": open_folder, "python": open_python, "torchvision": open_torchvision}
WITH_DUPLICATES = [name for name in OPENERS if name != "digits"]


@pytest.fixture(params=list(OPENERS))
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], ImageDataset]:
    """Opens the same data set again at every call."""
    return lambda: OPENERS[request.param](tmp_path)


@pytest.fixture
def dataset(opener: Callable[[], ImageDataset]) -> ImageDataset:
    return opener()


def test_an_image_is_three_channels_of_bytes(dataset: ImageDataset) -> None:
    for image in (dataset.image(0), *dataset.images([0, dataset.num_rows - 1])):
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


def test_many_rows_are_the_single_rows_in_the_order_asked_for(dataset: ImageDataset) -> None:
    rows = np.array([3, 0, 3, dataset.num_rows - 1])
    for row, image in zip(rows.tolist(), dataset.images(rows), strict=True):
        assert np.array_equal(image, dataset.image(row))
    assert dataset.images([]) == []


def test_opening_again_gives_the_same_rows(opener: Callable[[], ImageDataset]) -> None:
    first, again = opener(), opener()
    assert first.description == again.description
    assert np.array_equal(first.labels, again.labels)
    assert np.array_equal(first.keys, again.keys)
    assert first.normalisation == again.normalisation


def test_keys_are_those_of_the_pixels_and_the_fingerprint_covers_them(dataset: ImageDataset) -> None:
    assert dataset.keys.shape == (dataset.num_rows, 32)
    for row in (0, dataset.num_rows - 1):
        assert dataset.keys[row].tobytes() == pixel_key(dataset.image(row)) == dataset.key_of(row, 0)
    assert dataset.fingerprint == dataset_fingerprint(
        keys_N32=dataset.keys, labels_N=dataset.labels, classes=dataset.classes
    )
    assert len(dataset.fingerprint) == 64


def test_the_description_is_the_data_sets(dataset: ImageDataset) -> None:
    description = dataset.description
    assert description.name == dataset.name
    assert description.rows == dataset.num_rows == len(dataset.labels)
    assert description.classes == dataset.classes
    assert description.view_policy == dataset.view_policy
    assert description.fingerprint == dataset.fingerprint


def test_labels_are_numbers_of_classes(dataset: ImageDataset) -> None:
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.min() >= 0
    assert dataset.labels.max() < len(dataset.classes)


def test_what_is_shared_cannot_be_written(dataset: ImageDataset) -> None:
    with pytest.raises(ValueError, match="read-only"):
        dataset.labels[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        dataset.keys[0, 0] = 1


def test_views_are_rendered_by_the_data_sets_policy(dataset: ImageDataset) -> None:
    for view in (0, 1, view_count(dataset.view_policy)):
        expected = render(dataset.image(2), view=view, policy=dataset.view_policy)
        assert np.array_equal(dataset.rendered(2, view), expected)
        assert dataset.key_of(2, view) == pixel_key(expected)
    with pytest.raises(RowRangeError, match="view"):
        dataset.rendered(2, view_count(dataset.view_policy) + 1)


def test_the_first_row_out_of_range_is_named_with_the_range(dataset: ImageDataset) -> None:
    last = dataset.num_rows - 1
    for wrong in (dataset.num_rows, -1, 2**62):
        message = f"row {wrong} is out of range: {dataset.name} has rows 0 to {last}"
        for ask in (dataset.check_rows, dataset.images):
            with pytest.raises(RowRangeError, match=message):
                ask([0, wrong, -7])
        for ask_one in (dataset.image, lambda row: dataset.key_of(row, 0), lambda row: dataset.rendered(row, 1)):
            with pytest.raises(RowRangeError, match=message):
                ask_one(wrong)


@pytest.mark.parametrize("rows", [[0.0], [True], ["0"], [[0]], [0, None], [2**70]])
def test_rows_that_are_not_whole_numbers_are_refused(dataset: ImageDataset, rows: list[object]) -> None:
    with pytest.raises(RowRangeError):
        dataset.check_rows(rows)


def test_checked_rows_are_whole_numbers_of_64_bits(dataset: ImageDataset) -> None:
    for rows in ([2, 0, 2], (2, 0, 2), np.array([2, 0, 2], dtype=np.uint8), iter_as_range()):
        assert dataset.check_rows(rows).dtype == np.int64
    assert dataset.check_rows([2, 0, 2]).tolist() == [2, 0, 2]
    assert dataset.check_rows([]).shape == (0,)


def iter_as_range() -> range:
    return range(3)


def test_statistics_are_those_of_the_pixels(dataset: ImageDataset) -> None:
    images = dataset.images(range(dataset.num_rows))
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64) / 255
    assert dataset.normalisation.mean == pytest.approx(pixels.mean(axis=0), abs=1e-6)
    assert dataset.normalisation.std == pytest.approx(pixels.std(axis=0), abs=1e-6)


@pytest.mark.parametrize("name", WITH_DUPLICATES)
def test_identical_images_have_one_key(name: str, tmp_path: Path) -> None:
    dataset = OPENERS[name](tmp_path)
    assert dataset.keys[1].tobytes() == dataset.keys[4].tobytes()
    assert len({key.tobytes() for key in dataset.keys}) == ROWS - 1
    assert dataset.labels[1] != dataset.labels[4]


def test_a_constant_channel_can_still_be_divided_by() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[..., 1] = 255
    image[0, 0, 2] = 255
    statistics = pixel_statistics([image])
    assert statistics == Normalisation(mean=(0.0, 1.0, 0.0625), std=(1.0, 1.0, 0.242061))
