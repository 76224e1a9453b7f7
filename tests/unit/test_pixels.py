"""The decoder: what is an image, which pixels it has, and what is refused."""

import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from shared.errors import BadImageError, InputError, TooLargeError
from shared.pixels import DECODER, decode_image, pixels_of_array, pixels_of_image

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (7, 5, 1), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_warning_is_printed() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(pixels: NDArray[np.uint8] = PIXELS) -> Image.Image:
    return Image.fromarray(pixels)


PNG = encoded(picture())
JPEG = encoded(picture(), "JPEG")
WEBP = encoded(picture(), "WEBP", lossless=True)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"", extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("data", [PNG, WEBP, encoded(picture(), "PNG", interlace=1)], ids=["png", "webp", "interlaced"])
def test_lossless_files_give_the_pixels_that_were_saved(data: bytes) -> None:
    pixels = decode_image(data)
    assert np.array_equal(pixels, PIXELS)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_a_jpeg_gives_what_pillow_gives() -> None:
    with Image.open(BytesIO(JPEG)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode_image(JPEG), expected)


def test_a_lossy_webp_gives_what_pillow_gives() -> None:
    data = encoded(picture(), "WEBP", quality=50)
    with Image.open(BytesIO(data)) as image:
        assert np.array_equal(decode_image(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_is_dropped_and_not_composited(kind: str) -> None:
    image = Image.fromarray(np.concatenate([PIXELS, ALPHA], axis=2))
    assert np.array_equal(decode_image(encoded(image, kind, lossless=True, exact=True)), PIXELS)


def test_grey_with_alpha_becomes_three_equal_channels() -> None:
    image = Image.merge("LA", [Image.fromarray(PIXELS[:, :, 0]), Image.fromarray(ALPHA[:, :, 0])])
    assert np.array_equal(decode_image(encoded(image)), np.repeat(PIXELS[:, :, :1], 3, axis=2))


def test_grey_with_a_transparent_level_becomes_three_equal_channels() -> None:
    image = Image.fromarray(PIXELS[:, :, 0])
    data = encoded(image, transparency=int(PIXELS[0, 0, 0]))
    assert np.array_equal(decode_image(data), np.repeat(PIXELS[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("transparency", [None, 0, bytes(range(35))], ids=["opaque", "one entry", "alpha per entry"])
def test_a_palette_becomes_its_colours(transparency: object) -> None:
    image = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(7, 5))
    image.putpalette(PIXELS.reshape(-1).tolist())
    options = {} if transparency is None else {"transparency": transparency}
    assert np.array_equal(decode_image(encoded(image, **options)), PIXELS)


def test_one_bit_images_become_black_and_white() -> None:
    bits = PIXELS[:, :, 0] > 127
    data = encoded(Image.fromarray(bits))
    assert np.array_equal(decode_image(data), np.repeat(np.where(bits, 255, 0)[..., None], 3, axis=2))


def test_a_cmyk_jpeg_becomes_rgb() -> None:
    data = encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG")
    red, green, blue = decode_image(data)[0, 0].tolist()
    assert (red < 10, green > 200, blue > 200) == (True, True, True)


def test_the_exif_orientation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decode_image(encoded(picture(), "JPEG", exif=exif)), decode_image(JPEG))


def test_damaged_exif_is_ignored_without_a_warning() -> None:
    broken = b"\xff\xe1\x00\x20Exif\x00\x00II*\x00" + b"\xff" * 20
    assert np.array_equal(decode_image(JPEG[:2] + broken + JPEG[2:]), decode_image(JPEG))


def test_a_colour_profile_and_a_gamma_change_no_pixel() -> None:
    extra = chunk(b"gAMA", struct.pack(">I", 10_000)) + chunk(b"iCCP", b"x\0\0" + zlib.compress(b"nonsense"))
    assert np.array_equal(decode_image(PNG[:33] + extra + PNG[33:]), PIXELS)


def test_a_text_bomb_is_never_unpacked() -> None:
    bomb = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100_000_000)))
    data = PNG[:33] + bomb + PNG[33:]
    tracemalloc.start()
    assert np.array_equal(decode_image(data), PIXELS)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
@pytest.mark.parametrize("junk", [b"\0", b"junk" * 100, JPEG])
def test_what_follows_a_whole_image_is_ignored(data: bytes, junk: bytes) -> None:
    assert np.array_equal(decode_image(data + junk), decode_image(data))


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
def test_every_truncation_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(BadImageError):
            decode_image(data[:length])


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
def test_a_file_that_lacks_its_end_is_called_truncated(data: bytes) -> None:
    with pytest.raises(BadImageError, match=r"^the \w+ is truncated$"):
        decode_image(data[:-2])


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
def test_truncations_are_refused_also_where_pillow_was_told_to_accept_them(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Many training scripts set this for the whole process; a picture half grey must not reach a teacher.
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for length in range(len(data)):
        with pytest.raises(BadImageError):
            decode_image(data[:length])


@pytest.mark.parametrize("data", [PNG, JPEG, WEBP], ids=["png", "jpeg", "webp"])
@given(place=st.integers(0, 10_000), value=st.integers(0, 255))
def test_damage_raises_our_own_error_or_none(data: bytes, place: int, value: int) -> None:
    damaged = bytearray(data)
    damaged[place % len(data)] = value
    try:
        assert decode_image(bytes(damaged)).dtype == np.uint8
    except InputError as error:
        assert "\n" not in str(error)


def test_a_damaged_png_is_never_another_image() -> None:
    for place in range(len(PNG)):
        damaged = PNG[:place] + bytes([PNG[place] ^ 0x55]) + PNG[place + 1 :]
        try:
            pixels = decode_image(damaged)
        except BadImageError:
            continue
        assert np.array_equal(pixels, PIXELS), place


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"%PDF-1.7\n",
        b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
        b"http://169.254.169.254/",
        *(encoded(picture(), kind) for kind in ("GIF", "BMP", "TIFF", "PPM", "ICO")),
    ],
)
def test_what_is_not_one_of_the_three_formats_is_refused_by_name(data: bytes) -> None:
    with pytest.raises(BadImageError, match="not a PNG, JPEG or WebP image"):
        decode_image(data)


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_per_channel_are_refused(colour: int, samples: int) -> None:
    data = png(2, 1, depth=16, colour=colour, data=b"\0" + bytes(2 * 2 * samples))
    with pytest.raises(BadImageError, match="16 bits per channel"):
        decode_image(data)


