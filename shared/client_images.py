"""Images as the HTTP client sends them: files one by one, arrays of one size together.

Shape key: B images asked about, H height, W width.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.client_calls import ROWS_PER_REQUEST, Call
from shared.errors import InputError
from shared.wire import CONTENT_TYPE, pack_tensors

BYTES_PER_REQUEST = 4 * 2**20
"""Passes a line of 1.2 Mbit/s in the 30 s that a server gives a body."""

Image = NDArray[np.uint8] | bytes | Path
"""Pixels uint8 [H, W, 3], or a PNG, JPEG or WebP file: its bytes or its path."""
Images = NDArray[np.uint8] | bytes | Path | Iterable[Image]
"""Pixels uint8 [B, H, W, 3] or [H, W, 3], one file, or images of any kinds and sizes one after another."""


def images_calls(images: Images, *, outputs: Sequence[str], run: str | None) -> Iterator[Call]:
    """One or more requests, in the order of the images; one for none."""
    params = {"outputs": ",".join(outputs)} | ({} if run is None else {"run": run})
    if isinstance(images, np.ndarray) and images.ndim == 4:
        yield from _array_calls(images, params=params)
        return
    parts = _parts([images] if isinstance(images, np.ndarray | bytes | Path) else images)
    empty = True
    for part in parts:
        empty = False
        if isinstance(part, bytes):
            yield Call(method="POST", path="/v1/images", params=params, content=part, kind="application/octet-stream")
        else:
            yield from _array_calls(np.stack(part), params=params)
    if empty:
        yield from _array_calls(np.empty((0, 1, 1, 3), dtype=np.uint8), params=params)


def _parts(images: Iterable[Image]) -> Iterator[bytes | list[NDArray[np.uint8]]]:
    """Files as bytes, and arrays of one size and dtype that follow each other as lists for one request."""
    alike: list[NDArray[np.uint8]] = []
    for image in images:
        if isinstance(image, np.ndarray) and image.ndim != 3:
            raise InputError(f"each image must be uint8 [H, W, 3]; got {image.dtype} {list(image.shape)}")
        fits = isinstance(image, np.ndarray) and bool(alike) and (image.shape, image.dtype) == _form(alike[0])
        if alike and not (fits and len(alike) < _most(alike[0])):
            yield alike
            alike = []
        if isinstance(image, np.ndarray):
            alike.append(image)
        else:
            yield _file(image)
    if alike:
        yield alike


def _form(image: NDArray[np.uint8]) -> tuple[tuple[int, ...], np.dtype[np.uint8]]:
    return image.shape, image.dtype


def _most(image: NDArray[np.uint8]) -> int:
    """Images of this size in one request."""
    return min(ROWS_PER_REQUEST, max(1, BYTES_PER_REQUEST // max(1, image.nbytes)))


def _file(image: bytes | Path) -> bytes:
    if isinstance(image, bytes):
        return image
    if not isinstance(image, Path):
        raise InputError(f"an image must be an array, bytes or a pathlib.Path; got {type(image).__name__}")
    try:
        return image.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the image {image}: {error.strerror or type(error).__name__}") from error


def _array_calls(images: NDArray[np.uint8], *, params: Mapping[str, str]) -> Iterator[Call]:
    step = _most(images[0]) if len(images) else 1
    for start in range(0, len(images), step) or (0,):
        body = pack_tensors({"images": np.ascontiguousarray(images[start : start + step])}, metadata={})
        yield Call(method="POST", path="/v1/images", params=params, content=body, kind=CONTENT_TYPE)
