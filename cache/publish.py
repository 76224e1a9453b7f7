"""The Zarr documents of a cache, brought up to the ledger: shapes to the mark, counts into the attributes.

They follow the commit, so a Zarr reader never sees a slot that is not there.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cache.atomic_file import make_folders, write_json
from cache.layout import DATA, DOCUMENT, FORMAT, INDEX_ARRAYS, UPLOADS
from cache.ledger import Ledger
from cache.records import CacheRecord, outputs_json
from cache.upkeep import read_upkeep
from cache.zarr_documents import array_document, group_document

Documents = list[tuple[Path, dict[str, Any]]]
"""Folders of Zarr nodes, each with what its document is to say."""


def publish(path: Path, *, record: CacheRecord, folded: int, ledger: Ledger) -> None:
    """Write every document of a cache; those that say the same already are left alone."""
    write_documents(cache_documents(path, record=record, folded=folded, ledger=ledger))


def cache_documents(path: Path, *, record: CacheRecord, folded: int, ledger: Ledger) -> Documents:
    """Every document of a cache, arrays first; nothing is written yet."""
    folder = record.folder(path)
    arrays = [(folder / spec.name, array_document(spec, slots=folded)) for spec in (*record.specs, *INDEX_ARRAYS)]
    return [
        *arrays,
        (folder, group_document(dataset_attributes(record, folded=folded, ledger=ledger))),
        (folder.parent, group_document({})),
        (folder.parent.parent, group_document({"format": FORMAT, **record.teacher.attributes()})),
        *ledger_documents(path, ledger=ledger),
    ]


def ledger_documents(path: Path, *, ledger: Ledger) -> Documents:
    """The root group with the ledger's sums, for readers without the ledger."""
    return [(path / DATA, group_document({"format": FORMAT, "ledger": ledger.describe()}))]


def publish_ledger(path: Path, *, ledger: Ledger) -> None:
    """Write the ledger's sums into the root group."""
    write_documents(ledger_documents(path, ledger=ledger))


def write_documents(documents: Iterable[tuple[Path, dict[str, Any]]]) -> None:
    """Write documents in this order, each whole or not at all."""
    for folder, document in documents:
        make_folders(folder)
        write_json(folder / DOCUMENT, document)


def dataset_attributes(record: CacheRecord, *, folded: int, ledger: Ledger) -> dict[str, Any]:
    """Attributes of a cache's group."""
    name, _, split = record.dataset.name.partition("/")
    counts = ledger.cache_counts(record.id)
    return {
        "format": FORMAT,
        **record.dataset.attributes(),
        "name": name,
        "split": split,
        "uploads": record.dataset.name == UPLOADS,
        "outputs": outputs_json(record.specs),
        "slots": folded,
        "attempts": counts.attempts,
        "teacher_calls": counts.teacher_calls,
        **_provenance(record, ledger=ledger),
    }


def _provenance(record: CacheRecord, *, ledger: Ledger) -> dict[str, Any]:
    """Answers that were computed elsewhere: from which files, and how many."""
    imports = read_upkeep(ledger.database, what="import", cache=record.id)
    return {"imported": [{"time": one.time, **one.detail} for one in imports]} if imports else {}
