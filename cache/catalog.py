"""Which caches a folder holds, read from the Zarr groups alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.layout import ADDING, DATA, FORMAT, LEDGER, ArraySpec
from cache.records import dataset_from, specs_from, teacher_from
from cache.zarr_documents import read_attributes
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.errors import CorruptCacheError, IdentityError, InputError, UnknownNameError


@dataclass(frozen=True, kw_only=True, slots=True)
class CatalogEntry:
    """One cache of a folder."""

    folder: Path
    """Folder of its Zarr group."""
    teacher: TeacherDescription
    dataset: DatasetDescription
    specs: tuple[ArraySpec, ...]
    """The arrays of its outputs, see `kept_arrays`."""
    slots: int
    """Folded slots."""
    attributes: dict[str, Any]
    """All attributes of its group."""


def read_catalog(path: Path, *, unfinished: bool = False) -> list[CatalogEntry]:
    """Caches of a folder by teacher and name; raises `InputError` for no cache, or another format.

    ``unfinished`` adds what holds new outputs of a cache until all of them are there: it has nothing else.
    """
    root = read_attributes(path / DATA)
    if root is None:
        raise InputError(
            f"{path} is not a cache: a cache is a folder with {DATA} and {LEDGER} in it, "
            "made by `teacher-server fill --cache FOLDER` or `teacher-server serve --cache FOLDER`"
        )
    _check_format(root, folder=path)
    entries = list(_entries(path / DATA))
    return entries if unfinished else [entry for entry in entries if not entry.dataset.name.endswith(ADDING)]


def select(entries: Sequence[CatalogEntry], *, path: Path, teacher: str | None, dataset: str | None) -> CatalogEntry:
    """The one cache that is meant: by teacher (id, prefix or architecture) and NAME/SPLIT, both optional.

    Where neither decides, the only one that holds answers is meant. Raises `IdentityError` for another teacher than the
    cache's, `UnknownNameError` for another data set, `InputError` listing the choices.
    """
    if not entries:
        raise InputError(f"{path} holds no answers yet: fill it with `teacher-server fill --cache {path} ...`")
    chosen = _of_teacher(entries, teacher)
    if not chosen:
        kept = ", ".join(sorted({entry.teacher.id for entry in entries}))
        raise IdentityError(f"{path} holds answers of {kept}, not of {teacher}: use the teacher that filled it")
    if dataset is not None:
        known = ", ".join(sorted({entry.dataset.name for entry in chosen}))
        chosen = [entry for entry in chosen if dataset in (entry.dataset.name, entry.dataset.name.partition("/")[0])]
        if not chosen:
            raise UnknownNameError(f"{path} holds nothing about {dataset[:80]!r}; it has {known}")
    if len(chosen) > 1:
        chosen = [entry for entry in chosen if entry.slots] or chosen
    if len(chosen) > 1:
        listed = "; ".join(f"teacher {entry.teacher.id}, data set {entry.dataset.name}" for entry in chosen)
        raise InputError(f"{path} holds {len(chosen)} caches, name one: {listed}")
    return chosen[0]


def _of_teacher(entries: Sequence[CatalogEntry], asked: str | None) -> list[CatalogEntry]:
    """Entries of the teacher of this id; else of those whose id or architecture begins so."""
    if asked is None:
        return list(entries)
    exact = [entry for entry in entries if entry.teacher.id == asked]
    return exact or [entry for entry in entries if asked and entry.teacher.id.startswith(asked)]


def _entries(root: Path) -> Iterator[CatalogEntry]:
    for folder in sorted(root.glob("*/*/*")):
        attributes = read_attributes(folder) if folder.is_dir() else None
        teacher = read_attributes(folder.parent.parent)
        if attributes is None or teacher is None or "slots" not in attributes:
            continue
        _check_format(attributes, folder=folder)
        try:
            yield CatalogEntry(
                folder=folder,
                teacher=teacher_from(teacher),
                dataset=dataset_from(attributes | {"name": f"{attributes['name']}/{attributes['split']}"}),
                specs=specs_from(attributes["outputs"]),
                slots=int(attributes["slots"]),
                attributes=attributes,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptCacheError(
                f"attributes of {folder} are incomplete ({error}): restore its zarr.json"
            ) from error


def _check_format(attributes: dict[str, Any], *, folder: Path) -> None:
    found = attributes.get("format")
    if found != FORMAT:
        raise InputError(f"{folder} has format {found}; this version of teachonce reads and writes format {FORMAT}")
