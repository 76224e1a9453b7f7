"""Outputs that a loss needs and a cache does not keep: which they are, and the command that adds them."""

import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from cache.reader import CacheReader
from shared.datasets.base import ImageDataset
from shared.datasets.spec import with_split
from shared.outputs import CONSTANTS, calls_per_answer, map_number
from student_trainer.config import TrainConfig

ANOTHER_MIRROR = "give another --mirror FOLDER (or --out) to fetch the rows anew"
"""What helps where the local cache of a server's answers keeps other outputs than are needed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What the user calls a cache and the data set of its rows."""

    cache: str = "CACHE"
    """Its folder; a word to be replaced where it is not known."""
    server: str | None = None
    """Address of the server that its answers were fetched from; None: of none."""
    dataset: tuple[str, ...] = ("--dataset", "DATASET")
    """Options of ``teacher-server fill`` that mean this data set, this split alone, seen by the same views."""

    def remedy(self, lacking: Sequence[str], *, reader: CacheReader) -> str:
        """What the cache lacks, and what would help."""
        if self.server is not None:
            fetched = f"{self.cache}, fetched from {self.server},"
            return f"{said(fetched, kept=reader.outputs, lacking=lacking)}; {ANOTHER_MIRROR}"
        images = [name for name in lacking if name != CONSTANTS]
        calls = reader.num_slots * calls_per_answer(images) if images else 0
        return (
            f"{said(self.cache, kept=reader.outputs, lacking=lacking)}; add it with"
            f" `{fill_command(lacking, cache=self.cache, dataset=self.dataset)}`, where TEACHER, --weights and"
            f" --precision are those of {reader.teacher.id}: at most {calls} teacher calls{about_maps(lacking)}"
        )


def origin_of(config: TrainConfig, *, path: str, dataset: ImageDataset) -> Origin:
    """Of the cache in ``path`` that a training uses."""
    options = ["--dataset", with_split(config.dataset, dataset.name.rpartition("/")[2])]
    if config.data_root is not None:
        options += ["--data-root", str(config.data_root)]
    if dataset.view_policy != dataset.own_policy:
        options += ["--view-policy", dataset.view_policy]
    return Origin(cache=path, server=config.cache if config.from_server else None, dataset=tuple(options))


def lacking_outputs(names: Iterable[str], *, reader: CacheReader) -> list[str]:
    """Those, each once, that the cache does not keep."""
    kept = kept_outputs(reader)
    return [name for name in dict.fromkeys(names) if name not in kept]


def kept_outputs(reader: CacheReader) -> list[str]:
    """All that the cache keeps, the teacher's constants too."""
    return [*reader.forms, *([CONSTANTS] if reader.constants else [])]


def said(holder: str, *, kept: Collection[str], lacking: Sequence[str]) -> str:
    """The beginning of every message about outputs that are lacking."""
    return f"{holder} holds {', '.join(kept)}, and the loss needs {', '.join(lacking)}"


def fill_command(lacking: Sequence[str], *, cache: str, dataset: Sequence[str]) -> str:
    """What adds outputs to a cache, as it is typed; words in capitals are to be replaced."""
    added = ["--teacher", "TEACHER", "--add-outputs", ",".join(lacking)]
    return shlex.join(["teacher-server", "fill", "--cache", cache, *dataset, *added])


def about_maps(lacking: Iterable[str]) -> str:
    """What else may be wrong where a map is lacking; empty where none is."""
    if all(map_number(name) is None for name in lacking):
        return ""
    return "; a teacher that has no such map needs teacher_maps=... set to its own (and maps=... to as many)"
