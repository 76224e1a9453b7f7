"""A bit that flips anywhere in a cache is found by ``logit-cache verify``, and never read as an answer."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from disk_faults import Fault, FaultyProcesses

from cache.reader import CacheReader
from cache.verify import find_damage
from cache.writer import CacheWriter
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.errors import CorruptCacheError, TeachonceError

VERIFY = "from cache.cli import main; main()"
POSITIONS = 6
"""Bits that are flipped in each file, beside the first and the last byte."""
UNCHECKED = {"writer.lock"}
"""Names the process that wrote last; says nothing about answers."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small cache at rest: two folds of one block that is not whole."""
    path = tmp_path_factory.mktemp("flips") / "store"
    teacher = TeacherDescription(
        id="fake-000000000000", arch="fake", weights="", preprocessing={}, precision="float32", classes=4, features=2
    )
    dataset = DatasetDescription(name="toy/train", rows=90, classes=("a", "b"), fingerprint="f", view_policy="crop1")
    random_answers = np.random.default_rng(0)
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(teacher, dataset)
        for first in (0, 40):
            rows = list(range(first, first + 40))
            writer.commit(
                cache,
                run="default",
                reservation=writer.reserve(run="default", cache=cache, calls=40),
                keys=random_answers.integers(0, 256, (40, 32), dtype=np.uint8),
                rows=rows,
                views=[0] * 40,
                labels=[row % 2 for row in rows],
                outputs={
                    "logits": random_answers.normal(size=(40, 4)),
                    "features": random_answers.normal(size=(40, 2)),
                },
            )
            writer.fold()
    assert not list(find_damage(path))
    return path


def files_of(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file() and file.name not in UNCHECKED)


def flips(sound: Path, *, seed: int, positions: int) -> Iterator[tuple[Path, int, int]]:
    """File, byte and bit; the written part of a chunk as often as its padding."""
    chance = random.Random(seed)
    for file in files_of(sound):
        size = file.stat().st_size
        written = max(1, len(file.read_bytes().rstrip(b"\0")))
        anywhere = [chance.randrange(size if number % 2 else written) for number in range(positions)]
        for byte in {0, size - 1, *anywhere}:
            yield file, byte, chance.randrange(8)


def flip(file: Path, *, byte: int, bit: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(byte)
        value = opened.read(1)[0]
        opened.seek(byte)
        opened.write(bytes([value ^ (1 << bit)]))


def is_noticed(path: Path) -> bool:
    """As by ``logit-cache verify``, which ends with 2 or 5."""
    try:
        return any(find_damage(path))
    except TeachonceError:
        return True


def unnoticed(sound: Path, tmp_path: Path, *, seed: int, positions: int) -> list[tuple[str, int, int]]:
    copy = tmp_path / "copy"
    shutil.copytree(sound, copy)
    found = []
    for file, byte, bit in flips(sound, seed=seed, positions=positions):
        damaged = copy / file.relative_to(sound)
        flip(damaged, byte=byte, bit=bit)
        if not is_noticed(copy):
            found.append((str(file.relative_to(sound)), byte, bit))
        flip(damaged, byte=byte, bit=bit)
    assert not list(find_damage(copy))
    return found


def test_a_flipped_bit_in_any_file_is_found(sound: Path, tmp_path: Path) -> None:
    names = {file.name for file in files_of(sound)}
    assert {"ledger.sqlite3", "ledger.crc32c.json", "zarr.json", "crc32c.json", "c.0", "c.0.0"} == names
    assert unnoticed(sound, tmp_path, seed=0, positions=POSITIONS) == []


def test_a_reader_with_checks_gathers_no_flipped_bit(sound: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sound, copy)
    rows = np.arange(80)
    with CacheReader.open(copy, check=True) as reader:
        before = {name: values.tobytes() for name, values in reader.gather(rows).items()}
        keys, labels = reader.keys(rows).tobytes(), reader.labels(rows).tobytes()
    refused = 0
    for file, byte, bit in flips(sound, seed=2, positions=3):
        if file.parent.name == "store":
            continue
        damaged = copy / file.relative_to(sound)
        flip(damaged, byte=byte, bit=bit)
        try:
            with CacheReader.open(copy, check=True) as reader:
                answers = {name: values.tobytes() for name, values in reader.gather(rows).items()}
                assert (answers, reader.keys(rows).tobytes(), reader.labels(rows).tobytes()) == (before, keys, labels)
        except TeachonceError as error:
            assert error.exit_code in (2, 5)
            refused += 1
        else:
            # What nobody reads: after the last slot.
            assert file.name.startswith("c."), file
            assert byte >= len(file.read_bytes().rstrip(b"\0")), (file, byte)
        flip(damaged, byte=byte, bit=bit)
    assert refused > 40


@pytest.mark.parametrize("in_memory", [False, True])
def test_only_what_is_damaged_is_refused_and_only_with_checks(sound: Path, tmp_path: Path, in_memory: bool) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sound, copy)
    (file,) = copy.rglob("logits/c.0.0")
    flip(file, byte=79 * 8, bit=3)
    with CacheReader.open(copy) as reader:
        reader.gather([79])
    with CacheReader.open(copy, check=True, in_memory=in_memory) as reader:
        assert len(reader.gather([0], outputs="features")["features"]) == 1
        with pytest.raises(CorruptCacheError, match=r"slots 40 to 79 of .*logits differ from their checksum: restore"):
            reader.gather([0], outputs="logits")


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_flipped_bit_in_very_many_places_is_found(sound: Path, tmp_path: Path) -> None:
    assert unnoticed(sound, tmp_path, seed=1, positions=400) == []


