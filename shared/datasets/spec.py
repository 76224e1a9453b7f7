"""Data sets by name: ``[NAME=]KIND:ARG/SPLIT`` to opened data sets.

Kinds: ``digits``, ``torchvision:CIFAR100``, ``folder:PATH``, ``python:FILE.py:FUNCTION``.
"""

import re
from pathlib import Path

from shared.datasets.base import ImageDataset
from shared.datasets.digits import DigitsSource
from shared.datasets.folder import FolderSource, is_split_folder, split_folders
from shared.datasets.python_file import PythonSource
from shared.datasets.source import DatasetSpec, OpenOptions, SplitSource
from shared.datasets.torchvision_sets import TorchvisionSource
from shared.errors import InputError, UnknownNameError
from shared.identity import check_name

SOURCES: dict[str, type[SplitSource]] = {
    "digits": DigitsSource,
    "torchvision": TorchvisionSource,
    "folder": FolderSource,
    "python": PythonSource,
}
FORMS = "digits, torchvision:CIFAR100, folder:PATH, python:FILE.py:FUNCTION, each with /SPLIT"
FOLDER_FORMS = "expected PATH/CLASS/FILE or PATH/SPLIT/CLASS/FILE"
TEST_SPLITS = ("test", "val", "valid", "validation")
"""What a test split may be called, the first that exists wins."""
SPEC_PATTERN = re.compile(r"(?:(?P<name>[^=:/]+)=)?(?P<kind>[a-z]+)(?::(?P<argument>.+)|/(?P<split>.+))?", re.DOTALL)


def parse_dataset(text: str) -> DatasetSpec:
    """Take ``[NAME=]KIND:ARG/SPLIT`` apart; NAME defaults to the lower-cased ARG, for a folder its base name.

    Looks at the disk for a folder only: where the folders right below PATH hold images, PATH is a split of its parent.
    Raises `InputError` and `UnknownNameError`.
    """
    found = SPEC_PATTERN.fullmatch(text.strip())
    if not found or found["kind"] not in SOURCES:
        raise UnknownNameError(f"unknown data set {text[:80]!r}; known forms: {FORMS}")
    kind = found["kind"]
    if (kind == "digits") != (found["argument"] is None):
        raise UnknownNameError(f"unknown data set {text[:80]!r}; known forms: {FORMS}")
    argument, default, split = {
        "digits": lambda _: ("", "digits", found["split"]),
        "torchvision": _parse_class,
        "folder": _parse_folder,
        "python": _parse_function,
    }[kind](found["argument"])
    name = found["name"] or default
    try:
        check_name(name, what="data set")
    except UnknownNameError as error:
        form = text.strip().removeprefix(f"{found['name']}=")
        raise UnknownNameError(f"{error}; give it one: NAME={form[:80]}") from error
    return DatasetSpec(
        name=name, kind=kind, argument=argument, split=check_name(split.lower(), what="split") if split else None
    )


def _parse_class(argument: str) -> tuple[str, str, str | None]:
    name, _, split = argument.partition("/")
    return name, name.lower(), split or None


def _parse_function(argument: str) -> tuple[str, str, str | None]:
    file, colon, rest = argument.rpartition(":")
    function, _, split = rest.partition("/")
    if not colon or not file or not function.isidentifier():
        raise InputError(f"cannot read python:{argument[:80]}; write python:FILE.py:FUNCTION/SPLIT")
    return f"{file}:{function}", function.lower(), split or None


def _parse_folder(argument: str) -> tuple[str, str, str | None]:
    path = Path(argument).expanduser().absolute()
    if not path.is_dir():
        raise _no_folder(path)
    is_split = is_split_folder(path)
    base = path.parent if is_split else path
    return str(base), base.name.lower(), path.name if is_split else None


def _no_folder(path: Path) -> InputError:
    if path.exists():
        return InputError(f"{path} is a file, not a folder; {FOLDER_FORMS}")
    # Looked for only where a data set may lie: the root of a disk has a great many pictures two folders below it.
    splits = split_folders(path.parent) if path.parent.name else {}
    if splits:
        return UnknownNameError(f"folder {path} does not exist; {path.parent} has {', '.join(splits)}")
    return InputError(f"folder {path} does not exist; {FOLDER_FORMS}")


def open_dataset(
    text: str, *, root: Path | None = None, download: bool = False, index_dir: Path | None = None
) -> ImageDataset:
    """Open one split, which the text must name."""
    source = _source(text, options=OpenOptions(root=root, download=download, index_dir=index_dir))
    if source.spec.split is None:
        names = " or ".join(f"{text.rstrip('/')}/{split}" for split in source.splits)
        raise InputError(f"data set {text!r} needs a split: {names}")
    return source.open(source.spec.split)


def open_splits(
    text: str, *, root: Path | None = None, download: bool = False, index_dir: Path | None = None
) -> tuple[ImageDataset, ...]:
    """Open the split that the text names, or all of them where it names none."""
    source = _source(text, options=OpenOptions(root=root, download=download, index_dir=index_dir))
    splits = source.splits if source.spec.split is None else (source.spec.split,)
    return tuple(source.open(split) for split in splits)


def open_train_test(
    text: str, *, root: Path | None = None, download: bool = False, index_dir: Path | None = None
) -> tuple[ImageDataset, ImageDataset]:
    """Open what to train on (``train``, or the split named) and what to test on (``test``, else ``val``)."""
    source = _source(text, options=OpenOptions(root=root, download=download, index_dir=index_dir))
    train = source.spec.split or "train"
    for test in TEST_SPLITS:
        if test in source.splits and test != train:
            return source.open(train), source.open(test)
    raise UnknownNameError(
        f"data set {source.spec.name!r} has no split to test on beside {train!r}; it has {', '.join(source.splits)}, "
        f"and one called {' or '.join(TEST_SPLITS)} would work"
    )


def with_split(text: str, split: str) -> str:
    """The text, which means ``split`` alone: as it is where it names one, else with this name behind it."""
    spec = parse_dataset(text)
    if spec.split is not None:
        return text
    # A folder may be spelt with capitals.
    name = split_folders(Path(spec.argument))[split].name if spec.kind == "folder" else split
    return f"{text.rstrip('/')}/{name}"


def _source(text: str, *, options: OpenOptions) -> SplitSource:
    spec = parse_dataset(text)
    return SOURCES[spec.kind](spec, options=options)
