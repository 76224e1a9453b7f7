"""Where splits come from: what each kind of data set implements, and what a spec is read into."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from shared.datasets.base import ImageDataset
from shared.errors import UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    """A data set as the user writes it, ``[NAME=]KIND:ARG/SPLIT``, taken apart."""

    name: str
    """What it is called over HTTP and in caches."""
    kind: str
    """``digits``, ``torchvision``, ``folder`` or ``python``."""
    argument: str
    """Class name, path or function; empty for digits."""
    split: str | None
    """None where none is named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenOptions:
    """What opening a data set may use besides its spec."""

    root: Path | None = None
    """Where torchvision keeps its files; None is ``data``."""
    download: bool = False
    """Whether torchvision may fetch what is missing."""
    index_dir: Path | None = None
    """Where keys of files are remembered; None for no memory."""


class SplitSource(ABC):
    """One data set with all its splits, not opened yet."""

    def __init__(self, spec: DatasetSpec, *, options: OpenOptions) -> None:
        self.spec = spec
        self.options = options

    @property
    @abstractmethod
    def splits(self) -> tuple[str, ...]:
        """Names of the splits, the training split first."""

    @abstractmethod
    def open(self, split: str) -> ImageDataset:
        """Open one split; raises `UnknownNameError` for one that does not exist."""

    def check_split(self, split: str) -> str:
        """Return ``split`` if it is one of `splits`; else raise `UnknownNameError`."""
        if split not in self.splits:
            raise UnknownNameError(
                f"data set {self.spec.name!r} has no split {split!r}; it has {', '.join(self.splits)}"
            )
        return split

    def split_name(self, split: str) -> str:
        """``NAME/SPLIT``."""
        return f"{self.spec.name}/{split}"
