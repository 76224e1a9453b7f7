"""The ``zarr.json`` documents of a cache, Zarr v3: written by us, so that writing needs no Zarr library."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c

from cache.atomic_file import read_json
from cache.layout import DOCUMENT, FORMAT, ArraySpec
from shared.errors import CorruptCacheError

CHECKSUM = "crc32c"
"""Attribute of a group: CRC-32C over its other attributes, as JSON with sorted keys and without spaces."""


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A group with these attributes and their checksum."""
    checked = {**attributes, CHECKSUM: attributes_checksum(attributes)}
    return {"zarr_format": 3, "node_type": "group", "attributes": checked}


def attributes_checksum(attributes: Mapping[str, Any]) -> int:
    """What `CHECKSUM` must be beside these attributes."""
    others = {name: value for name, value in attributes.items() if name != CHECKSUM}
    return int(google_crc32c.value(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()))


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
        "attributes": dict(spec.attributes),
    }


def read_document(folder: Path) -> dict[str, Any] | None:
    """The document of a folder, None where it is no Zarr node."""
    path = folder / DOCUMENT
    return read_json(path) if path.is_file() else None


def read_attributes(folder: Path) -> dict[str, Any] | None:
    """Attributes of a Zarr group, None where ``folder`` is none; `CorruptCacheError` where their checksum differs."""
    document = read_document(folder)
    if document is None or document.get("node_type") != "group":
        return None
    attributes = document.get("attributes", {})
    if not isinstance(attributes, dict):
        return None
    # Another format may have another checksum; its version is refused by name.
    ours = attributes.get("format", FORMAT) == FORMAT
    if ours and CHECKSUM in attributes and attributes[CHECKSUM] != attributes_checksum(attributes):
        raise CorruptCacheError(
            f"the attributes of {folder / DOCUMENT} differ from their checksum: restore it from a copy of the cache"
        )
    return attributes
