"""The folder of one sweep.

OUT/sweep.json  results.jsonl  recipe.json  asked.json  server.log
OUT/rows/  teacher/  first/  cache/  runs/CELL/seedS/lrL/
"""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from cache.atomic_file import read_json, write_atomic, write_json
from cache.layout import LEDGER, LOCK
from cache.lock import WriterLock
from shared.errors import CacheLockedError, IdentityError, InputError
from student_trainer.selecting import LOOKING
from student_trainer.sweep.asking import Asked
from student_trainer.sweep.recipe import Recipe

RECIPE, SWEEP, RESULTS, ASKED = "recipe.json", "sweep.json", "results.jsonl", "asked.json"
CACHE = "cache"
GROWING = ("budgets", "seeds", "losses")
"""Keys that may gain values later: what was trained before stays as it was."""
FREE = ("question", "download")
FREE_OF_TEACHER = ("server", "api_key_file")
"""Keys that decide no number. Who answered is held to by its id, wherever it is served."""


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
            self._recipe = recipe.resolved() | {"data_fingerprint": data}
            self._compare(recipe)
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
        if item.name == LOCK or item.name.startswith(RECIPE):
            return True
        return item == self.cache and {inner.name for inner in item.iterdir()} <= {"index"}

    def _compare(self, recipe: Recipe) -> None:
        """Hold the recipe to the one that the folder began with; where nothing was asked yet, begin again."""
        path = self.path / RECIPE
        before = read_json(path) if path.exists() else None
        different = [] if before is None else differing(before, self._recipe)
        if before is not None and not different and LOOKING.keys() & set(recipe.select):
            least = min(before["budgets"])
            if min(recipe.budgets) < least:
                different = [f"the smallest budget was {least}, and the first student was trained on its images"]
        if different and ((self.cache / LEDGER).exists() or self.runs.exists()):
            raise IdentityError(
                f"{self.path} holds a sweep of another recipe: {'; '.join(different)}; give the recipe that it"
                " began with (budgets, seeds and losses may be added), or choose another --out"
            )
        if before is not None and different:
            self._begin_again(before)
        if before is None or different:
            self.keep_recipe()

    def _begin_again(self, before: Mapping[str, Any]) -> None:
        """Drop what another recipe drew; its teacher only where it is another one."""
        parts = [self.rows, self.path / "first"]
        same_teacher = all(before[key] == self._recipe[key] for key in ("dataset", "data_fingerprint"))
        if not same_teacher or any(before["teacher"][key] != self._recipe["teacher"][key] for key in ("spec", "train")):
            parts.append(self.path / "teacher")
        for part in parts:
            shutil.rmtree(part, ignore_errors=True)

    def keep_recipe(self) -> None:
        """Remember the recipe, which may have grown: from here on the folder is held to it."""
        write_json(self.path / RECIPE, self._recipe)

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
    for key in sorted((before.keys() | now.keys()) - set(FREE)):
        old, new = before.get(key), now.get(key)
        if key == "teacher":
            old, new = _without(old or {}, FREE_OF_TEACHER), _without(new or {}, FREE_OF_TEACHER)
        if old == new or (key in GROWING and all(value in (new or ()) for value in old or ())):
            continue
        found.append(f"{key} was {_short(old)}, is {_short(new)}")
    return found


def _without(record: Mapping[str, Any], keys: Collection[str]) -> dict[str, Any]:
    """A record less some of its keys; whether they were set is kept."""
    return {key: value is not None if key in keys else value for key, value in record.items()}


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, allow_nan=False).encode() + b"\n"
