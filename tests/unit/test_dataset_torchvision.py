"""torchvision's data sets, on small files in the formats that torchvision reads; nothing is fetched."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.datasets.spec import open_dataset, open_splits, open_train_test, parse_dataset
from shared.datasets.torchvision_sets import KNOWN_STATISTICS, exposed_pixels
from shared.errors import InputError, UnknownNameError

datasets = pytest.importorskip("torchvision.datasets")
ROWS = {"train": 12, "t10k": 5}


def write_idx(path: Path, array: np.ndarray) -> None:
    """The format of MNIST's files, see its author's page: magic number, sizes, bytes."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.tobytes())
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """FashionMNIST and MNIST with 12 training and 5 test images."""
    for name in ("FashionMNIST", "MNIST"):
        for split, rows in ROWS.items():
            generator = np.random.default_rng(rows)
            raw = tmp_path / name / "raw"
            write_idx(raw / f"{split}-images-idx3-ubyte", generator.integers(0, 256, (rows, 28, 28), dtype=np.uint8))
            write_idx(raw / f"{split}-labels-idx1-ubyte", (np.arange(rows) % 10).astype(np.uint8))
    return tmp_path


def test_a_grey_set_becomes_three_equal_channels(root: Path) -> None:
    train, test = open_train_test("torchvision:FashionMNIST", root=root)
    assert (train.name, train.num_rows, test.name, test.num_rows) == ("fashionmnist/train", 12, "fashionmnist/test", 5)
    assert train.classes[:2] == ("T-shirt/top", "Trouser")
    assert train.labels.tolist() == [*range(10), 0, 1]
    theirs = datasets.FashionMNIST(str(root), train=True)
    for row in range(12):
        grey = np.asarray(theirs[row][0])
        assert np.array_equal(train.image(row), np.stack([grey] * 3, axis=2))
    assert test.normalisation == train.normalisation


def test_the_name_is_found_in_any_case(root: Path) -> None:
    assert open_dataset("torchvision:fashionmnist/test", root=root).num_rows == 5


def test_characters_are_never_mirrored(root: Path) -> None:
    assert open_dataset("torchvision:MNIST/test", root=root).view_policy == "crop4"
    assert open_dataset("torchvision:FashionMNIST/test", root=root).view_policy == "crop4flip"


def test_a_set_of_image_files_is_read_item_by_item(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for label, name in enumerate(("AD", "BE")):
            for number in range(2):
                place = tmp_path / "country211" / split / name
                place.mkdir(parents=True, exist_ok=True)
                pixels = np.full((3, 4 + number, 3), 100 * label + number, dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    splits = open_splits("torchvision:Country211", root=tmp_path)
    assert [split.name for split in splits] == ["country211/train", "country211/test", "country211/valid"]
    dataset = open_dataset("torchvision:Country211/valid", root=tmp_path)
    assert dataset.classes == ("AD", "BE")
    assert dataset.labels.tolist() == [0, 0, 1, 1]
    assert [image.shape for image in dataset.images([0, 1])] == [(3, 4, 3), (3, 5, 3)]
    assert dataset.image(3)[0, 0].tolist() == [101, 101, 101]


def test_files_that_are_missing_are_an_error_that_names_both_ways_out(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^CIFAR100 is not \(whole\) in .*--data-root DIR, or fetch it with --download$"
    ):
        open_dataset("torchvision:CIFAR100/train", root=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_fails_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: refused at once
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # urllib reads the proxies once per process; whoever opened a URL before would decide.
    monkeypatch.setattr("urllib.request._opener", None)
    with pytest.raises(InputError, match=r"^cannot download CIFAR100 to .*Connection refused") as raised:
        open_dataset("torchvision:CIFAR100/train", root=tmp_path, download=True)
    assert "\n" not in str(raised.value)


def test_an_unknown_name_is_refused_with_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"no data set 'CIFAR1000'; near: .*CIFAR100"):
        open_dataset("torchvision:CIFAR1000/train")
    with pytest.raises(UnknownNameError, match="no data set 'zzz'; try CIFAR100"):
        open_dataset("torchvision:zzz/train")


def test_an_unknown_split_is_refused_with_the_known_ones(root: Path) -> None:
    with pytest.raises(UnknownNameError, match="'mnist' has no split 'val'; it has train, test"):
        open_dataset("torchvision:MNIST/val", root=root)
    with pytest.raises(UnknownNameError, match=r"'svhn': Unknown value 'val' for argument split\. Valid values are"):
        open_dataset("torchvision:SVHN/val", root=root)


@pytest.mark.parametrize("name", ["FakeData", "ImageFolder", "CocoDetection", "Caltech101"])
def test_a_set_without_splits_is_refused_with_other_ways(name: str) -> None:
    with pytest.raises(InputError, match="has no train and test split; unpack it and use folder:PATH"):
        open_dataset(f"torchvision:{name}/train")


def test_cifars_statistics_are_those_of_the_literature() -> None:
    assert KNOWN_STATISTICS["CIFAR100"].mean == (0.5071, 0.4867, 0.4408)
    assert KNOWN_STATISTICS["CIFAR100"].std == (0.2675, 0.2565, 0.2761)
    assert parse_dataset("torchvision:CIFAR100").name == "cifar100"


class Exposed:
    """A set that keeps its pixels in ``data``, in a layout of the test's choice."""

    def __init__(self, data: np.ndarray, *, shown: np.ndarray) -> None:
        self.data = data
        self._shown = shown

    def __len__(self) -> int:
        return len(self._shown)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self._shown[row]), row % 2


def test_kept_arrays_are_used_in_any_layout_and_only_if_they_are_what_is_shown() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), dtype=np.uint8)
    labels = [0, 1, 0, 1]
    for data in (pixels, pixels.transpose(0, 3, 1, 2)):
        kept = exposed_pixels(Exposed(data, shown=pixels), labels=labels)
        assert kept is not None
        assert np.array_equal(kept, pixels)
    assert exposed_pixels(Exposed(pixels.transpose(0, 3, 2, 1), shown=pixels), labels=labels) is None
    assert exposed_pixels(Exposed(255 - pixels, shown=pixels), labels=labels) is None
    assert exposed_pixels(Exposed(pixels / 255, shown=pixels), labels=labels) is None
    assert exposed_pixels(Exposed(pixels, shown=pixels), labels=[1, 0, 1, 0]) is None
