"""Folders of images: ``SPLIT/CLASS/FILE``, rows in the order of torchvision's ImageFolder.

Shape key: N rows.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import ImageDataset, SplitFacts
from shared.datasets.key_memory import KeyMemory
from shared.datasets.source import SplitSource
from shared.errors import BadImageError, IdentityError, InputError, TooLargeError
from shared.identity import KEY_BYTES, pixel_key
from shared.pixels import DECODER, decode_image

logger = logging.getLogger(__name__)

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp")
"""Files with these endings, in any case, are images; others are counted in a warning."""
VIEW_POLICY = "crop4flip"
TINY_FILE_BYTES = 16_384
THREAD_ROWS = 64
"""Files that a thread works off before it hands over their keys."""


class FolderSource(SplitSource):
    """A folder that holds one folder per split, each with one folder per class."""

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """Split name -> folder; the training split first."""
        base = Path(self.spec.argument)
        folders = split_folders(base)
        if not folders and any(is_image_name(entry.name) for entry in _entries(base)):
            raise InputError(
                f"images lie directly in {base}, so nothing says their classes: put them into one folder per class, "
                f"{base}/CLASS/FILE, or name the folder above if {base.name} is a class"
            )
        if not folders:
            raise InputError(
                f"no images below {base}: expected {base}/CLASS/FILE or {base}/SPLIT/CLASS/FILE with files ending in "
                f"{', '.join(EXTENSIONS)}"
            )
        return folders

    @property
    def splits(self) -> tuple[str, ...]:
        """Every folder that holds class folders."""
        return tuple(self._folders)

    def open(self, split: str) -> ImageDataset:
        """List one split's files; images are decoded as they are asked for.

        Classes are those of ``train`` where there is one, else the split's own. Raises `InputError` for a class that
        the training split lacks.
        """
        folder = self._folders[self.check_split(split)]
        own = [child.name for child in subfolders(folder)]
        train = self._folders.get("train", folder)
        classes = [child.name for child in subfolders(train)]
        unknown = sorted(set(own) - set(classes))
        if unknown:
            raise InputError(
                f"data set {self.split_name(split)} has a class {unknown[0]!r} that its training split {train} lacks"
            )
        label_of = {name: label for label, name in enumerate(classes)}
        rows = [(file, label_of[name]) for name in own for file in class_files(folder, name=name)]
        facts = SplitFacts(
            name=self.split_name(split),
            classes=classes,
            labels=[label for _, label in rows],
            view_policy=VIEW_POLICY,
            decoder=DECODER,
            statistics_from=None if folder == train else lambda: self.open("train"),
        )
        return FolderDataset(facts, folder=folder, files=[file for file, _ in rows], index_dir=self.options.index_dir)


class FolderDataset(ImageDataset):
    """Image files, decoded one by one as they are asked for."""

    def __init__(self, facts: SplitFacts, *, folder: Path, files: list[str], index_dir: Path | None) -> None:
        super().__init__(facts)
        self._folder = folder
        self._files = files
        self._index_dir = index_dir

    def _load(self, row: int) -> NDArray[np.uint8]:
        """Decode a file; `BadImageError` names it, `IdentityError` says that it changed since its key was computed."""
        pixels_HW3 = self._decode(row, data=self._read(row))
        if self._keys is not None and pixel_key(pixels_HW3) != self._keys[row].tobytes():
            raise IdentityError(
                f"{self._name(row)} (row {row} of {self.name}) is not the image its key was made from: "
                f"start again to read the folder anew{self._memory_hint()}"
            )
        return pixels_HW3

    def _memory_hint(self) -> str:
        return f" (after deleting {self._index_dir}, if the file kept its size and time)" if self._index_dir else ""

    def _name(self, row: int) -> str:
        return f"{self._folder}{os.sep}{self._files[row]}"

    def _read(self, row: int) -> bytes:
        try:
            with open(self._name(row), "rb") as file:  # noqa: PTH123 - in a loop over all files, Path costs twice the time
                return file.read()
        except OSError as error:
            raise self._unreadable(row, error) from error

    def _unreadable(self, row: int, error: OSError) -> BadImageError:
        return BadImageError(f"cannot read {self._name(row)} (row {row} of {self.name}): {error.strerror}")

    def _decode(self, row: int, *, data: bytes) -> NDArray[np.uint8]:
        try:
            return decode_image(data)
        except (BadImageError, TooLargeError) as error:
            raise BadImageError(f"{self._name(row)} (row {row} of {self.name}): {error}") from error

    def _compute_keys(self) -> NDArray[np.uint8]:
        memory = KeyMemory.for_folder(
            self._index_dir, folder=self._folder, decoder=DECODER, view_policy=self.own_policy
        )
        stats = [self._stat(row) for row in range(self.num_rows)]
        keys = [memory.by_stat(file, stat=stat) for file, stat in zip(self._files, stats, strict=True)]
        unknown = [row for row, key in enumerate(keys) if key is None]
        logger.info("keys of %s: %d remembered, %d to compute", self.name, len(keys) - len(unknown), len(unknown))
        parts = [unknown[first : first + THREAD_ROWS] for first in range(0, len(unknown), THREAD_ROWS)]
        decoded = 0
        try:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                # Decoding leaves Python's lock: photographs gain from threads, tiny files lose (0.24 to 0.18 ms each).
                tiny = sum(stats[row].st_size for row in unknown) < TINY_FILE_BYTES * len(unknown)
                each = (map if tiny else pool.map)(partial(self._file_keys, memory=memory), parts)
                for part, results in zip(parts, each, strict=True):
                    for row, (digest, key, was_decoded) in zip(part, results, strict=True):
                        keys[row] = key
                        decoded += was_decoded
                        memory.remember(self._files[row], stat=stats[row], digest=digest, key=key)
        finally:
            memory.save()  # also before an error: a bad file near the end must not cost the work so far
        logger.info("keys of %s: %d files decoded", self.name, decoded)
        return np.frombuffer(b"".join(key for key in keys if key), dtype=np.uint8).reshape(-1, KEY_BYTES)

    def _stat(self, row: int) -> os.stat_result:
        try:
            return os.stat(self._name(row))  # noqa: PTH116 - the same
        except OSError as error:
            raise self._unreadable(row, error) from error

    def _file_keys(self, rows: Sequence[int], *, memory: KeyMemory) -> list[tuple[bytes, bytes, bool]]:
        """(SHA-256 of the file, key, whether the file had to be decoded) of every row."""
        found = []
        for row in rows:
            data = self._read(row)
            digest = hashlib.sha256(data).digest()
            known = memory.by_digest(digest)
            found.append((digest, known or pixel_key(self._decode(row, data=data)), known is None))
        return found


def subfolders(folder: Path) -> list[Path]:
    """Folders right below, sorted by name; hidden ones, such as a notebook's checkpoints, are none."""
    return sorted(Path(entry.path) for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith("."))


