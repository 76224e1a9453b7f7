"""Tensors with metadata as safetensors bytes, for both ends of the wire.

Shape key: B images.
"""

import json
from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from shared.errors import InputError

CONTENT_TYPE = "application/vnd.safetensors"


def pack_tensors(tensors: Mapping[str, NDArray[Any]], *, metadata: Mapping[str, object]) -> bytes:
    """One safetensors document; metadata values that are not strings travel as JSON."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    return save(dict(tensors), metadata=texts)


def unpack_tensors(body: bytes) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """The tensors and the metadata as sent, all strings; raises `InputError` where the bytes are something else."""
    try:
        tensors = load(body)
    # KeyError: a dtype that NumPy does not know.
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError("the body is not a complete safetensors document of NumPy dtypes") from error
    # The library checked the header; it only has no way to return the metadata from bytes.
    header = json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])
    return tensors, header.get("__metadata__", {})
