"""Data sets as users write them: ``[NAME=]KIND:ARG/SPLIT``."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.datasets.source import DatasetSpec
from shared.datasets.spec import open_dataset, open_splits, open_train_test, parse_dataset
from shared.errors import InputError, UnknownNameError


def spec(name: str, kind: str, argument: str, split: str | None) -> DatasetSpec:
    return DatasetSpec(name=name, kind=kind, argument=argument, split=split)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for split in ("train", "val", "extra"):
        place = tmp_path / "my=data" / "Pets" / split / "cat"
        place.mkdir(parents=True)
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(place / "0.png")
    return tmp_path / "my=data" / "Pets"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("digits", spec("digits", "digits", "", None)),
        ("digits/train", spec("digits", "digits", "", "train")),
        ("numbers=digits/test", spec("numbers", "digits", "", "test")),
        ("torchvision:CIFAR100", spec("cifar100", "torchvision", "CIFAR100", None)),
        ("torchvision:CIFAR100/train", spec("cifar100", "torchvision", "CIFAR100", "train")),
        ("c.100=torchvision:CIFAR100/test", spec("c.100", "torchvision", "CIFAR100", "test")),
        ("python:a/b/my sets.py:Shapes", spec("shapes", "python", "a/b/my sets.py:Shapes", None)),
        ("python:sets.py:shapes/train", spec("shapes", "python", "sets.py:shapes", "train")),
    ],
)
def test_a_spec_is_taken_apart(text: str, expected: DatasetSpec) -> None:
    assert parse_dataset(text) == expected


def test_a_folder_that_holds_class_folders_is_a_split(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = spec("pets", "folder", str(pets), "train")
    assert parse_dataset(f"folder:{pets}/train") == expected
    assert parse_dataset(f"folder:{pets}/train/") == expected
    monkeypatch.chdir(pets)
    assert parse_dataset("folder:train") == expected
    monkeypatch.chdir(pets / "train")
    assert parse_dataset("folder:.") == expected


def test_a_folder_that_holds_split_folders_is_a_data_set(pets: Path) -> None:
    assert parse_dataset(f"folder:{pets}") == spec("pets", "folder", str(pets), None)
    assert parse_dataset(f"animals=folder:{pets}") == spec("animals", "folder", str(pets), None)


@pytest.mark.parametrize(
    "text", ["", "digit", "digits:train", "cifar:CIFAR100", "torchvision", "torchvision:", "x=y=digits", "folder:"]
)
def test_an_unknown_form_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown data set .*known forms: digits, torchvision:CIFAR100"):
        parse_dataset(text)


@pytest.mark.parametrize("text", ["python:sets.py", "python::f", "python:sets.py:not a name", "python:sets.py:/train"])
def test_a_python_spec_without_a_function_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"write python:FILE.py:FUNCTION/SPLIT"):
        parse_dataset(text)


def test_a_name_that_cannot_stand_in_a_url_is_refused_with_the_way_out(tmp_path: Path) -> None:
    place = tmp_path / "Mein Ordner" / "train" / "cat"
    place.mkdir(parents=True)
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(place / "0.png")
    with pytest.raises(UnknownNameError, match=r"'mein ordner' is not a name.*give it one: NAME=folder:"):
        parse_dataset(f"folder:{tmp_path}/Mein Ordner/train")
    assert open_dataset(f"mine=folder:{tmp_path}/Mein Ordner/train").name == "mine/train"


def test_a_bad_name_is_not_repeated_in_the_way_out() -> None:
    with pytest.raises(UnknownNameError, match=r"'my digits' is not a name.*give it one: NAME=digits/test$"):
        parse_dataset("my digits=digits/test")


@pytest.mark.parametrize("text", ["digits/val", "digits/Train/x"])
def test_an_unknown_split_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UnknownNameError):
        open_dataset(text)
    with pytest.raises(UnknownNameError, match="'digits' has no split 'val'; it has train, test"):
        open_dataset("digits/val")


def test_an_unknown_split_of_a_folder_is_refused_with_the_known_ones(pets: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"ets/test does not exist; .*ets has train, extra, val"):
        open_dataset(f"folder:{pets}/test")


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder .*/nowhere/train does not exist; expected PATH/CLASS/FILE"):
        parse_dataset(f"folder:{tmp_path}/nowhere/train")


def test_a_folder_missing_from_the_root_of_the_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # Real roots often hold pictures two folders down; they are no data set that this could be a split of.
    monkeypatch.setattr("shared.datasets.spec.split_folders", lambda base: {"usr": base / "usr"})
    with pytest.raises(InputError, match=r"folder /nowhere-at-all does not exist; expected PATH/CLASS/FILE"):
        parse_dataset("folder:/nowhere-at-all")


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "pictures.zip").touch()
    with pytest.raises(InputError, match=r"pictures.zip is a file, not a folder; expected PATH/CLASS/FILE"):
        parse_dataset(f"folder:{tmp_path}/pictures.zip")


def test_images_without_class_folders_say_so(pets: Path) -> None:
    with pytest.raises(InputError, match=r"images lie directly in .*one folder per class.*name the folder above"):
        open_splits(f"folder:{next((pets / 'train').iterdir())}")


def test_a_folder_without_images_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "empty" / "train" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no images below .*empty: expected .*empty/CLASS/FILE or"):
        open_splits(f"folder:{tmp_path}/empty")


def test_opening_one_data_set_needs_a_split() -> None:
    with pytest.raises(InputError, match="'digits' needs a split: digits/train or digits/test"):
        open_dataset("digits")


def test_all_splits_are_opened_where_none_is_named() -> None:
    assert [split.name for split in open_splits("digits")] == ["digits/train", "digits/test"]
    assert [split.name for split in open_splits("digits/test")] == ["digits/test"]


def test_training_uses_train_or_the_split_named_and_test_or_val(pets: Path) -> None:
    assert [split.name for split in open_train_test("digits")] == ["digits/train", "digits/test"]
    assert [split.name for split in open_train_test(f"folder:{pets}/train")] == ["pets/train", "pets/val"]
    assert [split.name for split in open_train_test(f"folder:{pets}/extra")] == ["pets/extra", "pets/val"]


def test_a_data_set_without_a_split_to_test_on_is_refused(pets: Path) -> None:
    (pets / "val").rename(pets / "more")
    with pytest.raises(UnknownNameError, match="no split to test on beside 'train'; it has train, extra, more"):
        open_train_test(f"folder:{pets}")


def test_a_split_is_never_its_own_test() -> None:
    with pytest.raises(UnknownNameError, match="no split to test on beside 'test'; it has train, test"):
        open_train_test("digits/test")
