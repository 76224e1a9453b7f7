"""Tensors of the Open Inference Protocol: out of a request's JSON or the bytes behind it, and into an answer.

Shape key: B images or rows.
"""

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError, TooLargeError
from shared.schemas import INT64_MAX, parse_body
from teacher_server.json_pieces import write_object
from teacher_server.oip_schemas import InferRequest, InputTensor

MAX_JSON_BYTES = 2**20
"""Enough for one image of 224 x 224 in decimals. Reading JSON stops everyone else, so it must be over soon."""
INPUTS: Mapping[str, tuple[str, np.dtype[Any]]] = {
    "image": ("UINT8", np.dtype("u1")),
    "row": ("INT64", np.dtype("<i8")),
}
"""Name -> the protocol's datatype and NumPy's."""


def read_request(body: bytes, *, header_lengths: list[str]) -> tuple[InferRequest, memoryview]:
    """The JSON of a request, and the bytes behind it.

    ``header_lengths``: values of Inference-Header-Content-Length; without one, all is JSON.
    """
    size_bytes = _header_length(header_lengths, body=body) if header_lengths else len(body)
    if size_bytes > MAX_JSON_BYTES:
        remedy = "send tensors as binary data behind the JSON (binary_data_size)"
        raise TooLargeError(f"JSON of {size_bytes} bytes; at most {MAX_JSON_BYTES}: {remedy}, or several requests")
    return parse_body(body[:size_bytes], model=InferRequest), memoryview(body)[size_bytes:]


def _header_length(values: list[str], *, body: bytes) -> int:
    text = values[0].strip() if len(values) == 1 else ""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= len(body)):
        found = ", ".join(values)[:80]
        raise InputError(
            f"Inference-Header-Content-Length {found!r}: expected the length of the JSON, 1 to {len(body)} in this body"
        )
    if int(text) == 0:
        raise InputError("a raw request (Inference-Header-Content-Length: 0) names no input; send the JSON before it")
    return int(text)


def read_tensor(asked: InferRequest, tail: memoryview) -> tuple[str, NDArray[Any]]:
    """Name and array of the one input; raises `InputError` where JSON, shape, datatype and bytes disagree."""
    if len(asked.inputs) != 1:
        names = ", ".join(given.name for given in asked.inputs)[:160]
        raise InputError(f"{len(asked.inputs)} inputs ({names}); send exactly one of 'image' and 'row'")
    given = asked.inputs[0]
    if given.name not in INPUTS:
        raise InputError(f"unknown input {given.name[:80]!r}; send 'image' UINT8 [B, H, W, 3] or 'row' INT64 [B]")
    datatype, dtype = INPUTS[given.name]
    if given.datatype != datatype:
        raise InputError(f"input {given.name!r} has datatype {given.datatype[:40]!r}; send {datatype}")
    stated_bytes = given.parameters.binary_data_size
    if (stated_bytes is None) == (given.data is None):
        raise InputError(f"input {given.name!r} needs one of 'data' and parameters.binary_data_size")
    # NumPy counts bytes as if no dimension were 0.
    if dtype.itemsize * prod(size or 1 for size in given.shape) > INT64_MAX:
        raise InputError(f"input {given.name!r}: no {datatype} tensor has shape {given.shape}")
    size_bytes = dtype.itemsize * prod(given.shape)
    if stated_bytes is None:
        if tail:
            raise InputError(f"{len(tail)} bytes follow the JSON, and no input has a binary_data_size")
        return given.name, _from_json(given, dtype=dtype)
    if not stated_bytes == size_bytes == len(tail):
        raise InputError(
            f"input {given.name!r}: {datatype} {given.shape} takes {size_bytes} bytes; "
            f"binary_data_size says {stated_bytes}, and {len(tail)} bytes follow the JSON"
        )
    return given.name, np.frombuffer(tail, dtype=dtype).reshape(given.shape)


def _from_json(given: InputTensor, *, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Whole numbers, flat or nested; JSON's other kinds are not rounded or read as numbers."""
    size = prod(given.shape)
    # Lists of different lengths stay lists, and are refused as such below.
    found = np.array(given.data, dtype=object)
    if found.shape not in ((size,), tuple(given.shape)):
        raise InputError(f"input {given.name!r}: 'data' is {list(found.shape)}; expected {given.shape} or [{size}]")
    values = found.ravel().tolist()
    bounds = np.iinfo(dtype)
    # By type and not isinstance: true is no number here.
    if set(map(type, values)) - {int} or (values and (min(values) < bounds.min or max(values) > bounds.max)):
        wrong = next(value for value in values if type(value) is not int or not bounds.min <= value <= bounds.max)
        raise InputError(f"input {given.name!r}: {str(wrong)[:40]} in 'data' is no {given.datatype}")
    return np.array(values, dtype=dtype).reshape(given.shape)


def pack_answer(
    outputs: Mapping[str, NDArray[Any]], *, fields: Mapping[str, object], binary: Collection[str]
) -> tuple[bytes | memoryview, int | None]:
    """The body of an answer, and the length of its JSON where the tensors named in ``binary`` follow it.

    ``outputs``: arrays [B, ...]; sent as float32.
    """
    text = bytearray()
    write_object(text, {**fields, "outputs": []}, {})
    # In place of what ends the list and the object.
    del text[-2:]
    parts: list[bytes] = []
    for name, array in outputs.items():
        numbers = np.ascontiguousarray(array, dtype="<f4")
        tensor = {"name": name, "datatype": "FP32", "shape": list(numbers.shape)}
        if name in binary:
            write_object(text, tensor | {"parameters": {"binary_data_size": numbers.nbytes}}, {})
            parts.append(numbers.tobytes())
        else:
            write_object(text, tensor, {"data": numbers.ravel()})
        text += b","
    if outputs:
        del text[-1:]
    text += b"]}"
    return (b"".join([text, *parts]), len(text)) if parts else (memoryview(text), None)
