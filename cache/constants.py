"""What a teacher says once for all images: a group beside its data sets, each array one chunk."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cache.atomic_file import make_folders, sync_folder, write_atomic, write_json
from cache.checksum import crc32c
from cache.layout import DATA, DOCUMENT, FORMAT, AnyArray
from cache.zarr_documents import group_document, read_attributes
from shared.errors import CorruptCacheError

FOLDER = "_constants"
"""In a teacher's group; no data set can have this name."""


def write_constants(path: Path, *, teacher: str, arrays: Mapping[str, AnyArray]) -> None:
    """Keep float32 arrays in the cache at ``path``; the group's document, written last, says that they are whole."""
    folder = _folder(path, teacher=teacher)
    try:
        kept = read_constants(path, teacher=teacher)
    except CorruptCacheError:
        kept = {}
    if kept.keys() == arrays.keys() and all(np.array_equal(kept[name], arrays[name]) for name in arrays):
        return
    listed: dict[str, Any] = {}
    for name, given in sorted(arrays.items()):
        values = np.ascontiguousarray(given, dtype="<f4")
        make_folders(folder / name)
        write_atomic(folder / name / _chunk(values.shape), [values.data.cast("B")])
        write_json(folder / name / DOCUMENT, _document(values.shape))
        sync_folder(folder / name)
        listed[name] = {"dtype": "float32", "shape": list(values.shape), "crc32c": crc32c(values)}
    write_json(folder / DOCUMENT, group_document({"format": FORMAT, "constants": listed}))
    sync_folder(folder)


def read_constants(path: Path, *, teacher: str) -> dict[str, AnyArray]:
    """Arrays by name, none where none were kept; raises `CorruptCacheError` for what differs from its checksum."""
    folder = _folder(path, teacher=teacher)
    listed = (read_attributes(folder) or {}).get("constants", {})
    return {name: _read(folder / name, entry=entry) for name, entry in listed.items()}


def copy_constants(source: Path, target: Path, *, teacher: str) -> None:
    """Bring what one cache keeps into another of the same teacher that has none."""
    arrays = read_constants(source, teacher=teacher)
    if arrays and not read_constants(target, teacher=teacher):
        write_constants(target, teacher=teacher, arrays=arrays)


def find_constant_damage(path: Path) -> Iterator[str]:
    """One line per teacher whose constants are not as they were written."""
    for folder in sorted((path / DATA).glob(f"*/{FOLDER}")):
        try:
            read_constants(path, teacher=folder.parent.name)
        except CorruptCacheError as error:
            yield str(error)


def _folder(path: Path, *, teacher: str) -> Path:
    return path / DATA / teacher / FOLDER


def _read(folder: Path, *, entry: Mapping[str, Any]) -> AnyArray:
    shape = tuple(entry["shape"])
    file = folder / _chunk(shape)
    data = file.read_bytes() if file.is_file() else b""
    values = np.frombuffer(data, dtype="<f4") if len(data) % 4 == 0 else np.empty(0, dtype="<f4")
    if values.size != np.prod(shape) or crc32c(values) != entry["crc32c"]:
        raise CorruptCacheError(
            f"{file} differs from its checksum: `teacher-server fill --add-outputs constants` makes it anew"
        )
    return values.reshape(shape)


def _chunk(shape: tuple[int, ...]) -> str:
    return ".".join(["c", *("0" for _ in shape)])


def _document(shape: tuple[int, ...]) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": "float32",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0,
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "attributes": {},
    }
