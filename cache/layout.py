"""Where everything lies in a cache's folder, and how arrays are cut into chunks.

Shape key: S slots, C classes, D feature width.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError
from shared.identity import KEY_BYTES, check_name
from shared.outputs import OutputForm

FORMAT = 1
"""Version of everything in a cache's folder; another version is refused, never guessed."""
LEDGER = "ledger.sqlite3"
LOCK = "writer.lock"
DATA = "data.zarr"
INDEX = "index"
"""Folder that remembers the keys of image files: it may lie there before the cache does."""
DOCUMENT = "zarr.json"
PARTIAL = ".partial"
"""Suffix of a file that is not whole yet."""

BLOCK_SLOTS = 8192
"""Slots folded together; a multiple of every array's chunk, and a multiple of the page in bytes for every dtype."""
MAX_CHUNK_BYTES = 64 * 2**20

OUTPUT_DTYPES = ("float16", "float32", "int8")
ENCODED = "int8"
"""The dtype that answers are kept in as steps, beside a scale and a zero per row; they are read as float32."""
COMPANIONS = (".scale", ".zero")
"""What the arrays beside an int8 output are called after its name; float32 [S]."""
DEFAULT_OUTPUTS = {"logits": "float16", "features": "float16"}
ADDING = "+adding"
"""Ends the name of what holds a cache's new outputs, slot for slot, until all of them are there."""
UPLOADS = "uploads/images"
"""The data set of images that callers brought; its rows are numbered as they come."""

_TEACHER_PATTERN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,159}$")

Bytes = NDArray[np.uint8]
AnyArray = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySpec:
    """One Zarr array of a cache."""

    name: str
    dtype: str
    """NumPy's and Zarr's name, such as ``float16``; bytes are little endian."""
    shape: tuple[int, ...]
    """Shape of one slot, ``(C,)`` for logits."""
    attributes: Mapping[str, int] = field(default_factory=dict, hash=False)
    """What more there is to know about it, see `shared.outputs.OutputForm`."""

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype as it lies on disk."""
        return np.dtype(self.dtype).newbyteorder("<")

    @property
    def output(self) -> str:
        """The output that this array belongs to: itself, save for scales and zeros."""
        return next((self.name.removesuffix(end) for end in COMPANIONS if self.name.endswith(end)), self.name)

    @property
    def is_output(self) -> bool:
        """Whether this is what callers ask for by name."""
        return self.name == self.output

    @property
    def answer_dtype(self) -> np.dtype[Any]:
        """The dtype that callers see."""
        return np.dtype(np.float32) if self.dtype == ENCODED else self.numpy_dtype

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot."""
        return prod(self.shape) * self.numpy_dtype.itemsize

    @property
    def chunk_slots(self) -> int:
        """Slots per chunk: 8192, or the largest power of two that keeps a chunk within 64 MiB."""
        slots = BLOCK_SLOTS
        while slots > 1 and slots * self.slot_bytes > MAX_CHUNK_BYTES:
            slots //= 2
        return slots

    @property
    def chunk_bytes(self) -> int:
        """Size of every chunk file: the last one is padded with zeros."""
        return self.chunk_slots * self.slot_bytes

    def chunk_name(self, index: int) -> str:
        """File of a chunk in the array's folder, ``c.3.0``."""
        return ".".join(["c", str(index), *("0" for _ in self.shape)])


INDEX_ARRAYS = (
    ArraySpec(name="labels", dtype="int64", shape=()),
    ArraySpec(name="rows", dtype="int64", shape=()),
    ArraySpec(name="views", dtype="int32", shape=()),
    ArraySpec(name="keys", dtype="uint8", shape=(KEY_BYTES,)),
)
"""What every cache keeps beside its outputs."""


def output_specs(
    outputs: Mapping[str, str], *, classes: int, features: int, forms: Mapping[str, OutputForm] | None = None
) -> tuple[ArraySpec, ...]:
    """Arrays for the outputs ``{name: dtype}`` of a teacher; raises `InputError` for what cannot be kept.

    ``forms`` are those of outputs besides logits and features.
    """
    if "logits" not in outputs:
        raise InputError(f"a cache keeps logits; asked for only {', '.join(outputs) or 'nothing'}")
    widths = {"logits": OutputForm(shape=(classes,)), "features": OutputForm(shape=(features,))}
    return formed_specs(outputs, forms={**(forms or {}), **widths})


def formed_specs(outputs: Mapping[str, str], *, forms: Mapping[str, OutputForm]) -> tuple[ArraySpec, ...]:
    """Arrays for ``{name: dtype}`` of these forms; raises `InputError` for a name or dtype that is not known."""
    for name, dtype in outputs.items():
        if name not in forms:
            raise InputError(f"unknown output {name!r}; known: {', '.join(forms)}")
        if dtype not in OUTPUT_DTYPES:
            raise InputError(f"output {name} cannot be kept as {dtype!r}; use one of {', '.join(OUTPUT_DTYPES)}")
    return kept_arrays(
        ArraySpec(name=name, dtype=dtype, shape=forms[name].shape, attributes=dict(forms[name].attributes))
        for name, dtype in outputs.items()
    )


def output_dtypes(specs: Iterable[ArraySpec]) -> dict[str, str]:
    """The outputs that these arrays keep, each with the dtype that it is stored in."""
    return {spec.name: spec.dtype for spec in specs if spec.is_output}


def forms_of(specs: Iterable[ArraySpec]) -> dict[str, OutputForm]:
    """The forms of the outputs that these arrays keep."""
    return {spec.name: OutputForm(shape=spec.shape, attributes=spec.attributes) for spec in specs if spec.is_output}


def kept_arrays(outputs: Iterable[ArraySpec]) -> tuple[ArraySpec, ...]:
    """The arrays of outputs in the order of their bytes in the journal: logits first, then by name.

    A scale and a zero follow each int8 output.
    """
    return tuple(
        array
        for output in sorted(outputs, key=lambda spec: (spec.name != "logits", spec.name))
        for array in (output, *companions(output))
    )


def companions(output: ArraySpec) -> tuple[ArraySpec, ...]:
    """The arrays that an output is read with."""
    names = [output.name + end for end in COMPANIONS] if output.dtype == ENCODED else []
    return tuple(ArraySpec(name=name, dtype="float32", shape=()) for name in names)


def dataset_folder(path: Path, *, teacher: str, dataset: str) -> Path:
    """Folder of a cache's Zarr group; raises `InputError` for names that cannot be folders."""
    if not _TEACHER_PATTERN.fullmatch(teacher):
        raise InputError(f"teacher id {teacher[:200]!r} cannot be a folder: use letters, digits and . _ + -")
    name, _, split = dataset.partition("/")
    check_name(name, what="data set")
    check_name(split.removesuffix(ADDING), what="split")
    return path / DATA / teacher / name / split
