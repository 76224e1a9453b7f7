"""Folders of images: order, classes, bad files, and the memory of their keys."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared.datasets import folder as folder_module
from shared.datasets.spec import open_dataset, open_splits, open_train_test
from shared.errors import BadImageError, IdentityError, InputError
from shared.identity import pixel_key

OLD_NS = 1_600_000_000 * 10**9
SIZE = (6, 4)


def save(path: Path, *, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "JPEG" if path.suffix.lower() in {".jpg", ".jpeg"} else None)
    os.utime(path, ns=(OLD_NS, OLD_NS))
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """3 training classes of 2 images, 2 of them in the test split."""
    root = tmp_path / "Pets"
    for split, names in {"train": ("cat", "dog", "eel"), "test": ("cat", "eel")}.items():
        for label, name in enumerate(names):
            for number in range(2):
                save(root / split / name / f"{number}.png", seed=10 * label + number + len(split) * 100)
    return root


def counted_decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one with every file decoded."""
    decoded: list[int] = []
    decode = folder_module.decode_image

    def counting(data: bytes) -> np.ndarray:
        decoded.append(len(data))
        return decode(data)

    monkeypatch.setattr(folder_module, "decode_image", counting)
    return decoded


def test_rows_come_in_the_order_of_image_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    train = tmp_path / "set" / "train"
    names = (
        "b/2.png",
        "b/10.PNG",
        "b/sub/1.jpg",
        "b/sub/a/0.webp",
        "b/sub-x/1.jpeg",
        "B/z.png",
        "a b/é.png",
        "a/0.Jpg",
    )
    for seed, name in enumerate(names):
        save(train / name, seed=seed)
    expected = datasets.ImageFolder(str(train), is_valid_file=lambda path: not path.endswith(".txt"))
    dataset = open_dataset(f"folder:{train}")
    assert dataset.classes == tuple(expected.classes)
    assert dataset.labels.tolist() == expected.targets
    for row, (path, _) in enumerate(expected.samples):
        with Image.open(path) as image:
            assert np.array_equal(dataset.image(row), np.asarray(image.convert("RGB")))


def test_classes_are_the_training_splits_by_name(pictures: Path) -> None:
    train, test = open_train_test(f"folder:{pictures}")
    assert train.classes == test.classes == ("cat", "dog", "eel")
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.labels.tolist() == [0, 0, 2, 2]
    assert (train.name, test.name) == ("pets/train", "pets/test")


def test_a_class_that_the_training_split_lacks_is_named(pictures: Path) -> None:
    save(pictures / "test" / "fox" / "0.png", seed=1)
    with pytest.raises(InputError, match=r"pets/test has a class 'fox' that its training split .* lacks"):
        open_dataset(f"folder:{pictures}/test")
    open_dataset(f"folder:{pictures}/train")


def test_without_a_training_split_a_split_has_its_own_classes(tmp_path: Path) -> None:
    save(tmp_path / "birds" / "val" / "owl" / "0.png", seed=1)
    dataset = open_dataset(f"folder:{tmp_path}/birds/val")
    assert (dataset.name, dataset.classes) == ("birds/val", ("owl",))


def test_all_splits_are_opened_training_first(pictures: Path) -> None:
    save(pictures / "extra" / "dog" / "0.png", seed=5)
    assert [split.name for split in open_splits(f"folder:{pictures}/")] == ["pets/train", "pets/extra", "pets/test"]
    assert [split.name for split in open_splits(f"zoo=folder:{pictures}/test")] == ["zoo/test"]


def test_statistics_of_every_split_are_the_training_splits(pictures: Path) -> None:
    train, test = open_train_test(f"folder:{pictures}")
    pixels = np.concatenate([image.reshape(-1, 3) for image in train.images(range(6))]) / 255
    assert test.normalisation == train.normalisation
    assert train.normalisation.mean == pytest.approx(pixels.mean(axis=0), abs=1e-6)
    assert train.normalisation.std == pytest.approx(pixels.std(axis=0), abs=1e-6)


def test_files_that_are_no_images_are_counted_in_a_warning(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pictures / "train" / "dog" / "notes.txt").touch()
    (pictures / "train" / "dog" / ".hidden.png").touch()
    (pictures / "train" / ".ipynb_checkpoints").mkdir()
    assert open_dataset(f"folder:{pictures}/train").num_rows == 6
    assert "dog: ignored 2 files" in caplog.text


