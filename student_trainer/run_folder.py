"""The folder of one run: its configuration, metrics, state for resuming, and results.

RUN/config.json  metrics.jsonl  results.json  rows.npy  state.pt  best.safetensors  last.safetensors  tensorboard/
"""

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from shared.errors import CorruptCacheError, IdentityError, InputError

CONFIG, METRICS, RESULTS, ROWS, STATE = "config.json", "metrics.jsonl", "results.json", "rows.npy", "state.pt"


def forget_unbegun(path: Path) -> None:
    """Remove a run folder that was left before it said what it is."""
    if path.exists() and not (path / CONFIG).exists():
        shutil.rmtree(path)


class RunFolder:
    """Where one run keeps what it did. Files appear complete or not at all."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def check_free(self, *, resume: bool) -> None:
        """Raise InputError where the folder is in use and ``resume`` is not set; before any work is done."""
        if (self.path / CONFIG).exists():
            if not resume:
                raise InputError(f"{self.path} already holds a run: continue it with --resume, or choose another --out")
        elif self.path.exists() and (not self.path.is_dir() or self._foreign()):
            raise InputError(f"{self.path} exists and is not a run; choose another --out")

    def _foreign(self) -> bool:
        # Rows fetched for this run lie in it before it begins.
        return any(item.name not in {"cache", "index"} for item in self.path.iterdir())

    def enter(self, record: Mapping[str, Any], *, resume: bool) -> None:
        """Create the folder, or check that it holds the run that ``record`` describes.

        ``record["settings"]`` decides the result. Raises InputError for a folder in use without ``resume``, and
        IdentityError naming the settings in which a resumed run differs.
        """
        self.check_free(resume=resume)
        config_path = self.path / CONFIG
        if config_path.exists():
            self._check_same(_read_json(config_path), record)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        self._write_json(CONFIG, record)

    def _check_same(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        before, now = old.get("settings", {}), json.loads(json.dumps(new["settings"]))
        different = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        if different:
            named = ", ".join(f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in different)
            raise IdentityError(
                f"cannot resume {self.path}: {named}; give the settings of {CONFIG}, or choose another --out"
            )

    def save_rows(self, rows: NDArray[np.int64]) -> None:
        """Keep the training rows, in order."""
        with self._replacing(ROWS) as temporary, temporary.open("wb") as stream:
            np.save(stream, rows)

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Keep what a resumed run needs, in the place of the state before."""
        with self._replacing(STATE) as temporary:
            torch.save(dict(state), temporary)

    def load_state(self) -> dict[str, Any] | None:
        """The last state on the CPU, or None; reading it runs no pickled code."""
        path = self.path / STATE
        if not path.exists():
            return None
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
            raise CorruptCacheError(f"cannot read {path}: it is damaged; remove it to start this run again") from error
        return dict(state)

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Add one line to metrics.jsonl."""
        with (self.path / METRICS).open("a") as stream:
            stream.write(json.dumps(metrics) + "\n")

    def keep_metrics(self, *, epochs: int) -> None:
        """Drop the lines of epochs that will be run again."""
        path = self.path / METRICS
        lines = path.read_text().splitlines() if path.exists() else []
        with self._replacing(METRICS) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines[:epochs]))

    def save_results(self, results: Mapping[str, Any]) -> None:
        """Write results.json: from now on the run is finished."""
        self._write_json(RESULTS, results)

    def load_results(self) -> dict[str, Any] | None:
        """The results of a finished run, or None."""
        path = self.path / RESULTS
        return _read_json(path) if path.exists() else None

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        with self._replacing(name) as temporary:
            temporary.write_text(json.dumps(value, indent=2) + "\n")

    def _replacing(self, name: str) -> "_Replacing":
        return _Replacing(self.path / name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise CorruptCacheError(f"cannot read {path}: it is damaged; remove it to start this run again") from error


class _Replacing:
    """A temporary file that takes the place of ``path`` when its writer ends without an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(path.name + ".partial")

    def __enter__(self) -> Path:
        return self._temporary

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        with self._temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        self._temporary.replace(self._path)
