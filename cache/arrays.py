"""Reading one array of a cache by slots: mapped where the files are exactly ours, else chunk by chunk.

Shape key: B slots asked for, S slots.
"""

import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cache.layout import AnyArray, ArraySpec
from cache.stitched import advise, can_stitch, check_chunk_file, map_chunks
from cache.zarr_documents import array_document, read_document
from shared.errors import CorruptCacheError

Ints = NDArray[np.int64]

READ_AHEAD_BYTES = 128 * 2**10
"""What Linux reads for one MADV_WILLNEED where nobody raised it, however much is asked for."""


class SlotArray(Protocol):
    """Slots of one array, however they are stored. Slots are within [0, S): the caller has checked."""

    slots: int
    """S."""
    size_bytes: int
    """Bytes of all slots."""

    def take(self, slots: Ints, *, out: AnyArray) -> None:
        """Copy slots [B] into ``out`` [B, ...]."""

    def head(self, slots: int) -> AnyArray:
        """The first ``slots`` slots, to be read at once; not to be kept."""

    def will_need(self, slots: Ints) -> None:
        """Slots [B] are asked for soon: have them brought into memory, without waiting."""


class MappedArray:
    """All chunk files as one array."""

    def __init__(self, files: list[Path], *, spec: ArraySpec, slots: int) -> None:
        self._values = map_chunks(files, spec=spec)
        self._slot_bytes = spec.slot_bytes
        self.slots = slots
        self.size_bytes = slots * spec.slot_bytes

    def take(self, slots: Ints, *, out: AnyArray) -> None:
        """See `SlotArray`."""
        # "clip" lets NumPy write into `out` without a copy; the bounds were checked.
        self._values.take(slots, axis=0, out=out, mode="clip")

    def head(self, slots: int) -> AnyArray:
        """See `SlotArray`."""
        return self._values[:slots]

    def advise(self, advice: int) -> None:
        """Tell the kernel how all of it will be used."""
        if self._values.nbytes:
            advise(self._values, first_byte=0, end_byte=self._values.nbytes, advice=advice)

    def will_need(self, slots: Ints) -> None:
        """See `SlotArray`; neighbours are asked for together."""
        if not len(slots):
            return
        starts = np.sort(slots) * self._slot_bytes
        first_pages, end_pages = starts // mmap.PAGESIZE, (starts + self._slot_bytes - 1) // mmap.PAGESIZE + 1
        apart = np.flatnonzero(first_pages[1:] > end_pages[:-1])
        firsts = first_pages[np.append(0, apart + 1)] * mmap.PAGESIZE
        ends = end_pages[np.append(apart, len(slots) - 1)] * mmap.PAGESIZE
        for first, end in zip(firsts.tolist(), ends.tolist(), strict=True):
            for at in range(first, end, READ_AHEAD_BYTES):
                advise(
                    self._values,
                    first_byte=at,
                    end_byte=min(at + READ_AHEAD_BYTES, end),
                    advice=mmap.MADV_WILLNEED,
                )


class MemoryArray:
    """A copy."""

    def __init__(self, values: AnyArray) -> None:
        self._values = np.array(values)
        self.slots = len(values)
        self.size_bytes = self._values.nbytes

    def take(self, slots: Ints, *, out: AnyArray) -> None:
        """See `SlotArray`."""
        self._values.take(slots, axis=0, out=out, mode="clip")

    def head(self, slots: int) -> AnyArray:
        """See `SlotArray`."""
        return self._values[:slots]

    def will_need(self, slots: Ints) -> None:
        """See `SlotArray`; it is here."""


class ChunkwiseArray:
    """Chunk by chunk, for what cannot be mapped as one: other platforms, other codecs, other grids."""

    def __init__(self, load: Callable[[int], AnyArray], *, spec: ArraySpec, chunk_slots: int, slots: int) -> None:
        self._load = load
        self.slots = slots
        self.size_bytes = slots * spec.slot_bytes
        self._spec = spec
        self._chunk_slots = chunk_slots

    def take(self, slots: Ints, *, out: AnyArray) -> None:
        """See `SlotArray`."""
        chunks = slots // self._chunk_slots
        for chunk in np.unique(chunks):
            chosen = chunks == chunk
            out[chosen] = self._load(int(chunk))[slots[chosen] - chunk * self._chunk_slots]

    def head(self, slots: int) -> AnyArray:
        """See `SlotArray`."""
        out = np.empty((slots, *self._spec.shape), dtype=self._spec.numpy_dtype)
        for first in range(0, slots, self._chunk_slots):
            part = self._load(first // self._chunk_slots)[: slots - first]
            out[first : first + len(part)] = part
        return out

    def will_need(self, slots: Ints) -> None:
        """See `SlotArray`; chunks are read when they are asked for."""


def open_own_array(folder: Path, *, spec: ArraySpec, slots: int) -> SlotArray:
    """The first ``slots`` slots of an array that this code wrote; raises `CorruptCacheError` for a short file."""
    count = -(-slots // spec.chunk_slots)
    files = [folder / spec.chunk_name(index) for index in range(count)]
    if can_stitch(spec):
        return MappedArray(files, spec=spec, slots=slots)
    for file in files:
        check_chunk_file(file, spec=spec)

    def load(index: int) -> AnyArray:
        shape = (spec.chunk_slots, *spec.shape)
        return np.memmap(files[index], dtype=spec.numpy_dtype, mode="r", shape=shape)

    return ChunkwiseArray(load, spec=spec, chunk_slots=spec.chunk_slots, slots=slots)


def open_array(folder: Path, *, slots: int | None = None) -> tuple[ArraySpec, int, SlotArray]:
    """Any Zarr array [S, ...] with its spec and S; ``slots`` overrides S for arrays whose shape lags behind."""
    document = read_document(folder)
    if document is None or document.get("node_type") != "array":
        raise CorruptCacheError(f"{folder} is not a Zarr array: restore it from a copy of the cache")
    spec, length = _read_spec(document, folder=folder)
    if document == array_document(spec, slots=length):
        count = length if slots is None else slots
        return spec, count, open_own_array(folder, spec=spec, slots=count)
    return _open_foreign(folder, spec=spec)


def _read_spec(document: dict[str, Any], *, folder: Path) -> tuple[ArraySpec, int]:
    try:
        length, *shape = document["shape"]
        data_type = document["data_type"]
        np.dtype(data_type)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCacheError(f"{folder} has no shape or an unknown data type: restore zarr.json") from error
    attributes = document.get("attributes") or {}
    return ArraySpec(name=folder.name, dtype=data_type, shape=tuple(shape), attributes=attributes), length


def _open_foreign(folder: Path, *, spec: ArraySpec) -> tuple[ArraySpec, int, SlotArray]:
    # Zarr takes a second to import, and arrays that we wrote never need it.
    import zarr

    with _zarr_errors(folder):
        array = zarr.open_array(str(folder), mode="r")
    chunk_slots, slots = array.chunks[0], array.shape[0]

    def load(index: int) -> AnyArray:
        with _zarr_errors(folder):
            return np.asarray(array[index * chunk_slots : (index + 1) * chunk_slots])

    return spec, slots, ChunkwiseArray(load, spec=spec, chunk_slots=chunk_slots, slots=slots)


@contextmanager
def _zarr_errors(folder: Path) -> Iterator[None]:
    """What Zarr and its codecs say about documents and chunks that they cannot make sense of."""
    try:
        yield
    except (ValueError, TypeError, LookupError, RuntimeError, ArithmeticError, MemoryError) as error:
        raise CorruptCacheError(f"Zarr cannot read {folder} ({error}): restore it from a copy of the cache") from error