def test_an_empty_class_keeps_its_label_with_a_warning(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    (pictures / "train" / "cow").mkdir()
    assert open_dataset(f"folder:{pictures}/train").classes == ("cat", "cow", "dog", "eel")
    assert "cow: a class folder without images" in caplog.text


@pytest.mark.parametrize("index", [None, "index"])
def test_a_truncated_file_is_named_with_its_row(pictures: Path, tmp_path: Path, index: str | None) -> None:
    bad = pictures / "train" / "dog" / "1.png"
    bad.write_bytes(bad.read_bytes()[:-20])
    dataset = open_dataset(f"folder:{pictures}/train", index_dir=tmp_path / index if index else None)
    with pytest.raises(BadImageError, match=r"dog/1\.png \(row 3 of pets/train\): the PNG is truncated"):
        _ = dataset.fingerprint
    with pytest.raises(BadImageError, match=r"dog/1\.png \(row 3 of pets/train\)"):
        dataset.image(3)
    assert dataset.image(2).shape == (4, 6, 3)


def test_a_file_that_went_away_is_named(pictures: Path) -> None:
    dataset = open_dataset(f"folder:{pictures}/train")
    (pictures / "train" / "dog" / "1.png").unlink()
    for read in (lambda: dataset.keys, lambda: dataset.image(3)):
        with pytest.raises(BadImageError, match=r"cannot read .*dog/1\.png \(row 3 of pets/train\): No such file"):
            read()


def test_a_file_that_changed_since_its_key_was_computed_is_refused(pictures: Path) -> None:
    dataset = open_dataset(f"folder:{pictures}/train")
    assert len(dataset.keys) == 6
    save(pictures / "train" / "cat" / "0.png", seed=999)
    with pytest.raises(IdentityError, match=r"cat/0\.png \(row 0 of pets/train\) is not the image its key was made"):
        dataset.image(0)
    assert dataset.key_of(1, 0) == dataset.keys[1].tobytes()


def test_a_second_opening_decodes_nothing(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_dataset(f"folder:{pictures}/train", index_dir=tmp_path / "deep" / "index").keys
    decoded = counted_decodes(monkeypatch)
    again = open_dataset(f"folder:{pictures}/train", index_dir=tmp_path / "deep" / "index").keys
    assert np.array_equal(first, again)
    assert decoded == []


def test_files_moved_or_touched_are_known_by_their_bytes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = open_dataset(f"folder:{pictures}/train", index_dir=tmp_path).keys
    (pictures / "train" / "cat" / "0.png").rename(pictures / "train" / "cat" / "9.png")
    os.utime(pictures / "train" / "cat" / "1.png", ns=(OLD_NS, OLD_NS + 1))
    decoded = counted_decodes(monkeypatch)
    moved = open_dataset(f"folder:{pictures}/train", index_dir=tmp_path).keys
    assert np.array_equal(moved, keys[[1, 0, 2, 3, 4, 5]])
    assert decoded == []


def test_a_changed_file_gets_its_new_key(pictures: Path, tmp_path: Path) -> None:
    keys = open_dataset(f"folder:{pictures}/train", index_dir=tmp_path).keys
    changed = save(pictures / "train" / "cat" / "0.png", seed=77)
    os.utime(changed, ns=(OLD_NS, OLD_NS + 5))
    dataset = open_dataset(f"folder:{pictures}/train", index_dir=tmp_path)
    assert dataset.keys[0].tobytes() == pixel_key(dataset.image(0)) != keys[0].tobytes()
    assert np.array_equal(dataset.keys[1:], keys[1:])


def test_a_file_written_just_now_is_not_trusted_by_its_time(pictures: Path, tmp_path: Path) -> None:
    young = save(pictures / "train" / "cat" / "0.png", seed=1)
    os.utime(young)
    before = young.stat()
    assert len(open_dataset(f"folder:{pictures}/train", index_dir=tmp_path).keys) == 6
    pixels = np.array(Image.open(young))
    pixels[0, 0] ^= 255
    data = young.read_bytes()
    Image.fromarray(pixels).save(young)
    if young.stat().st_size != len(data):  # the trap needs two images of one file size
        young.write_bytes(young.read_bytes().ljust(len(data), b"\0"))
    os.utime(young, ns=(before.st_atime_ns, before.st_mtime_ns))
    dataset = open_dataset(f"folder:{pictures}/train", index_dir=tmp_path)
    assert dataset.keys[0].tobytes() == pixel_key(pixels)


def test_a_corrupt_memory_is_rebuilt_with_a_warning(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = tmp_path / "index"
    keys = open_dataset(f"folder:{pictures}/train", index_dir=index).keys
    (file,) = index.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", b"junk", whole[: len(whole) // 2], whole.replace(b"stats", b"other")):
        file.write_bytes(damaged)
        caplog.clear()
        assert np.array_equal(open_dataset(f"folder:{pictures}/train", index_dir=index).keys, keys)
        assert "cannot be read" in caplog.text
        assert file.stat().st_size == len(whole)


def test_a_memory_of_another_decoder_is_not_used(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = open_dataset(f"folder:{pictures}/train", index_dir=tmp_path / "index").keys
    monkeypatch.setattr(folder_module, "DECODER", "pillow 0.0.1")
    decoded = counted_decodes(monkeypatch)
    assert np.array_equal(open_dataset(f"folder:{pictures}/train", index_dir=tmp_path / "index").keys, keys)
    assert len(decoded) == 6


def test_a_memory_that_cannot_be_written_is_a_warning(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "a file"
    place.touch()
    dataset = open_dataset(f"folder:{pictures}/train", index_dir=place)
    assert len(dataset.keys) == 6
    assert "cannot remember keys" in caplog.text


def test_work_done_before_a_bad_file_is_remembered(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_module, "THREAD_ROWS", 1)
    bad = pictures / "train" / "eel" / "1.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:-20])
    with pytest.raises(BadImageError):
        _ = open_dataset(f"folder:{pictures}/train", index_dir=tmp_path / "index").keys
    bad.write_bytes(whole)
    decoded = counted_decodes(monkeypatch)
    assert len(open_dataset(f"folder:{pictures}/train", index_dir=tmp_path / "index").keys) == 6
    assert len(decoded) == 1


def test_identical_files_share_a_key(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    (pictures / "train" / "eel" / "2.png").write_bytes((pictures / "train" / "cat" / "0.png").read_bytes())
    with Image.open(pictures / "train" / "cat" / "0.png") as image:
        image.save(pictures / "train" / "eel" / "3.webp", lossless=True)
    keys = open_dataset(f"folder:{pictures}/train").keys
    assert keys[0].tobytes() == keys[6].tobytes() == keys[7].tobytes()
    assert len({key.tobytes() for key in keys}) == 6
