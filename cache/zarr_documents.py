"""The ``zarr.json`` documents of a cache, Zarr v3: written by us, so that writing needs no Zarr library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.atomic_file import read_json
from cache.layout import DOCUMENT, ArraySpec


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A group with these attributes."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def array_document(spec: ArraySpec, *, slots: int) -> dict[str, Any]:
    """Uncompressed, little endian, all chunk files of an array in one folder."""
    one_byte = spec.numpy_dtype.itemsize == 1
    bytes_codec = {"name": "bytes"} if one_byte else {"name": "bytes", "configuration": {"endian": "little"}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [slots, *spec.shape],
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [spec.chunk_slots, *spec.shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0.0 if spec.dtype.startswith("float") else 0,
        "codecs": [bytes_codec],
        "attributes": {},
    }


def read_document(folder: Path) -> dict[str, Any] | None:
    """The document of a folder, None where it is no Zarr node."""
    path = folder / DOCUMENT
    return read_json(path) if path.is_file() else None


def read_attributes(folder: Path) -> dict[str, Any] | None:
    """Attributes of a Zarr group, None where ``folder`` is none."""
    document = read_document(folder)
    if document is None or document.get("node_type") != "group":
        return None
    attributes = document.get("attributes", {})
    return attributes if isinstance(attributes, dict) else None
