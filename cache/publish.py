"""The Zarr documents of a cache, brought up to the ledger: shapes to the mark, counts into the attributes.

They follow the commit, so a Zarr reader never sees a slot that is not there.
"""

from pathlib import Path
from typing import Any

from cache.atomic_file import make_folders
from cache.layout import DATA, FORMAT, INDEX_ARRAYS, UPLOADS
from cache.ledger import Ledger
from cache.records import CacheRecord, outputs_json
from cache.zarr_documents import write_array, write_group


def publish(path: Path, *, record: CacheRecord, folded: int, ledger: Ledger) -> None:
    """Write every document of a cache; those that say the same already are left alone."""
    folder = record.folder(path)
    make_folders(folder)
    for spec in (*record.specs, *INDEX_ARRAYS):
        make_folders(folder / spec.name)
        write_array(folder / spec.name, spec=spec, slots=folded)
    write_group(folder, attributes=dataset_attributes(record, folded=folded, ledger=ledger))
    write_group(folder.parent, attributes={})
    write_group(folder.parent.parent, attributes={"format": FORMAT, **record.teacher.attributes()})
    publish_ledger(path, ledger=ledger)


def publish_ledger(path: Path, *, ledger: Ledger) -> None:
    """Copy the ledger's sums into the root group, for readers without the ledger."""
    write_group(path / DATA, attributes={"format": FORMAT, "ledger": ledger.describe()})


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
    }
