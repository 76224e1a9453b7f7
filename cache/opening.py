"""The caches of a folder as one writer holds them: listed, recovered, loaded when their teacher is first used."""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import RLock

import numpy as np

from cache.atomic_file import make_folders
from cache.encoding import decode_rows
from cache.fold import recover_block
from cache.handle import CacheHandle, Kind, Place, kind_of, place_from
from cache.journal import folded_entry, forget_entries, read_entries
from cache.key_index import KeyIndex
from cache.layout import (
    COMPANIONS,
    DATA,
    DEFAULT_OUTPUTS,
    INDEX,
    INDEX_ARRAYS,
    LEDGER,
    LOCK,
    PARTIAL,
    AnyArray,
    ArraySpec,
    dataset_folder,
    output_dtypes,
    output_specs,
)
from cache.ledger import Ledger
from cache.ledger_schema import SLOT_BITS, sqlite_errors
from cache.moves import finish_moves
from cache.publish import publish, publish_ledger
from cache.records import CacheRecord, check_same_dataset, insert_record, outputs_json, read_records
from cache.zarr_documents import array_document, read_attributes, read_document
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.errors import CorruptCacheError, InputError
from shared.outputs import OutputForm


def prepare_folder(path: Path) -> None:
    """Create the folder of a cache; raises `InputError` for one that holds something else."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file; a cache is a folder")
    make_folders(path)
    if (path / LEDGER).exists():
        return
    if (path / DATA).exists():
        raise InputError(
            f"{path} has {DATA} but no {LEDGER}: such a copy can be read, not continued; use another folder"
        )
    # A mounted volume holds lost+found, a first start that was cut off the lock, a look at the images their index.
    strangers = sorted(entry.name for entry in path.iterdir() if entry.name not in (LOCK, INDEX, "lost+found"))
    if strangers:
        raise InputError(f"{path} is not a cache and not empty (it holds {strangers[0]}); use another folder")


class Teachers:
    """Handles by number, and where each teacher answered which key."""

    def __init__(self, path: Path, *, ledger: Ledger, lock: RLock) -> None:
        self._path = path
        self._ledger = ledger
        self._lock = lock
        # What a repair or a removal had decided before it was interrupted.
        finish_moves(path, database=ledger.database)
        self._records = {record.id: record for record in read_records(ledger.database)}
        self._handles: dict[int, CacheHandle] = {}
        self._keys: dict[str, dict[Kind, KeyIndex]] = {}

    def recover(self) -> None:
        """Undo what a crash left unfinished: shapes become the marks, partial files go."""
        database = self._ledger.database
        for partial in (self._path / DATA).rglob("*" + PARTIAL):
            partial.unlink()
        for record in self._records.values():
            if folded_entry(database, cache=record.id, folded=record.folded) is not None:
                with self._ledger.transaction():
                    forget_entries(database, cache=record.id, end=record.folded)
            pending = database.execute(
                "SELECT count(*) FROM journal WHERE place >= ? AND place < ?",
                (record.id << SLOT_BITS, (record.id + 1) << SLOT_BITS),
            ).fetchone()[0]
            if pending or self._is_stale(record):
                self._load_teacher(record.teacher.id)
                self.publish(self._handles[record.id])
        make_folders(self._path / DATA)
        publish_ledger(self._path, ledger=self._ledger)

    def open_cache(
        self,
        teacher: TeacherDescription,
        dataset: DatasetDescription,
        *,
        outputs: Mapping[str, str] | None,
        forms: Mapping[str, OutputForm] | None = None,
    ) -> CacheHandle:
        """See `CacheWriter.open_cache`."""
        handle = self.known(teacher.id, dataset.name)
        if handle is None:
            if outputs is None:
                outputs = {
                    name: dtype for name, dtype in DEFAULT_OUTPUTS.items() if name == "logits" or teacher.features
                }
            specs = output_specs(outputs, classes=teacher.classes, features=teacher.features, forms=forms)
            return self.create(teacher, dataset, specs=specs)
        check_same_dataset(handle.dataset, dataset)
        if outputs is not None and dict(outputs) != handle.outputs:
            raise InputError(
                f"{dataset.name} is cached with {_listed(handle.outputs)}, not {_listed(outputs)}; "
                "a cache keeps the outputs it was created with: leave them out, use another folder, or add some with "
                "`teacher-server fill --add-outputs`"
            )
        return handle

    def known(self, teacher_id: str, dataset: str) -> CacheHandle | None:
        """The cache of a teacher and a data set, None where there is none."""
        self._load_teacher(teacher_id)
        numbers = [
            record.id
            for record in self._records.values()
            if (record.teacher.id, record.dataset.name) == (teacher_id, dataset)
        ]
        return self._handles[numbers[0]] if numbers else None

    def reload(self, teacher_id: str) -> None:
        """Load a teacher's caches again, after a transaction that changed what they keep."""
        self._records = {record.id: record for record in read_records(self._ledger.database)}
        self._handles = {number: one for number, one in self._handles.items() if one.teacher.id != teacher_id}
        self._keys.pop(teacher_id, None)
        self._load_teacher(teacher_id)

    def handle(self, cache: int) -> CacheHandle:
        """The handle of a place."""
        return self._handles[cache]

    def record(self, handle: CacheHandle) -> CacheRecord:
        """How the ledger lists a cache."""
        return self._records[handle.index]

    def loaded(self) -> list[CacheHandle]:
        """Handles of all teachers used so far."""
        return list(self._handles.values())

    def load_all(self) -> list[CacheHandle]:
        """Handles of every cache that has something in the journal, and of all teachers used so far."""
        for (cache,) in self._ledger.database.execute(
            "SELECT DISTINCT place >> ? FROM journal", (SLOT_BITS,)
        ).fetchall():
            self._load_teacher(self._records[cache].teacher.id)
        return self.loaded()

    def find(self, teacher_id: str, key: bytes, *, kind: Kind | None) -> int | None:
        """Number of the place that first answered a key with (at least) these outputs."""
        self._load_teacher(teacher_id)
        kinds = self._keys.get(teacher_id, {})
        wanted: Kind = frozenset() if kind is None else kind
        # The same outputs first: a wider cache may have answered later.
        if wanted in kinds and (number := kinds[wanted].get(key)) is not None:
            return number
        for other, index in kinds.items():
            if other > wanted and (number := index.get(key)) is not None:
                return number
        return None

    def find_parts(self, teacher_id: str, key: bytes, *, kind: Kind) -> dict[str, int]:
        """For a key that no cache answers in full: which place first gave which of these outputs."""
        kinds = self._keys.get(teacher_id, {})
        if kinds.keys() <= {kind}:
            return {}
        parts = {other: number for other, index in kinds.items() if (number := index.get(key)) is not None}
        return {name: number for other, number in parts.items() for name, _ in other & kind}

    def add_key(self, teacher_id: str, *, kind: Kind, key: bytes, number: int) -> None:
        """A key was answered for the first time."""
        self._keys[teacher_id].setdefault(kind, KeyIndex(self._key_of)).add(key, number)

    def canonical(self, places: Sequence[Place]) -> list[int]:
        """Numbers of the places that first answered these places' keys."""
        return [self._handles[cache].canonical(slot) for cache, slot in places]

    def answers(self, places: Sequence[Place], name: str) -> AnyArray:
        """One output as callers see it, [B, ...]; of places that keep it alike."""
        values = self.take(places, name)
        if values.dtype != np.int8:
            return values
        return decode_rows(values, *(self.take(places, name + end) for end in COMPANIONS))

    def take(self, places: Sequence[Place], name: str) -> AnyArray:
        """One array at places of any caches that keep it alike, [B, ...] in the stored dtype."""
        numbers = np.array(places, dtype=np.int64).reshape(-1, 2)
        caches, slots = numbers[:, 0], numbers[:, 1]
        if not len(places):
            raise InputError("no places to read")
        first = self._handles[int(caches[0])]
        if (caches == first.index).all():
            return first.take(name, slots)
        parts = [(caches == cache, self._handles[int(cache)]) for cache in np.unique(caches)]
        taken = [(chosen, handle.take(name, slots[chosen])) for chosen, handle in parts]
        values = np.empty((len(places), *taken[0][1].shape[1:]), dtype=taken[0][1].dtype)
        for chosen, part in taken:
            values[chosen] = part
        return values

    def publish(self, handle: CacheHandle) -> None:
        """Bring the Zarr documents up to the ledger."""
        publish(self._path, record=self._records[handle.index], folded=handle.folded, ledger=self._ledger)

    def create(
        self, teacher: TeacherDescription, dataset: DatasetDescription, *, specs: tuple[ArraySpec, ...]
    ) -> CacheHandle:
        """A new cache."""
        # Names that cannot be folders are refused before anything is written.
        dataset_folder(self._path, teacher=teacher.id, dataset=dataset.name)
        with self._ledger.transaction() as database:
            record = insert_record(database, teacher=teacher, dataset=dataset, specs=specs)
        self._records[record.id] = record
        handle = self._make_handle(record)
        handle.load_index()
        self.publish(handle)
        return handle

    def _key_of(self, number: int) -> bytes:
        place = place_from(number)
        return self._handles[place.cache].key(place.slot)

    def _is_stale(self, record: CacheRecord) -> bool:
        """Whether its Zarr documents say something else than the ledger, or nothing that can be read."""
        folder = record.folder(self._path)
        try:
            attributes = read_attributes(folder) or {}
            documents = {spec: read_document(folder / spec.name) for spec in (*record.specs, *INDEX_ARRAYS)}
        except CorruptCacheError:
            return True
        described = (attributes.get("slots"), attributes.get("outputs"))
        return described != (record.folded, outputs_json(record.specs)) or any(
            document != array_document(spec, slots=record.folded) for spec, document in documents.items()
        )

    def _load_teacher(self, teacher_id: str) -> None:
        """Load every cache of a teacher, and learn what it answered."""
        if teacher_id in self._keys:
            return
        kinds: dict[Kind, KeyIndex] = {}
        records = [record for record in self._records.values() if record.teacher.id == teacher_id]
        kept = {record.id: kind_of(output_dtypes(record.specs)) for record in records}
        for record in records:
            with sqlite_errors(self._path / LEDGER):
                handle = self._load(record)
            index = kinds.setdefault(handle.kind, KeyIndex(self._key_of))
            # An alias is found where its first answer is, unless outputs were added to this cache and not to that one.
            without = {
                slot
                for slot, canonical in handle.aliases.items()
                if kept.get(canonical >> SLOT_BITS, frozenset()) >= handle.kind
            }
            for first_slot, keys in handle.all_keys():
                index.extend(keys, base=handle.index << SLOT_BITS, first_slot=first_slot, without=without)
        self._keys[teacher_id] = kinds

    def _load(self, record: CacheRecord) -> CacheHandle:
        handle = self._make_handle(record)
        database: sqlite3.Connection = self._ledger.database
        recover_block(handle)
        entries = read_entries(database, cache=record.id, first=record.folded)
        if [entry.slot for entry in entries] != list(range(record.folded, record.folded + len(entries))):
            raise CorruptCacheError(
                f"the journal of {record.dataset.name} does not continue at slot {record.folded}: "
                f"restore {LEDGER} from a copy"
            )
        handle.tail.append(entries)
        handle.load_index()
        base = record.id << SLOT_BITS
        aliases = database.execute(
            "SELECT place - ?, canonical FROM aliases WHERE place >= ? AND place < ?",
            (base, base, base + (1 << SLOT_BITS)),
        )
        handle.aliases.update(aliases.fetchall())
        return handle

    def _make_handle(self, record: CacheRecord) -> CacheHandle:
        handle = CacheHandle(
            index=record.id,
            folder=record.folder(self._path),
            teacher=record.teacher,
            dataset=record.dataset,
            specs=record.specs,
            folded=record.folded,
            lock=self._lock,
        )
        self._handles[record.id] = handle
        return handle


def _listed(outputs: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {dtype}" for name, dtype in outputs.items())
