"""CRC-32C of what was folded, kept beside each array per segment of slots, so that a rewritten tail stays checkable."""

from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from cache.atomic_file import read_json, write_json
from cache.layout import AnyArray
from shared.errors import CorruptCacheError

CHECKSUMS = "crc32c.json"
"""In the array's folder: a stray file in a group's folder makes Zarr libraries warn."""


COLUMNS = ["first", "end", "crc32c"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Slots [first, end) of one array."""

    first: int
    end: int
    crc32c: int
    """Over the slots' bytes as they lie on disk."""


def crc32c(values: AnyArray) -> int:
    """CRC-32C of an array's bytes."""
    return int(google_crc32c.value(values.tobytes()))


def read_segments(folder: Path) -> list[Segment]:
    """Segments of the array in ``folder``, in slot order."""
    path = folder / CHECKSUMS
    if not path.is_file():
        return []
    try:
        document = read_json(path)
        if document["columns"] != COLUMNS:
            raise ValueError(document["columns"])
        return [Segment(*(int(number) for number in entry)) for entry in document["segments"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptCacheError(f"{path} lists no segments; restore it from a copy of the cache") from error


def write_segments(folder: Path, segments: list[Segment]) -> None:
    """Replace the segments of the array in ``folder``."""
    entries = [[segment.first, segment.end, segment.crc32c] for segment in segments]
    write_json(folder / CHECKSUMS, {"columns": COLUMNS, "segments": entries})


def add_segment(folder: Path, *, first: int, values: AnyArray) -> None:
    """Add the segment that starts at slot ``first``; what an interrupted fold left beyond it is dropped."""
    segment = Segment(first, first + len(values), crc32c(values))
    write_segments(folder, [*(old for old in read_segments(folder) if old.end <= first), segment])


def drop_segments(folder: Path, *, beyond: int) -> None:
    """Forget segments of slots that were never committed to the folded part."""
    segments = read_segments(folder)
    kept = [segment for segment in segments if segment.end <= beyond]
    if kept != segments:
        write_segments(folder, kept)


def check_segments(folder: Path, *, first: int, values: AnyArray) -> None:
    """Compare slots [first, first + len(values)) with their checksums; raises `CorruptCacheError`.

    Every segment that starts in the range must end in it.
    """
    end = first + len(values)
    checked = first
    for segment in read_segments(folder):
        if not first <= segment.first < end:
            continue
        if segment.first != checked or segment.end > end:
            break
        if crc32c(values[segment.first - first : segment.end - first]) != segment.crc32c:
            raise CorruptCacheError(
                f"slots {segment.first} to {segment.end - 1} of {folder} differ from their checksum: "
                "restore the array from a copy of the cache"
            )
        checked = segment.end
    if checked != end:
        raise CorruptCacheError(f"{folder} has no checksum for slots {checked} to {end - 1}: restore it from a copy")
