"""The folder of one sweep.

OUT/sweep.json  results.jsonl  recipe.json  asked.json  server.log
OUT/rows/  teacher/  first/  cache/  runs/CELL/seedS/lrL/
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cache.atomic_file import read_json, write_atomic, write_json
from cache.layout import LOCK
from cache.lock import WriterLock
from shared.errors import CacheLockedError, IdentityError, InputError
from student_trainer.sweep.asking import Asked
from student_trainer.sweep.recipe import Recipe

RECIPE, SWEEP, RESULTS, ASKED = "recipe.json", "sweep.json", "results.jsonl", "asked.json"
CACHE = "cache"
GROWING = ("budgets", "seeds", "losses")
"""Keys that may gain values later: what was trained before stays as it was."""


class SweepFolder:
    """Where one sweep keeps what it did; locked while this object lives."""

    def __init__(self, path: Path, *, recipe: Recipe, data: str) -> None:
        """Make the folder, or go on in it; ``data`` is the fingerprint of what is trained on.

        Raises InputError, IdentityError naming the keys that differ, and CacheLockedError.
        """
        # Run folders remember the paths of their rows and answers: the same however OUT is written.
        self.path = path.absolute()
        self._check_ours()
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = WriterLock(self.path)
        except CacheLockedError as error:
            raise CacheLockedError(f"another sweep is at work in it: {error}") from error
        try:
            self._adopt(recipe, data=data)
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Let the next sweep in."""
        self._lock.release()

    @property
    def cache(self) -> Path:
        """Answers that this sweep asked for."""
        return self.path / CACHE

    @property
    def rows(self) -> Path:
        """Files of rows."""
        return self.path / "rows"

    @property
    def runs(self) -> Path:
        """Folders of the trials."""
        return self.path / "runs"

    def _check_ours(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; choose another --out")
        if not self.path.exists() or (self.path / RECIPE).exists():
            return
        if any(not self._is_first(item) for item in self.path.iterdir()):
            raise InputError(f"{self.path} holds something that is no sweep; choose another --out")

    def _is_first(self, item: Path) -> bool:
        """Whether a sweep writes this before it says what it is: its lock, and the keys of image files."""
        return item.name == LOCK or (item == self.cache and {inner.name for inner in item.iterdir()} <= {"index"})

    def _adopt(self, recipe: Recipe, *, data: str) -> None:
        path, now = self.path / RECIPE, recipe.resolved() | {"data_fingerprint": data}
        if path.exists():
            different = differing(read_json(path), now)
            if different:
                raise IdentityError(
                    f"{self.path} holds a sweep of another recipe: {'; '.join(different)}; give the recipe that it"
                    " began with (budgets, seeds and losses may be added), or choose another --out"
                )
        write_json(path, now)

    def asked(self) -> Asked | None:
        """What asking led to, where all was asked."""
        path = self.path / ASKED
        return Asked.read(read_json(path)) if path.exists() else None

    def keep_asked(self, asked: Asked) -> None:
        """Remember it: no second start asks again."""
        write_json(self.path / ASKED, asked.attributes())

    def keep_sweep(self, header: Mapping[str, Any]) -> None:
        """Write sweep.json."""
        write_json(self.path / SWEEP, header)

    def keep_results(self, rows: list[dict[str, Any]]) -> None:
        """Write results.jsonl anew."""
        write_atomic(self.path / RESULTS, [_line(row) for row in rows])

    def add_result(self, row: Mapping[str, Any]) -> None:
        """Append a line to results.jsonl."""
        with (self.path / RESULTS).open("ab") as stream:
            stream.write(_line(row))


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Keys in which a recipe changed, each with both values; gained budgets, seeds and losses are no change."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if old == new or (key in GROWING and all(value in (new or ()) for value in old or ())):
            continue
        found.append(f"{key} was {_short(old)}, is {_short(new)}")
    return found


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"
