"""CRC-32C of the ledger's file while nobody writes it: SQLite itself notices few flipped bits.

The seal stands beside the ledger from a writer's orderly end to the next writer's start; a crash leaves none.
"""

from pathlib import Path

import google_crc32c

from cache.atomic_file import disk_full_named, read_json, sync_folder, write_json
from cache.layout import LEDGER
from shared.errors import CorruptCacheError

SEAL = "ledger.crc32c.json"
READ_BYTES = 2**20


def seal_ledger(path: Path) -> None:
    """Write down what the ledger of the cache at ``path`` is; it is closed, and its write-ahead log gone."""
    if not (path / (LEDGER + "-wal")).exists():
        write_json(path / SEAL, _summary(path / LEDGER))


def check_seal(path: Path) -> None:
    """Raise `CorruptCacheError` where the ledger differs from its seal; without one there is nothing to compare."""
    seal = path / SEAL
    if seal.is_file() and (path / LEDGER).is_file() and read_json(seal) != _summary(path / LEDGER):
        raise CorruptCacheError(
            f"{path / LEDGER} is damaged (it differs from {SEAL}): restore it from a copy of the cache"
        )


def break_seal(path: Path) -> None:
    """Check the seal, then remove it durably: the ledger is about to be written."""
    check_seal(path)
    seal = path / SEAL
    if seal.exists():
        with disk_full_named(seal):
            seal.unlink()
        sync_folder(path)


def _summary(ledger: Path) -> dict[str, int]:
    checksum = 0
    with ledger.open("rb") as file:
        while data := file.read(READ_BYTES):
            checksum = int(google_crc32c.extend(checksum, data))
    return {"bytes": ledger.stat().st_size, "crc32c": checksum}
