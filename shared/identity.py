"""Who is who: keys of pixels, ids of teachers, fingerprints of data sets, and which rows a sample draws.

Shape key: B images, N rows, H height, W width.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shared.errors import InputError, RowRangeError, UnknownNameError

KEY_BYTES = 32
NAME_PATTERN = re.compile(r"^[a-z0-9][a-z0-9._-]{0,63}$")


def check_name(name: str, *, what: str) -> str:
    """Return ``name`` if it may stand in a path, a URL and a Zarr group; else raise `UnknownNameError`."""
    if not NAME_PATTERN.fullmatch(name):
        raise UnknownNameError(
            f"{what} {name[:80]!r} is not a name: 1 to 64 of a-z 0-9 . _ - starting with a letter or digit"
        )
    return name


def pixel_key(pixels_HW3: NDArray[np.uint8]) -> bytes:
    """SHA-256 of ``uint8:H:W:3:`` and the pixels: the same image in any file format is one key."""
    if pixels_HW3.dtype != np.uint8 or pixels_HW3.ndim != 3 or pixels_HW3.shape[2] != 3:
        raise InputError(f"an image must be uint8 [H, W, 3]; got {pixels_HW3.dtype} {list(pixels_HW3.shape)}")
    height, width, _ = pixels_HW3.shape
    digest = hashlib.sha256(f"uint8:{height}:{width}:3:".encode("ascii"))
    digest.update(np.ascontiguousarray(pixels_HW3).data)
    return digest.digest()


def pixel_keys(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Keys of many images, uint8 [B, 32]."""
    joined = b"".join(pixel_key(image) for image in images)
    return np.frombuffer(joined, dtype=np.uint8).reshape(-1, KEY_BYTES)


def weights_digest(tensors: Iterable[tuple[str, str, Sequence[int], bytes]]) -> str:
    """SHA-256 (hex) over (name, dtype, shape, bytes) sorted by name: the weights, not the file they came in."""
    digest = hashlib.sha256()
    for name, dtype, shape, data in sorted(tensors, key=lambda tensor: tensor[0]):
        header = json.dumps([name, dtype, list(shape)], separators=(",", ":"))
        digest.update(f"{len(header)}:{header}{len(data)}:".encode())
        digest.update(data)
    return digest.hexdigest()


def teacher_id(*, arch: str, weights: str, preprocessing: Mapping[str, object], precision: str, classes: int) -> str:
    """``{arch}-{12 hex}``; the hash covers everything that can change an answer, and nothing else."""
    identity = {
        "arch": arch,
        "weights": weights,
        "preprocessing": preprocessing,
        "precision": precision,
        "classes": classes,
    }
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return f"{arch}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def dataset_fingerprint(*, keys_N32: NDArray[np.uint8], labels_N: NDArray[np.int64], classes: Sequence[str]) -> str:
    """SHA-256 (hex) over keys, labels and class names, in row order."""
    if keys_N32.shape != (len(labels_N), KEY_BYTES):
        raise InputError(f"expected {len(labels_N)} keys of {KEY_BYTES} bytes, got {list(keys_N32.shape)}")
    digest = hashlib.sha256(json.dumps(list(classes), separators=(",", ":")).encode())
    digest.update(np.ascontiguousarray(labels_N, dtype="<i8").data)
    digest.update(np.ascontiguousarray(keys_N32).data)
    return digest.hexdigest()


def sample_rows(*, num_rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """The first ``count`` rows by ascending SHA-256 of ``seed:row``, so that smaller samples nest in larger ones.

    The order returned is the drawing order, not the row order.
    """
    if not 0 <= count <= num_rows:
        raise RowRangeError(f"cannot sample {count} rows of {num_rows}; use 0 to {num_rows}")
    digests = [hashlib.sha256(f"{seed}:{row}".encode("ascii")).digest() for row in range(num_rows)]
    order = sorted(range(num_rows), key=digests.__getitem__)
    return np.array(order[:count], dtype=np.int64)