def split_folders(base: Path) -> dict[str, Path]:
    """Lower-cased name -> folder of every split: a folder whose folders hold images. The training split is first."""
    splits = {folder.name.lower(): folder for folder in subfolders(base) if is_split_folder(folder)}
    return dict(sorted(splits.items(), key=lambda item: (item[0] != "train", item[0])))


def is_split_folder(folder: Path) -> bool:
    """Whether image files lie in the folders right below."""
    return any(is_image_name(entry.name) for child in subfolders(folder) for entry in _entries(child))


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError:
        logger.warning("%s: may not be read, passed over", folder)
    except (FileNotFoundError, NotADirectoryError):
        pass
    return []


def _raise(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image."""
    return name.lower().endswith(EXTENSIONS) and not name.startswith(".")


def class_files(folder: Path, *, name: str) -> Iterator[str]:
    """Image files of one class, by path relative to ``folder``: sorted folders, then sorted names."""
    ignored = found = 0
    for place, _, files in sorted(os.walk(folder / name, followlinks=True, onerror=_raise)):
        for file in sorted(files):
            if is_image_name(file):
                found += 1
                yield os.path.relpath(Path(place) / file, folder)
            else:
                ignored += 1
    if ignored:
        logger.warning("%s: ignored %d files that do not end in %s", folder / name, ignored, ", ".join(EXTENSIONS))
    if not found:
        logger.warning("%s: a class folder without images", folder / name)
