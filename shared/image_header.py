"""What a PNG, JPEG or WebP says about itself before anything is decoded: its size, and whether it is whole.

Each reader also returns the bytes to decode: the image alone, without comments, colour profiles and EXIF. What is not
passed on cannot be a bomb, cannot make the decoder warn, and cannot change a pixel.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import unpack_from

from shared.errors import BadImageError

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
JPEG_END = b"\xff\xd9"
PNG_KEPT = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
JPEG_DROPPED = frozenset({*range(0xE1, 0xEE), 0xEF, 0xFE})
"""Application data and comments. APP0 and APP14 stay: they say how the colours are coded."""
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_SCAN = 0xDA


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageHeader:
    """What the first bytes of an image file claim."""

    format: str
    """``PNG``, ``JPEG`` or ``WEBP``."""
    width: int
    """Pixels, at least 1."""
    height: int
    """Pixels, at least 1."""
    image: bytes
    """The file without metadata and without what follows its end."""


def read_header(data: bytes) -> ImageHeader:
    """Walk the file's own structure; raise `BadImageError` if it is not one whole 8-bit PNG, JPEG or WebP image."""
    for signature, reader in READERS.items():
        if data.startswith(signature):
            header = reader(data)
            if header.width < 1 or header.height < 1:
                raise BadImageError(f"the {header.format} has no pixels: {header.width} x {header.height}")
            return header
    raise BadImageError(f"not a PNG, JPEG or WebP image: {_first_bytes(data)}")


def _first_bytes(data: bytes) -> str:
    return f"{len(data)} bytes starting with {data[:8].hex(' ')}" if data else "it is empty"


def _png(data: bytes) -> ImageHeader:
    kept = [PNG_SIGNATURE]
    names = []
    for name, start, end in _png_chunks(data):
        names.append(name)
        if name == b"acTL":
            raise BadImageError("the PNG is animated; send one still image")
        if name in PNG_KEPT:
            if zlib.crc32(data[start + 4 : end - 4]) != unpack_from(">I", data, end - 4)[0]:
                raise BadImageError(f"the PNG is damaged: its {name.decode()} chunk fails its checksum")
            kept.append(data[start:end])
    if names[0] != b"IHDR" or len(kept[1]) != 25 or b"IDAT" not in names:
        raise BadImageError("the PNG is damaged: it does not start with a header or holds no image")
    width, height, depth = unpack_from(">IIB", kept[1], 8)
    if depth > 8:
        raise BadImageError(f"the PNG has {depth} bits per channel; convert it to 8")
    return ImageHeader(format="PNG", width=width, height=height, image=b"".join(kept))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, end) of every chunk up to and including IEND."""
    position = len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        end = position + 12 + unpack_from(">I", data, position)[0]
        name = data[position + 4 : position + 8]
        if end > len(data):
            break
        yield name, position, end
        if name == b"IEND":
            return
        position = end
    raise BadImageError("the PNG is truncated")


def _jpeg(data: bytes) -> ImageHeader:
    kept = [JPEG_SIGNATURE]
    size: tuple[int, int] | None = None
    for marker, start, end in _jpeg_segments(data):
        if marker in JPEG_FRAMES:
            if end - start < 9:
                raise BadImageError("the JPEG is damaged: its header is too short")
            precision, height, width = unpack_from(">BHH", data, start + 4)
            if precision != 8:
                raise BadImageError(f"the JPEG has {precision} bits per channel; convert it to 8")
            size = width, height
        if marker == JPEG_SCAN:
            last = data.rfind(JPEG_END)
            if last < end:
                raise BadImageError("the JPEG is truncated")
            kept.append(data[start : last + 2])
        elif marker not in JPEG_DROPPED:
            kept.append(data[start:end])
    if size is None:
        raise BadImageError("the JPEG is damaged: its image starts before its header")
    return ImageHeader(format="JPEG", width=size[0], height=size[1], image=b"".join(kept))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of every segment up to and including the first scan's header."""
    position = 2
    while position + 4 <= len(data):
        if data[position] != 0xFF:
            raise BadImageError("the JPEG is damaged: a segment does not start where the last one ends")
        marker = data[position + 1]
        if marker == 0xFF:  # fill bytes may precede any marker
            position += 1
            continue
        end = position + 2 + unpack_from(">H", data, position + 2)[0]
        if end > len(data):
            break
        yield marker, position, end
        if marker == JPEG_SCAN:
            return
        position = end
    raise BadImageError("the JPEG is truncated")


def _webp(data: bytes) -> ImageHeader:
    if data[8:12] != b"WEBP":
        raise BadImageError(f"not a PNG, JPEG or WebP image: {_first_bytes(data)}")
    end = 8 + unpack_from("<I", data, 4)[0]
    if end > len(data) or end < 30:
        raise BadImageError("the WebP is truncated")
    kind = data[12:16]
    if kind == b"VP8X":
        if data[20] & 0x02:
            raise BadImageError("the WebP is animated; send one still image")
        width = int.from_bytes(data[24:27], "little") + 1
        height = int.from_bytes(data[27:30], "little") + 1
    elif kind == b"VP8 ":
        width, height = (value & 0x3FFF for value in unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        bits = unpack_from("<I", data, 21)[0]
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        raise BadImageError("the WebP is damaged: it holds no image")
    return ImageHeader(format="WEBP", width=width, height=height, image=data[:end])


READERS: dict[bytes, Callable[[bytes], ImageHeader]] = {PNG_SIGNATURE: _png, JPEG_SIGNATURE: _jpeg, b"RIFF": _webp}
