"""Caches as the ledger lists them: who answered, about what, kept how."""

import json
import sqlite3
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cache.layout import ArraySpec, dataset_folder, kept_arrays
from cache.ledger import dump
from cache.renumber import unused_number
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.errors import IdentityError


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheRecord:
    """One row of the ledger's table of caches."""

    id: int
    teacher: TeacherDescription
    dataset: DatasetDescription
    specs: tuple[ArraySpec, ...]
    """The arrays of its outputs, see `kept_arrays`."""
    folded: int
    """Slots that are in Zarr."""

    def folder(self, path: Path) -> Path:
        """Folder of its Zarr group in the cache at ``path``."""
        return dataset_folder(path, teacher=self.teacher.id, dataset=self.dataset.name)


def read_records(database: sqlite3.Connection) -> list[CacheRecord]:
    """All caches of a ledger, oldest first."""
    query = "SELECT id, teacher_attributes, dataset_attributes, outputs, folded FROM caches ORDER BY id"
    return [
        CacheRecord(
            id=number,
            teacher=teacher_from(json.loads(teacher)),
            dataset=dataset_from(json.loads(dataset)),
            specs=specs_from(json.loads(outputs)),
            folded=folded,
        )
        for number, teacher, dataset, outputs, folded in database.execute(query)
    ]


def insert_record(
    database: sqlite3.Connection,
    *,
    teacher: TeacherDescription,
    dataset: DatasetDescription,
    specs: tuple[ArraySpec, ...],
) -> CacheRecord:
    """Within a transaction: list a new cache."""
    number = unused_number(database)
    described = (dump(teacher.attributes()), dump(dataset.attributes()), dump(outputs_json(specs)))
    database.execute(
        "INSERT INTO caches (id, teacher, dataset, teacher_attributes, dataset_attributes, outputs)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (number, teacher.id, dataset.name, *described),
    )
    return CacheRecord(id=number, teacher=teacher, dataset=dataset, specs=specs, folded=0)


def teacher_from(attributes: dict[str, Any]) -> TeacherDescription:
    """A teacher from its attributes; others are ignored."""
    known = {field.name for field in fields(TeacherDescription)}
    return TeacherDescription(**{name: value for name, value in attributes.items() if name in known})


def dataset_from(attributes: dict[str, Any]) -> DatasetDescription:
    """A data set from its attributes; others are ignored."""
    known = {field.name for field in fields(DatasetDescription)}
    chosen = {name: value for name, value in attributes.items() if name in known}
    return DatasetDescription(**(chosen | {"classes": tuple(chosen["classes"])}))


def outputs_json(specs: tuple[ArraySpec, ...]) -> dict[str, Any]:
    """Outputs as every JSON document of a cache shows them."""
    return {
        spec.name: {"dtype": spec.dtype, "shape": list(spec.shape), **spec.attributes}
        for spec in specs
        if spec.is_output
    }


def specs_from(outputs: dict[str, Any]) -> tuple[ArraySpec, ...]:
    """The opposite of `outputs_json`, whatever order JSON gave them."""
    return kept_arrays(
        ArraySpec(
            name=name,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            attributes={key: value for key, value in entry.items() if key not in ("dtype", "shape")},
        )
        for name, entry in outputs.items()
    )


def check_same_dataset(ours: DatasetDescription, dataset: DatasetDescription) -> None:
    """Raise `IdentityError` unless a data set is the one that a cache was made for."""
    for what in ("rows", "classes", "view_policy", "fingerprint"):
        kept, given = getattr(ours, what), getattr(dataset, what)
        if kept == given:
            continue
        detail = f"{what} {_short(kept)} there, {_short(given)} here"
        if what == "view_policy":
            detail = f"view policy {kept} there, {given} here; give --view-policy {kept}, or use another folder"
        elif what == "fingerprint" and ours.decoder != dataset.decoder:
            detail += f"; pixels were decoded by {ours.decoder} there, {dataset.decoder} here"
        raise IdentityError(
            f"{dataset.name} is not the data set this cache was made for: {detail}; "
            "use the original data, or name this one differently (NAME=KIND:ARG/SPLIT)"
        )


def _short(value: Any) -> str:
    if isinstance(value, tuple):
        return f"{len(value)} ({', '.join(map(str, value[:4]))}{', ...' if len(value) > 4 else ''})"
    return repr(value[:16]) if isinstance(value, str) else str(value)
