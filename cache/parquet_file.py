"""Answers as one Parquet file, a row per answer, as Hugging Face datasets and data frames read it."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from cache.layout import AnyArray
from cache.tensor_file import Column
from shared.errors import InputError


def load_pyarrow() -> ModuleType:
    """The library; raises `InputError` saying how to get it."""
    try:
        # An extra, and slow to import: nothing else needs it.
        import_module("pyarrow.parquet")
        return import_module("pyarrow")
    except ImportError as error:
        raise InputError(
            "Parquet needs pyarrow: pip install 'teachonce[parquet]', or write .safetensors or .npz"
        ) from error


def write_parquet(path: Path, columns: list[Column], *, metadata: Mapping[str, str]) -> None:
    """One row per answer, one row group per piece; arrays are lists of fixed length, keys are binary."""
    pyarrow = load_pyarrow()
    schema = pyarrow.schema(
        [pyarrow.field(column.name, _type(pyarrow, column)) for column in columns], metadata=dict(metadata)
    )
    pieces = [column.pieces() for column in columns]
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for group in _together(pieces):
            arrays = [_array(pyarrow, values, column=column) for values, column in zip(group, columns, strict=True)]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema))


def _together(pieces: list[Iterator[AnyArray]]) -> Iterator[tuple[AnyArray, ...]]:
    return zip(*pieces, strict=True)


def _type(pyarrow: ModuleType, column: Column) -> Any:
    item = pyarrow.from_numpy_dtype(np.dtype(column.dtype))
    if column.name == "keys":
        return pyarrow.binary()
    return item if len(column.shape) == 1 else pyarrow.list_(item, prod(column.shape[1:]))


def _array(pyarrow: ModuleType, values: AnyArray, *, column: Column) -> Any:
    if column.name == "keys":
        return pyarrow.array([key.tobytes() for key in values], type=pyarrow.binary())
    flat = pyarrow.array(np.ascontiguousarray(values, dtype=column.dtype).reshape(-1))
    return flat if values.ndim == 1 else pyarrow.FixedSizeListArray.from_arrays(flat, prod(column.shape[1:]))
