"""Chunk files of one array mapped side by side into one address range: one read-only array over a valid Zarr array."""

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np

from cache.layout import AnyArray, ArraySpec
from shared.errors import CorruptCacheError

# Linux's values; Python 3.11 does not name them.
_PROT_NONE = 0
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000


def can_stitch(spec: ArraySpec) -> bool:
    """Whether chunks of this array can lie side by side: Linux, and whole pages."""
    return sys.platform == "linux" and spec.chunk_bytes > 0 and spec.chunk_bytes % mmap.PAGESIZE == 0


def check_chunk_file(file: Path, *, spec: ArraySpec) -> None:
    """Raise `CorruptCacheError` unless a chunk file is there in full."""
    with _open_whole(file, size=spec.chunk_bytes):
        pass


@contextmanager
def _open_whole(file: Path, *, size: int) -> Iterator[int]:
    """A descriptor of a chunk file that is there in full: reading past its end would kill the process."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except FileNotFoundError as error:
        raise _not_whole(file, found=0, size=size) from error
    try:
        # Of the file that is opened: the name may stand for another one in a moment.
        if (found := os.fstat(descriptor).st_size) != size:
            raise _not_whole(file, found=found, size=size)
        yield descriptor
    finally:
        os.close(descriptor)


def _not_whole(file: Path, *, found: int, size: int) -> CorruptCacheError:
    return CorruptCacheError(f"{file} has {found} bytes instead of {size}: restore it from a copy of the cache")


def map_chunks(files: Sequence[Path], *, spec: ArraySpec) -> AnyArray:
    """Array [len(files) * chunk_slots, ...] over chunk files; unmapped when the last view of it goes.

    Each file is checked before it is mapped, and no descriptor stays open. A file renamed over later is not seen.
    """
    if not files:
        return np.empty((0, *spec.shape), dtype=spec.numpy_dtype)
    chunk_bytes = spec.chunk_bytes
    size = chunk_bytes * len(files)
    libc = _libc()
    reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    base = _checked(libc.mmap(None, size, _PROT_NONE, reserve, -1, 0))
    buffer = (ctypes.c_char * size).from_address(base)
    # Every array over the buffer keeps it alive, however it was sliced.
    unmap = weakref.finalize(buffer, libc.munmap, base, size)
    # The process's end unmaps by itself; doing it earlier would pull the ground from under whoever still reads.
    unmap.atexit = False
    for index, file in enumerate(files):
        with _open_whole(file, size=chunk_bytes) as descriptor:
            at = base + index * chunk_bytes
            flags = mmap.MAP_SHARED | _MAP_FIXED
            _checked(libc.mmap(at, chunk_bytes, mmap.PROT_READ, flags, descriptor, 0))
    array: AnyArray = np.frombuffer(memoryview(buffer), dtype=spec.numpy_dtype).reshape(-1, *spec.shape)
    array.flags.writeable = False
    return array


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc


def _checked(address: int | None) -> int:
    if address is None or address == ctypes.c_void_p(-1).value:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot map chunk files: {os.strerror(code)}")
    return address


def advise(array: AnyArray, *, first_byte: int, end_byte: int, advice: int) -> None:
    """Tell the kernel how bytes [first_byte, end_byte) of a mapped array will be used, such as `mmap.MADV_RANDOM`."""
    first = first_byte - first_byte % mmap.PAGESIZE
    _libc().madvise(array.ctypes.data + first, end_byte - first, advice)
