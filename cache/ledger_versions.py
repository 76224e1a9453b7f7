"""Versions of the ledger's tables: a writer brings an older ledger up, a reader sees it as if it were.

1: counts per run and cache. 2: counts and charges also per owner of the key that asked, owners' budgets, history.
"""

import sqlite3
from pathlib import Path

from cache.payer import LOCAL_OWNER
from shared.errors import InputError

VERSION = 2

COUNTS = """
CREATE TABLE counts (
    owner TEXT NOT NULL, run TEXT NOT NULL, cache INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
    teacher_calls INTEGER NOT NULL DEFAULT 0, hits INTEGER NOT NULL DEFAULT 0, joined INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (owner, run, cache)) WITHOUT ROWID;
"""
CHARGES = """
CREATE TABLE charges (
    owner TEXT NOT NULL, run TEXT NOT NULL, cache INTEGER NOT NULL, chunk INTEGER NOT NULL, bits BLOB NOT NULL,
    PRIMARY KEY (owner, run, cache, chunk)) WITHOUT ROWID;
"""
OWNERS_AND_HISTORY = """
CREATE TABLE owners (name TEXT PRIMARY KEY, budget INTEGER) WITHOUT ROWID;
CREATE TABLE environments (
    id INTEGER PRIMARY KEY, device TEXT NOT NULL, versions TEXT NOT NULL, UNIQUE (device, versions));
CREATE TABLE calls (
    id INTEGER PRIMARY KEY, began INTEGER NOT NULL, duration INTEGER NOT NULL, batch INTEGER NOT NULL,
    owner TEXT NOT NULL, run TEXT NOT NULL, cache INTEGER NOT NULL, images INTEGER NOT NULL, answers INTEGER NOT NULL,
    environment INTEGER NOT NULL);
"""
TABLES = COUNTS + CHARGES + OWNERS_AND_HISTORY
"""What version 2 has in place of, or beside, the tables of version 1."""

# Who asked before there were owners, asked without a key of a name.
MIGRATION = f"""
BEGIN IMMEDIATE;
ALTER TABLE counts RENAME TO counts_of_1;
ALTER TABLE charges RENAME TO charges_of_1;
{TABLES}
INSERT INTO counts (owner, run, cache, attempts, teacher_calls, hits, joined)
    SELECT '{LOCAL_OWNER}', run, cache, attempts, teacher_calls, hits, joined FROM counts_of_1;
INSERT INTO charges (owner, run, cache, chunk, bits) SELECT '{LOCAL_OWNER}', run, cache, chunk, bits FROM charges_of_1;
DROP TABLE counts_of_1;
DROP TABLE charges_of_1;
INSERT INTO meta VALUES ('ledger', {VERSION});
COMMIT;
"""  # noqa: S608 - our own constants
# Views of the connection alone: the file may be on a read-only volume.
VIEWS = f"""
PRAGMA temp_store = MEMORY;
CREATE TEMP VIEW counts AS
    SELECT '{LOCAL_OWNER}' AS owner, run, cache, attempts, teacher_calls, hits, joined FROM main.counts;
CREATE TEMP VIEW charges AS SELECT '{LOCAL_OWNER}' AS owner, run, cache, chunk, bits FROM main.charges;
CREATE TEMP VIEW owners AS SELECT '' AS name, NULL AS budget WHERE 0;
CREATE TEMP VIEW environments AS SELECT 0 AS id, '' AS device, '{{}}' AS versions WHERE 0;
CREATE TEMP VIEW calls AS
    SELECT 0 AS id, 0 AS began, 0 AS duration, 0 AS batch, '' AS owner, '' AS run, 0 AS cache, 0 AS images,
    0 AS answers, 0 AS environment WHERE 0;
"""  # noqa: S608 - our own constants


def check_version(database: sqlite3.Connection, *, path: Path) -> int:
    """The version of a ledger; raises `InputError` for one of a later teachonce."""
    found = database.execute("SELECT value FROM meta WHERE name = 'ledger'").fetchone()
    version = 1 if found is None else int(found[0])
    if version > VERSION:
        raise InputError(
            f"the ledger of {path} has version {version}; this version of teachonce knows up to {VERSION}: "
            "use the one that wrote it, or a later one"
        )
    return version


def migrate(database: sqlite3.Connection, *, path: Path) -> None:
    """Bring a ledger up to `VERSION`, in one transaction; nothing that it counted is lost."""
    if check_version(database, path=path) < VERSION:
        database.executescript(MIGRATION)


def show_as_current(database: sqlite3.Connection, *, path: Path) -> None:
    """Let a reader of an older ledger ask for what `VERSION` has; nothing is written."""
    if check_version(database, path=path) < VERSION:
        database.executescript(VIEWS)
