"""JSON of large arrays, written so that others get a turn: one call of orjson keeps every other thread waiting.

The interpreter is free between two pieces only, also where all this is done in a thread of its own.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from orjson import OPT_NON_STR_KEYS, OPT_SERIALIZE_NUMPY, dumps

OPTIONS = OPT_SERIALIZE_NUMPY | OPT_NON_STR_KEYS
PIECE_NUMBERS = 16 * 1024
"""Written in about half a millisecond."""


def write_object(text: bytearray, fields: Mapping[str, object], arrays: Mapping[str, NDArray[Any]]) -> None:
    """Append one object: ``fields``, of which there is one or more, then ``arrays``, each C-contiguous."""
    text += dumps(fields, option=OPTIONS)
    for name, array in arrays.items():
        # In place of the brace that ends what came before.
        text[-1:] = b"," + dumps(name) + b":"
        write_array(text, array)
        text += b"}"


def write_array(text: bytearray, array: NDArray[Any]) -> None:
    """Append an array, nested as it is."""
    row_numbers = array[0].size if len(array) else 0
    text += b"["
    if row_numbers > PIECE_NUMBERS and array.ndim > 1:
        for index, row in enumerate(array):
            text += b"," if index else b""
            write_array(text, row)
    else:
        step = max(1, PIECE_NUMBERS // max(1, row_numbers))
        for start in range(0, len(array), step):
            text += b"," if start else b""
            text += memoryview(dumps(array[start : start + step], option=OPTIONS))[1:-1]
    text += b"]"
