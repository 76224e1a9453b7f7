"""Named arrays in one file, safetensors or npz: written block by block, read whole or in part.

Shape key: S answers.
"""

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from safetensors import SafetensorError, safe_open

from cache.layout import AnyArray
from shared.errors import InputError

METADATA = "metadata"
"""Entry of an npz that holds, as JSON, what safetensors keeps in its header."""
SAFETENSORS_DTYPES = {
    "float16": "F16",
    "float32": "F32",
    "float64": "F64",
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One array of a file, given in pieces."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    """Of the whole array [S, ...]."""
    pieces: Callable[[], Iterator[AnyArray]]
    """Its values in order."""

    @property
    def size_bytes(self) -> int:
        """Bytes of the array."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


def write_safetensors(path: Path, columns: list[Column], *, metadata: Mapping[str, str]) -> None:
    """Write the format of the safetensors library, which itself needs all arrays in memory at once."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    # The library reads wide dtypes first; so every array begins at a multiple of its item.
    columns = sorted(columns, key=lambda column: (-np.dtype(column.dtype).itemsize, column.name))
    for column in columns:
        end = at + column.size_bytes
        header[column.name] = {
            "dtype": SAFETENSORS_DTYPES[column.dtype],
            "shape": list(column.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for column in columns:
            for piece in column.pieces():
                file.write(_little(piece, column=column).data)


def write_npz(path: Path, columns: list[Column], *, metadata: Mapping[str, str]) -> None:
    """Write what `numpy.load` reads without pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for column in columns:
            with archive.open(f"{column.name}.npy", "w", force_zip64=True) as file:
                descr = np.dtype(column.dtype).newbyteorder("<").str
                header = {"descr": descr, "fortran_order": False, "shape": column.shape}
                npy_format.write_array_header_1_0(file, header)
                for piece in column.pieces():
                    file.write(_little(piece, column=column).data)
        with archive.open(f"{METADATA}.npy", "w") as file:
            npy_format.write_array(file, np.array(json.dumps(dict(metadata))), allow_pickle=False)


class TensorFile:
    """A safetensors or npz file that somebody brought; raises `InputError` for anything that is none."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise InputError(f"{path} is not a file: name one that ends with .safetensors or .npz")
        self.path = path
        self.metadata: dict[str, str] = {}
        """Strings by name."""
        loaders = {".safetensors": self._load_safetensors, ".npz": self._load_npz}
        if path.suffix not in loaders:
            raise InputError(f"{path} ends with {path.suffix or 'nothing'}; .safetensors and .npz can be read")
        self._arrays: dict[str, AnyArray] = {}
        loaders[path.suffix]()

    @property
    def names(self) -> list[str]:
        """Arrays there are."""
        return sorted(self._arrays)

    def get(self, name: str) -> AnyArray | None:
        """A whole array, None where there is none."""
        return self._arrays.get(name)

    def _load_safetensors(self) -> None:
        try:
            with safe_open(self.path, framework="numpy") as file:
                self.metadata = file.metadata() or {}
                self._arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.path} is no safetensors file of NumPy dtypes ({error})") from error

    def _load_npz(self) -> None:
        try:
            with np.load(self.path, allow_pickle=False) as file:
                self._arrays = dict(file)
        except (zipfile.BadZipFile, ValueError, EOFError, AttributeError, TypeError) as error:
            raise InputError(f"{self.path} is no npz file that can be read without pickle ({error})") from error
        metadata = self._arrays.pop(METADATA, None)
        if metadata is not None:
            try:
                self.metadata = {str(name): str(value) for name, value in json.loads(str(metadata)).items()}
            except (ValueError, AttributeError) as error:
                raise InputError(f"{METADATA} in {self.path} is no JSON object of strings") from error


def _little(piece: AnyArray, *, column: Column) -> AnyArray:
    return np.ascontiguousarray(piece, dtype=np.dtype(column.dtype).newbyteorder("<"))
