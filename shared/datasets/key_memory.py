"""Keys of image files, remembered by the files' size, time and bytes, so that a big folder is decoded once.

One NumPy archive per folder. It is only ever a shortcut: what cannot be read, or was made by another decoder, is
computed again. Shape key: N files.
"""

import hashlib
import logging
import os
import time
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from shared.identity import KEY_BYTES

logger = logging.getLogger(__name__)

FORMAT = "keys-1"
SETTLED_NS = 2_000_000_000
"""A file younger than this when it was read may change again within one tick of its time stamp."""
UNSETTLED = -1


class KeyMemory:
    """File name -> (size, time, SHA-256 of the bytes, key); without a path it forgets.

    One thread may write while others look keys up; several processes may share a folder.
    """

    def __init__(self, path: Path | None, *, identity: str) -> None:
        self._path = path
        self._identity = identity
        self._entries: dict[str, tuple[int, int, bytes, bytes]] = {}
        self._changed = False
        self._load()
        self._key_by_digest = {digest: key for _, _, digest, key in self._entries.values()}

    @classmethod
    def for_folder(cls, index_dir: Path | None, *, folder: Path, decoder: str, view_policy: str) -> "KeyMemory":
        """The memory of one folder of images."""
        identity = f"{FORMAT} {decoder} {view_policy}"
        if index_dir is None:
            return cls(None, identity=identity)
        # The folder's full path is in the file's name only; moved data is decoded once more.
        name = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:24]
        return cls(index_dir / f"{name}.npz", identity=identity)

    def by_stat(self, name: str, *, stat: os.stat_result) -> bytes | None:
        """The key, if the file has the size and time it had."""
        entry = self._entries.get(name)
        return entry[3] if entry and entry[:2] == (stat.st_size, stat.st_mtime_ns) else None

    def by_digest(self, digest: bytes) -> bytes | None:
        """The key of these file bytes (SHA-256), in whatever file they were seen."""
        return self._key_by_digest.get(digest)

    def remember(self, name: str, *, stat: os.stat_result, digest: bytes, key: bytes) -> None:
        """Keep a key; ``stat`` was taken before the file was read."""
        settled = time.time_ns() - stat.st_mtime_ns > SETTLED_NS
        entry = (stat.st_size, stat.st_mtime_ns if settled else UNSETTLED, digest, key)
        if self._entries.get(name) != entry:
            self._entries[name] = entry
            self._key_by_digest[digest] = key
            self._changed = True

    def save(self) -> None:
        """Write what is new, whole or not at all; a place that cannot be written is a logged warning."""
        if self._path is None or not self._changed:
            return
        entries = list(self._entries.values())
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.savez(
                    file,
                    identity=np.array(self._identity),
                    names=_bytes(b"\0".join(os.fsencode(name) for name in self._entries)),
                    stats=np.array([entry[:2] for entry in entries], dtype=np.int64),
                    digests=_bytes(b"".join(entry[2] for entry in entries)).reshape(-1, KEY_BYTES),
                    keys=_bytes(b"".join(entry[3] for entry in entries)).reshape(-1, KEY_BYTES),
                )
            partial.replace(self._path)
        except OSError as error:
            logger.warning("cannot remember keys in %s (%s); they are computed again next time", self._path, error)
            return
        self._changed = False

    def _load(self) -> None:
        if self._path is None:
            return
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                if str(archive["identity"]) == self._identity:
                    self._take(names=archive["names"].tobytes(), stats_N2=archive["stats"], archive=archive)
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            logger.warning("the remembered keys in %s cannot be read (%s); computing them again", self._path, error)
            self._entries = {}

    def _take(self, *, names: bytes, stats_N2: NDArray[np.int64], archive: "np.lib.npyio.NpzFile") -> None:
        digests = [row.tobytes() for row in archive["digests"]]
        keys = [row.tobytes() for row in archive["keys"]]
        files = [os.fsdecode(name) for name in names.split(b"\0")]
        if {len(item) for item in (*digests, *keys)} != {KEY_BYTES}:
            raise ValueError("entries of a wrong width")
        stats = [(int(size), int(changed)) for size, changed in stats_N2.tolist()]
        rows = zip(files, stats, digests, keys, strict=True)
        self._entries = {name: (*stat, digest, key) for name, stat, digest, key in rows}


def _bytes(data: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8)
