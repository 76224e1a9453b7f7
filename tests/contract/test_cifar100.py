"""All of CIFAR-100 as a folder: 50,000 training rows, of which 14 repeat another's pixels."""

import logging
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from shared.datasets.spec import open_dataset

DISTINCT = 49_986
"""Known fact: CIFAR-100's training set has 14 images that repeat another one exactly."""


@pytest.fixture(scope="session")
def cifar100_folder(shared_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The training images, unpacked; takes about 6 seconds."""
    archives = [shared_path / "data" / "cifar100" / f"train-{part}.zip" for part in "ab"]
    for archive in archives:
        if not archive.is_file():
            pytest.skip(f"no {archive}")
    place = tmp_path_factory.mktemp("unpacked") / "cifar100"
    for archive in archives:
        with ZipFile(archive) as files:
            files.extractall(place)
    return place


def test_cifar100_has_49986_distinct_keys_and_is_decoded_once(
    cifar100_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = open_dataset(f"folder:{cifar100_folder}/train", index_dir=tmp_path)
    assert (train.name, train.num_rows, len(train.classes)) == ("cifar100/train", 50_000, 100)
    assert np.bincount(train.labels).tolist() == [500] * 100
    assert len({key.tobytes() for key in train.keys}) == DISTINCT
    again = open_dataset(f"folder:{cifar100_folder}/train", index_dir=tmp_path)
    with caplog.at_level(logging.INFO, logger="shared.datasets.folder"):
        assert again.fingerprint == train.fingerprint
    # Files younger than 2 s when read are read and hashed again, never decoded.
    assert "keys of cifar100/train: 0 files decoded" in caplog.messages
