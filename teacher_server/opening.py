"""Opens what a command names: the teacher, the data sets, the rows to ask about.

Shape key: B rows asked for.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shared.datasets.base import ImageDataset
from shared.datasets.spec import open_splits
from shared.errors import InputError
from shared.host_cores import usable_cores
from shared.identity import sample_rows
from shared.teacher import Teacher, load_teacher

FAKE_PREFIX = "fake:"
NUMBER_PATTERN = re.compile(r"-?[0-9]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherOptions:
    """Which teacher, and how it computes."""

    spec: str
    """``zoo:NAME`` and the like, or the path of a checkpoint."""
    weights: Path | None = None
    classes: int | None = None
    """Width of the logits where neither weights nor data set say it."""
    device: str = "auto"
    """One, or several as in ``cuda:0,cuda:1``: a replica each."""
    precision: str = "float32"
    compiled: bool = False
    """Whether `warm_up` compiles the network."""
    trust_export: bool = False
    """Whether an exported program may run pickle while it loads."""
    threads: int | None = None
    """CPU threads of the teacher, shared by its replicas; None = one less than there are cores."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowOptions:
    """Which rows to ask about; by default all."""

    sample: int | None = None
    """How many to draw."""
    seed: int = 0
    file: Path | None = None
    """Text with one row per line, or an .npy array of integers."""

    @property
    def selects(self) -> bool:
        """Whether anything but all rows is asked for."""
        return self.sample is not None or self.file is not None


class StatisticsOnDemand:
    """A data set's normalisation, computed only if the weights do not bring their own: it decodes many images."""

    def __init__(self, dataset: ImageDataset) -> None:
        self._dataset = dataset

    @property
    def mean(self) -> tuple[float, float, float]:
        """Of pixels / 255, per channel."""
        return self._dataset.normalisation.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Of pixels / 255, per channel."""
        return self._dataset.normalisation.std


def open_datasets(
    specs: Sequence[str],
    *,
    root: Path | None,
    download: bool,
    index_dir: Path | None,
    view_policy: str | None = None,
) -> list[ImageDataset]:
    """All splits of data sets without one, in order; raises `InputError` where two have one name.

    ``view_policy`` is that of all of them; None: each has its own.
    """
    datasets = [
        dataset.with_views(view_policy)
        for spec in specs
        for dataset in open_splits(spec, root=root, download=download, index_dir=index_dir)
    ]
    names = [dataset.name for dataset in datasets]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(f"two data sets are called {min(twice)}; name one of them: NAME=KIND:ARG")
    return datasets


def open_teacher(options: TeacherOptions, *, datasets: Sequence[ImageDataset]) -> Teacher:
    """The teacher; classes and normalisation default to those of the first data set.

    Raises `InputError` where ``options.classes`` is not the width of its logits.
    """
    if options.spec.startswith(FAKE_PREFIX):
        ignored = {
            "--weights": options.weights is not None,
            "--classes": options.classes is not None,
            "--device": options.device not in ("auto", "cpu"),
            "--precision": options.precision != "float32",
            "--compile": options.compiled,
            "--trust-export": options.trust_export,
        }
        if any(ignored.values()):
            drop = ", ".join(name for name, given in ignored.items() if given)
            raise InputError(f"{options.spec[:80]} has no weights, device or classes to choose: drop {drop}")
        return load_teacher(options.spec)
    _limit_threads(options.threads, replicas=max(1, options.device.replace(" ", "").split(",").count("cpu")))
    first = datasets[0] if datasets else None
    teacher = load_teacher(
        options.spec,
        weights=options.weights,
        classes=options.classes or (len(first.classes) if first else None),
        normalisation=StatisticsOnDemand(first) if first else None,
        device=options.device,
        precision=options.precision,
        compiled=options.compiled,
        trust_export=options.trust_export,
    )
    found = teacher.description.classes
    if options.classes is not None and options.classes != found:
        teacher.close()
        raise InputError(
            f"{options.spec[:80]} has {found} classes by its weights, not the {options.classes} of "
            f"--classes {options.classes}; leave --classes out, or give other weights"
        )
    return teacher


def _limit_threads(threads: int | None, *, replicas: int) -> None:
    # torch only here: a fake teacher must start without it.
    import torch

    # As many threads as cores is catastrophic where anything else runs: each waits for the slowest.
    torch.set_num_threads(max(1, (threads or usable_cores() - 1) // replicas))


def choose_rows(dataset: ImageDataset, *, options: RowOptions) -> NDArray[np.int64]:
    """Rows int64 [B] to ask about, each once; raises `RowRangeError` naming the first that the data set lacks."""
    if options.sample is not None and options.file is not None:
        raise InputError("--sample and --rows both choose rows; give one of them")
    if options.sample is not None:
        return sample_rows(num_rows=dataset.num_rows, count=options.sample, seed=options.seed)
    if options.file is None:
        return np.arange(dataset.num_rows, dtype=np.int64)
    return each_once(dataset.check_rows(read_rows(options.file)))


def each_once(rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows in the order of their first mention."""
    _, first = np.unique(rows_B, return_index=True)
    return rows_B[np.sort(first)]


def read_rows(path: Path) -> NDArray[np.int64]:
    """Row numbers from a file, any integers; raises `InputError` for what is none."""
    try:
        rows_B = _npy_rows(path) if path.suffix == ".npy" else _text_rows(path)
    except OSError as error:
        raise InputError(f"cannot read rows from {path}: {error.strerror or type(error).__name__}") from error
    # EOFError: an empty .npy.
    except (ValueError, OverflowError, EOFError) as error:
        raise InputError(f"cannot read rows from {path}: one row number per line, or an .npy of integers") from error
    if len(rows_B) == 0:
        raise InputError(f"{path} holds no rows; leave --rows out for all of them")
    return rows_B


def _npy_rows(path: Path) -> NDArray[np.int64]:
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
        found = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else "several arrays"
        raise InputError(f"{path} holds {found}; expected one list of integers")
    rows_B: NDArray[np.int64] = array
    return rows_B


def _text_rows(path: Path) -> NDArray[np.int64]:
    words = path.read_text().split()
    wrong = [word for word in words if not NUMBER_PATTERN.fullmatch(word)]
    if wrong:
        raise InputError(f"cannot read {wrong[0][:40]!r} in {path} as a row: one row number per line, such as 7")
    return np.array([int(word) for word in words], dtype=np.int64)
