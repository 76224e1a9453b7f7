"""The one decoder: file bytes, PIL images and arrays to canonical pixels, uint8 [H, W, 3] RGB.

Alpha is dropped, not composited; palettes and greys become three channels; EXIF orientation is ignored; more than
8 bits per channel is refused. Shape key: H height, W width.
"""

from io import BytesIO
from struct import error as struct_error
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import __version__ as pillow_version
from PIL.Image import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from shared.errors import BadImageError, TooLargeError
from shared.image_header import read_header

DECODER = f"pillow {pillow_version}"
"""Library and version that decode files; a cache records it, so that a later mismatch of keys can name it."""
MAX_PIXELS = 24_000_000
# Opened by class: Image.open would also try to guess, follow a JPEG's extra pictures, and warn about large ones.
PLUGINS: dict[str, type[ImageFile]] = {"PNG": PngImageFile, "JPEG": JpegImageFile, "WEBP": WebPImageFile}
MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
"""Pillow's modes of 8 bits or fewer per channel."""
DECODER_ERRORS = (OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct_error)
"""What Pillow has been seen to raise on damaged files."""


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode one PNG, JPEG or WebP to uint8 [H, W, 3].

    Raises `TooLargeError` over ``max_pixels``, before decoding, and `BadImageError` for anything but one whole,
    still, 8-bit image. Bytes after its end are ignored. Damage inside a JPEG's picture can be invisible: the format
    has no checksum.
    """
    header = read_header(data)
    if header.width * header.height > max_pixels:
        raise TooLargeError(
            f"the {header.format} has {header.width} x {header.height} pixels; at most {max_pixels} are accepted"
        )
    try:
        with PLUGINS[header.format](BytesIO(header.image)) as image:
            # Before any memory is taken: a file made to be read in two ways must not get past the limit.
            if image.size != (header.width, header.height):
                raise BadImageError(f"the {header.format} is damaged: it states two sizes")
            return pixels_of_image(image)
    except DECODER_ERRORS:
        # From None: Pillow's text speaks of its own internals, and is not ours to forward.
        raise BadImageError(f"the {header.format} is damaged or truncated: it cannot be decoded") from None


def pixels_of_image(image: Image) -> NDArray[np.uint8]:
    """Canonical pixels of a PIL image, by the same rules; raises `BadImageError` for modes of more than 8 bits."""
    if image.mode not in MODES:
        raise BadImageError(f"an image of mode {image.mode} has more than 8 bits per channel; convert it to RGB")
    if "transparency" in image.info:  # would turn palettes into RGBA, with a warning
        image = image.copy()
        del image.info["transparency"]
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def pixels_of_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Canonical pixels of a uint8 array [H, W, 3], [H, W, 1] or [H, W]; raises `BadImageError` for any other."""
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise BadImageError(
            f"an image must be uint8 [H, W, 3] or [H, W] with values 0 to 255; got {array.dtype} {list(array.shape)}"
        )
    if 0 in array.shape:
        raise BadImageError(f"an image needs pixels; got {list(array.shape)}")
    grey = array.ndim == 2 or array.shape[2] == 1
    return np.repeat(array.reshape(*array.shape[:2], 1), 3, axis=2) if grey else np.ascontiguousarray(array)
