"""Folders that a transaction moves: written down with it, done after it, finished by the next writer after a crash."""

import shutil
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from cache.atomic_file import make_folders, sync_folder
from cache.layout import DATA, DOCUMENT
from cache.upkeep import has_table

STAGING = "staging"
"""Folder in a cache for what is built before it is swapped in; beside the data, so that no Zarr library sees it."""

Move = tuple[str, str]
"""From, to: folders within the cache. What is moved into `STAGING` is deleted in the end."""


def plan_moves(database: sqlite3.Connection, moves: Iterable[Move]) -> None:
    """Within a transaction: folders to be moved once it is durable, in this order."""
    database.execute(
        "CREATE TABLE IF NOT EXISTS moves (id INTEGER PRIMARY KEY, source TEXT NOT NULL, target TEXT NOT NULL)"
    )
    database.executemany("INSERT INTO moves (source, target) VALUES (?, ?)", list(moves))


def pending_moves(database: sqlite3.Connection) -> list[Move]:
    """Moves that are planned and not known to be done."""
    if not has_table(database, "moves"):
        return []
    return list(database.execute("SELECT source, target FROM moves ORDER BY id"))


def finish_moves(path: Path, *, database: sqlite3.Connection) -> None:
    """Do what is planned in the cache at ``path``; what was done before a crash is not done again."""
    moves = pending_moves(database)
    for source, target in moves:
        # Where the target is there already, this move was made: its source is what a later move put in its place.
        if (path / source).exists() and not (path / target).exists():
            make_folders((path / target).parent)
            (path / source).rename(path / target)
            sync_folder((path / target).parent)
            sync_folder((path / source).parent)
    if moves:
        shutil.rmtree(path / STAGING, ignore_errors=True)
        _prune(path / DATA)
        database.execute("DELETE FROM moves")


def _prune(root: Path) -> None:
    """Groups that hold nothing any more, but for the root."""
    for folder in sorted(root.glob("*/*"), reverse=True) + sorted(root.glob("*"), reverse=True):
        if folder.is_dir() and [entry.name for entry in folder.iterdir()] in ([], [DOCUMENT]):
            shutil.rmtree(folder)
            sync_folder(folder.parent)
