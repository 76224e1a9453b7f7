"""docs/cache-format.md: its example reads a cache with zarr alone, its arithmetic finds every byte."""

import json
import re
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from cache.layout import FORMAT
from cache.reader import CacheReader
from cache.writer import CacheWriter
from shared.descriptions import DatasetDescription, TeacherDescription

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cache-format.md"
COUNT = 8500
TEACHER = TeacherDescription(
    id="fake-000000000000", arch="fake", weights="", preprocessing={}, precision="float32", classes=5, features=3
)
DATASET = DatasetDescription(
    name="toy/train", rows=COUNT, classes=("a", "b", "c", "d", "e"), fingerprint="f", view_policy="crop1"
)


@pytest.fixture(scope="module")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logits as int8, features as float16; folded twice; rows in no order."""
    path = tmp_path_factory.mktemp("format") / "store"
    rng = np.random.default_rng(0)
    rows = rng.permutation(COUNT)
    with CacheWriter.open(path) as writer:
        cache = writer.open_cache(TEACHER, DATASET, {"logits": "int8", "features": "float16"})
        for part in (rows[:100], rows[100:]):
            writer.adopt(
                cache,
                keys=rng.integers(0, 256, (len(part), 32), dtype=np.uint8),
                rows=part,
                views=[3] * len(part),
                labels=part % 5,
                outputs={"logits": rng.normal(size=(len(part), 5)), "features": rng.normal(size=(len(part), 3))},
            )
            writer.fold()
    return path


def test_the_example_reads_the_same_answers(store_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert set(re.findall(r"^(?:import|from) (\w+)", example, flags=re.MULTILINE)) == {"numpy", "zarr"}
    example = example.replace("CACHE/", f"{store_path}/").replace("TEACHER/NAME/SPLIT", f"{TEACHER.id}/toy/train")
    found: dict[str, Any] = {}
    exec(example, found)  # noqa: S102 - our own documentation
    wanted = [0, 17, COUNT - 1]
    slots = [found["slot_of"][row, 3] for row in wanted]
    with CacheReader.open(store_path) as reader:
        batch = reader.gather(wanted, view=3)
        for name, values in batch.items():
            np.testing.assert_array_equal(found["answers"][name][slots], values)
        np.testing.assert_array_equal(found["labels"][slots], reader.labels(wanted, view=3))


def test_every_byte_is_where_the_page_says(store_path: Path) -> None:
    folder = store_path / "data.zarr" / TEACHER.id / "toy" / "train"
    with CacheReader.open(store_path) as reader:
        slots = np.array([0, 8191, 8192, COUNT - 1])
        rows, _ = reader.rows_and_views(slots)
        kept = reader.gather(rows, view=3, encoded=True)
        kept |= {"rows": rows, "keys": reader.slot_keys(slots)}
    for name, values in kept.items():
        width = values[:1].nbytes
        for slot, value in zip(slots.tolist(), values, strict=True):
            file = folder / name / (f"c.{slot // 8192}" + ".0" * (values.ndim - 1))
            assert file.stat().st_size == 8192 * width
            at = slot % 8192 * width
            assert file.read_bytes()[at : at + width] == np.ascontiguousarray(value).tobytes()
        joined = b"".join(file.read_bytes() for file in sorted((folder / name).glob("c.*")))
        segments = json.loads((folder / name / "crc32c.json").read_bytes())["segments"]
        assert (segments[0][:2], segments[-1][1]) == ([0, 100], COUNT)
        for first, end, checksum in segments:
            assert google_crc32c.value(joined[first * width : end * width]) == checksum


def test_the_page_is_of_this_format_and_names_every_array_and_attribute(store_path: Path) -> None:
    text = PAGE.read_text()
    assert text.startswith(f"# The cache on disk, format {FORMAT}\n")
    folder = store_path / "data.zarr" / TEACHER.id / "toy" / "train"
    attributes = json.loads((folder / "zarr.json").read_bytes())["attributes"]
    missing = [name for name in attributes if f"`{name}`" not in text and name != "format"]
    assert missing == []
