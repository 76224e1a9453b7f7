"""Whether every ``zarr.json`` of a cache is one that this code wrote."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cache.atomic_file import read_json
from cache.catalog import CatalogEntry
from cache.constants import FOLDER as CONSTANTS
from cache.layout import DOCUMENT, ArraySpec
from cache.zarr_documents import CHECKSUM, array_document, attributes_checksum
from shared.errors import CorruptCacheError

GROUP_LEVELS = 3
"""Teacher, data set, split; below them are arrays."""
LAYOUT = ("chunk_grid", "chunk_key_encoding", "codecs")
"""What another tool may have rewritten an array with."""
EXTENSION_KEYS = {"name", "configuration", "must_understand"}
"""Of a part of a layout, in Zarr v3."""


def find_document_damage(root: Path) -> Iterator[str]:
    """One line per document that is not as it was written; checksums tell about arrays in a foreign layout."""
    for path in sorted(root.rglob(DOCUMENT)):
        level = len(path.parent.relative_to(root).parts)
        if path.parent.parent.name == CONSTANTS:
            # Of one chunk, and held to the checksums in their group.
            continue
        try:
            document = read_json(path)
        except CorruptCacheError as error:
            yield str(error)
            continue
        sound = _is_own_group(document) if level <= GROUP_LEVELS else _is_plausible_array(document, path.parent)
        if not sound:
            yield f"{path} is not as it was written: restore it from a copy of the cache"


def check_documents(entry: CatalogEntry) -> None:
    """Raise `CorruptCacheError` for the first document of a folder with caches that is not as it was written."""
    for line in find_document_damage(entry.folder.parents[GROUP_LEVELS - 1]):
        raise CorruptCacheError(line)


def _is_own_group(document: dict[str, Any]) -> bool:
    attributes = document.get("attributes")
    return (
        document.keys() == {"zarr_format", "node_type", "attributes"}
        and (document["zarr_format"], document["node_type"]) == (3, "group")
        and isinstance(attributes, dict)
        and attributes.get(CHECKSUM) == attributes_checksum(attributes)
    )


def _is_plausible_array(document: dict[str, Any], folder: Path) -> bool:
    try:
        length, *shape = document["shape"]
        attributes = document.get("attributes") or {}
        spec = ArraySpec(name=folder.name, dtype=document["data_type"], shape=tuple(shape), attributes=attributes)
        own = array_document(spec, slots=length)
    except (KeyError, TypeError, ValueError):
        return False
    if document == own:
        return True
    # Another layout is no damage; names that Zarr does not know, and leaves out of account, are.
    layout = [document.get(part) for part in LAYOUT]
    return layout != [own[part] for part in LAYOUT] and all(_is_known(part) for part in layout)


def _is_known(part: object) -> bool:
    """Whether part of a layout, or each of its codecs, says nothing but what the Zarr specification has a name for."""
    if isinstance(part, list):
        return all(_is_known(one) for one in part)
    return isinstance(part, str) or (isinstance(part, dict) and part.keys() <= EXTENSION_KEYS)