@pytest.mark.parametrize(
    "name", ["ledger.sqlite3", "data.zarr/zarr.json", "*/train/zarr.json", "logits/c.0.0", "keys/crc32c.json"]
)
def test_verify_ends_with_5_and_names_the_file(faulty: FaultyProcesses, sound: Path, tmp_path: Path, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sound, copy)
    assert faulty.run(VERIFY, "verify", copy, fault=Fault(root=copy)).code == 0
    (file,) = [file for file in files_of(copy) if file.match(name)]
    flip(file, byte=file.stat().st_size // 3 if name.endswith(".json") else 20, bit=1)
    outcome = faulty.run(VERIFY, "verify", copy, fault=Fault(root=copy))
    assert outcome.code == 5, outcome
    assert str(file.parent) in outcome.out
    assert "restore" in outcome.out + outcome.err


def test_a_damaged_ledger_is_not_written(sound: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sound, copy)
    flip(copy / "ledger.sqlite3", byte=(copy / "ledger.sqlite3").stat().st_size - 1, bit=0)
    before = (copy / "ledger.sqlite3").read_bytes()
    with pytest.raises(TeachonceError, match=r"ledger\.sqlite3 is damaged .* restore it from a copy"):
        CacheWriter.open(copy)
    assert (copy / "ledger.sqlite3").read_bytes() == before


def test_zarr_alone_reads_a_read_only_copy_and_finds_what_was_committed(sound: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(sound / "data.zarr", copy)
    for place in (copy, *copy.rglob("*")):
        place.chmod(0o555 if place.is_dir() else 0o444)
    try:
        group = zarr.open_group(str(copy), mode="r")
        (teacher,) = group.group_keys()
        train = group[f"{teacher}/toy/train"]
        random_answers = np.random.default_rng(0)
        for first in (0, 40):
            part = slice(first, first + 40)
            assert (train["keys"][part] == random_answers.integers(0, 256, (40, 32), dtype=np.uint8)).all()
            assert (train["logits"][part] == random_answers.normal(size=(40, 4)).astype(np.float16)).all()
            assert (train["features"][part] == random_answers.normal(size=(40, 2)).astype(np.float16)).all()
        assert train["rows"][:].tolist() == list(range(80))
        assert train["labels"][:].tolist() == [row % 2 for row in range(80)]
        assert train.attrs["slots"] == 80
        assert json.loads((copy / "zarr.json").read_text())["attributes"]["ledger"]["teacher_calls"] == 80
    finally:
        for place in (copy, *copy.rglob("*")):
            place.chmod(0o755 if place.is_dir() else 0o644)
