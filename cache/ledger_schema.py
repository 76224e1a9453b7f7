"""The tables of the ledger, and how its file is opened."""

import errno
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cache.atomic_file import sync_folder
from cache.layout import DATA, FORMAT, LEDGER
from cache.ledger_versions import TABLES, VERSION, migrate, show_as_current
from shared.errors import CorruptCacheError, DiskFullError, InputError, StorageError, TeachonceError

log = logging.getLogger(__name__)

SLOT_BITS = 40
"""A place is one number: cache * 2**40 + slot."""

SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE caches (
    id INTEGER PRIMARY KEY, teacher TEXT NOT NULL, dataset TEXT NOT NULL, teacher_attributes TEXT NOT NULL,
    dataset_attributes TEXT NOT NULL, outputs TEXT NOT NULL, folded INTEGER NOT NULL DEFAULT 0,
    UNIQUE (teacher, dataset));
CREATE TABLE journal (
    place INTEGER PRIMARY KEY, row INTEGER NOT NULL, view INTEGER NOT NULL, label INTEGER NOT NULL,
    key BLOB NOT NULL, answers BLOB NOT NULL);
CREATE TABLE aliases (place INTEGER PRIMARY KEY, canonical INTEGER NOT NULL);
CREATE TABLE runs (name TEXT PRIMARY KEY, budget INTEGER) WITHOUT ROWID;
INSERT INTO runs VALUES ('default', NULL);
INSERT INTO meta VALUES ('budget', NULL);
"""
"""``aliases`` holds slots whose key this teacher had answered before, with the place of that first answer. What was
counted for whom is in the tables of `ledger_versions`: ``charges`` has one bit per first answer that a payer consumed,
8192 slots to a row, ``calls`` one row per model batch."""


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open the ledger of the cache at ``path`` for writing, creating it if absent. The caller holds the lock."""
    with sqlite_errors(path / LEDGER):
        database = sqlite3.connect(path / LEDGER, isolation_level=None, check_same_thread=False)
        try:
            _prepare(database, path=path)
        except BaseException:
            database.close()
            raise
        sync_folder(path)
    return database


def empty_log(database: sqlite3.Connection, *, ledger: Path) -> None:
    """Move what is in the write-ahead log into the file; where that fails, nothing is lost and the log stays."""
    try:
        with sqlite_errors(ledger):
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    except (DiskFullError, StorageError) as error:
        log.warning("the write-ahead log stays: %s", error)


def connect_reader(path: Path) -> sqlite3.Connection | None:
    """Open the ledger of the cache at ``path`` without ever writing, also while a server writes it.

    None where there is none, or none that can be read so, such as a write-ahead log on a read-only volume.
    """
    ledger = path / LEDGER
    # Without a write-ahead log nobody writes, and SQLite is kept from creating one: the folder may be read-only.
    mode = "ro" if ledger.with_name(LEDGER + "-wal").exists() else "ro&immutable=1"
    with sqlite_errors(ledger):
        try:
            return _open_reader(f"{ledger.resolve().as_uri()}?mode={mode}", path=path)
        except sqlite3.OperationalError as error:
            if _primary_code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            return None


def _prepare(database: sqlite3.Connection, *, path: Path) -> None:
    database.execute("PRAGMA busy_timeout = 10000")
    empty = not _has_tables(database)
    # Data comes after the ledger: beside data, an empty one has lost its counts and must not start over.
    if not empty or (path / DATA).exists():
        check_format(database, path=path)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    if empty:
        # One transaction: the ledger of an interrupted first start is empty and made anew.
        database.executescript(f"BEGIN IMMEDIATE; {SCHEMA} {TABLES}")
        database.execute("INSERT INTO meta VALUES ('format', ?)", (FORMAT,))
        database.execute("INSERT INTO meta VALUES ('ledger', ?)", (VERSION,))
        # Tells two ledgers apart, and a copy from a stranger: what was merged once is not counted twice.
        database.execute("INSERT INTO meta VALUES ('id', ?)", (uuid4().hex,))
        database.execute("COMMIT")
    migrate(database, path=path)


def _has_tables(database: sqlite3.Connection) -> bool:
    return bool(database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])


def _open_reader(uri: str, *, path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA busy_timeout = 10000")
        check_format(database, path=path)
        show_as_current(database, path=path)
    except BaseException:
        database.close()
        raise
    return database


def check_format(database: sqlite3.Connection, *, path: Path) -> None:
    """Raise `InputError` for a ledger of another format version, `CorruptCacheError` for an empty one."""
    if not _has_tables(database):
        raise CorruptCacheError(f"{path / LEDGER} is empty: restore it from a copy of the cache")
    found = database.execute("SELECT value FROM meta WHERE name = 'format'").fetchone()
    if found is None or found[0] != FORMAT:
        version = "none" if found is None else found[0]
        raise InputError(f"{path} has format {version}; this version of teachonce reads and writes format {FORMAT}")


@contextmanager
def sqlite_errors(ledger: Path) -> Iterator[None]:
    """Say what an SQLite error means for the user."""
    try:
        yield
    except sqlite3.Error as error:
        code = _primary_code(error)
        if code == sqlite3.SQLITE_FULL:
            raise DiskFullError(f"no room to write {ledger}; nothing was lost: make room and try again") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise CorruptCacheError(f"{ledger} is damaged ({error}): restore it from a copy of the cache") from error
        kind = TeachonceError if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) else StorageError
        raise kind(f"{ledger} cannot be used: {error}; check the disk and its permissions") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(f"no room to write {ledger}; nothing was lost: make room and try again") from error
        raise


def _primary_code(error: sqlite3.Error) -> int:
    """Without the extended part that says where it happened."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