def test_a_twelve_bit_jpeg_is_refused() -> None:
    place = JPEG.index(b"\xff\xc0") + 4
    with pytest.raises(BadImageError, match="12 bits per channel"):
        decode_image(JPEG[:place] + b"\x0c" + JPEG[place + 1 :])


def test_animations_are_refused() -> None:
    frames = [picture(np.full((7, 5, 3), level, dtype=np.uint8)) for level in (0, 255)]
    for kind in ("PNG", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(BadImageError, match="animated"):
            decode_image(data)


def test_an_image_over_the_limit_is_refused_from_its_header() -> None:
    jpeg_place = JPEG.index(b"\xff\xc0") + 5
    webp = b"RIFF" + struct.pack("<I", 40) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\xff\0" * 2
    tracemalloc.start()
    for data in (
        png(65_500, 65_500),
        png(9_400, 9_400),
        JPEG[:jpeg_place] + b"\xff\xdc\xff\xdc" + JPEG[jpeg_place + 4 :],
        webp + bytes(60),
    ):
        with pytest.raises(TooLargeError, match="at most 24000000"):
            decode_image(data)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_a_jpeg_that_hides_a_larger_size_is_refused_before_memory_is_taken() -> None:
    # A restart marker has no length; a reader that takes the next two bytes for one jumps over a second header.
    place = JPEG.index(b"\xff\xc0")
    header = JPEG[place : place + 19]
    larger = header[:5] + b"\xff\xdc\xff\xdc" + header[9:]
    hidden = b"\xff\xd0" + struct.pack(">H", 2 + len(larger)) + larger
    tracemalloc.start()
    with pytest.raises(BadImageError, match="two sizes"):
        decode_image(JPEG[: place + 19] + hidden + JPEG[place + 19 :])
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_the_limit_is_the_callers_and_holds_to_the_pixel() -> None:
    assert decode_image(PNG, max_pixels=35).shape == (7, 5, 3)
    with pytest.raises(TooLargeError, match="5 x 7 pixels; at most 34"):
        decode_image(PNG, max_pixels=34)


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
def test_an_image_without_pixels_is_refused(width: int, height: int) -> None:
    with pytest.raises(BadImageError, match="no pixels"):
        decode_image(png(width, height))


def test_one_pixel_is_an_image() -> None:
    assert decode_image(png(1, 1, data=b"\0\x01\x02\x03")).tolist() == [[[1, 2, 3]]]


def test_an_image_with_too_little_data_is_refused_in_our_words() -> None:
    with pytest.raises(BadImageError, match=r"^the PNG is damaged or truncated: it cannot be decoded$") as raised:
        decode_image(png(4, 4, data=b"\0\x01\x02\x03"))
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_a_pil_image_of_more_than_eight_bits_is_refused() -> None:
    for mode in ("I;16", "I", "F"):
        with pytest.raises(BadImageError, match="more than 8 bits"):
            pixels_of_image(Image.new(mode, (2, 2)))


def test_a_pil_palette_with_transparency_becomes_its_colours_and_stays_as_it_was() -> None:
    image = Image.fromarray(np.arange(35, dtype=np.uint8).reshape(7, 5))
    image.putpalette(PIXELS.reshape(-1).tolist())
    image.info["transparency"] = bytes(range(35))
    assert np.array_equal(pixels_of_image(image), PIXELS)
    assert image.info["transparency"] == bytes(range(35))


def test_arrays_are_taken_as_colour_or_grey() -> None:
    assert np.array_equal(pixels_of_array(PIXELS), PIXELS)
    grey = np.repeat(PIXELS[:, :, :1], 3, axis=2)
    assert np.array_equal(pixels_of_array(PIXELS[:, :, 0]), grey)
    assert np.array_equal(pixels_of_array(PIXELS[:, :, :1]), grey)


@pytest.mark.parametrize(
    "array", [PIXELS.astype(np.float32), PIXELS.transpose(2, 0, 1), PIXELS[None], np.zeros((0, 3, 3), np.uint8)]
)
def test_other_arrays_are_refused(array: NDArray[np.generic]) -> None:
    with pytest.raises(BadImageError):
        pixels_of_array(array)


def test_the_decoder_is_named_with_its_version() -> None:
    assert DECODER.startswith("pillow ")
    assert DECODER.split()[1][0].isdigit()
