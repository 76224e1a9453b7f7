"""Outputs that a cache gets after it was made: answered slot for slot beside it, joined to it when all are there.

Until then they are a cache of their own, which no reader sees, with its own journal and folds: what is committed
survives a crash and is not asked again. One transaction joins both. Shape key: S slots.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from threading import RLock

import numpy as np

from cache.constants import write_constants
from cache.folding import Folding
from cache.handle import CacheHandle
from cache.layout import ADDING, AnyArray, ArraySpec, formed_specs, kept_arrays
from cache.ledger import Ledger, dump
from cache.ledger_schema import SLOT_BITS
from cache.moves import STAGING, finish_moves, plan_moves
from cache.opening import Teachers
from cache.records import check_same_dataset, outputs_json
from cache.renumber import add_charges, read_charges
from cache.upkeep import note_upkeep
from shared.descriptions import DatasetDescription
from shared.errors import IdentityError, InputError, UnknownNameError
from shared.outputs import OutputForm


class Additions:
    """For a command that adds outputs; what folds and flushes in another thread waits meanwhile."""

    def __init__(self, path: Path, *, teachers: Teachers, ledger: Ledger, folding: Folding, lock: RLock) -> None:
        """``lock`` is the writer's."""
        self._path = path
        self._teachers = teachers
        self._ledger = ledger
        self._folding = folding
        self._lock = lock

    def keep_constants(self, teacher: str, arrays: Mapping[str, AnyArray]) -> None:
        """Keep what a teacher says once for all images, beside its caches."""
        with self._folding.turn:
            write_constants(self._path, teacher=teacher, arrays=arrays)

    def cache(self, teacher: str, dataset: DatasetDescription) -> CacheHandle:
        """The cache that is to have more outputs; raises `UnknownNameError`, and `IdentityError` for other images."""
        handle = self._teachers.known(teacher, dataset.name)
        if handle is None:
            raise UnknownNameError(
                f"{self._path} has no answers of {teacher} about {dataset.name} to add outputs to: "
                "fill it with --outputs instead"
            )
        check_same_dataset(handle.dataset, dataset)
        return handle

    def open(self, cache: CacheHandle, outputs: Mapping[str, str], forms: Mapping[str, OutputForm]) -> CacheHandle:
        """What holds the new outputs of a cache, slot s of which is about the same image; goes on where it was.

        Raises `InputError` where other outputs are being added already, `IdentityError` where slots have changed since.
        """
        with self._folding.turn, self._lock:
            return self._open(cache, formed_specs(outputs, forms=forms))

    def _open(self, cache: CacheHandle, specs: tuple[ArraySpec, ...]) -> CacheHandle:
        name = cache.dataset.name + ADDING
        known = self._teachers.known(cache.teacher.id, name)
        if known is None:
            return self._teachers.create(cache.teacher, replace(cache.dataset, name=name), specs=specs)
        if known.specs != specs:
            begun = ",".join(f"{output}={dtype}" for output, dtype in known.outputs.items())
            raise InputError(
                f"{cache.dataset.name} is in the middle of --add-outputs {begun}: finish that first, or drop what is "
                f"there: logit-cache rm {self._path} {cache.teacher.id}/{name}"
            )
        self._check_same_slots(cache, known)
        return known

    def join(self, cache: CacheHandle, addition: CacheHandle) -> None:
        """Make the outputs those of the cache, with what they cost; both handles are of no use afterwards."""
        with self._folding.turn:
            self._folding.fold(cache)
            self._folding.fold(addition)
            with self._lock:
                self._join(cache, addition)

    def _join(self, cache: CacheHandle, addition: CacheHandle) -> None:
        self._check_same_slots(cache, addition)
        if cache.num_slots != addition.num_slots:
            raise InputError(f"{addition.num_slots} of {cache.num_slots} slots have the new outputs: add the others")
        self._ledger.flush()
        base = addition.index << SLOT_BITS
        group, beside = (handle.folder.relative_to(self._path) for handle in (cache, addition))
        with self._ledger.transaction() as database:
            outputs = outputs_json(kept_arrays(spec for spec in (*cache.specs, *addition.specs) if spec.is_output))
            database.execute("UPDATE caches SET outputs = ? WHERE id = ?", (dump(outputs), cache.index))
            database.execute("DELETE FROM caches WHERE id = ?", (addition.index,))
            database.execute("DELETE FROM aliases WHERE place >= ? AND place < ?", (base, base + (1 << SLOT_BITS)))
            database.execute(
                "INSERT INTO counts SELECT owner, run, ?, attempts, teacher_calls, hits, joined FROM counts"
                " WHERE cache = ? ON CONFLICT (owner, run, cache) DO UPDATE SET"
                " attempts = attempts + excluded.attempts, teacher_calls = teacher_calls + excluded.teacher_calls,"
                " hits = hits + excluded.hits, joined = joined + excluded.joined",
                (cache.index, addition.index),
            )
            database.execute("DELETE FROM counts WHERE cache = ?", (addition.index,))
            database.execute("UPDATE calls SET cache = ? WHERE cache = ?", (cache.index, addition.index))
            charges = database.execute(
                "SELECT owner, run, cache, chunk, bits FROM charges WHERE cache = ?", (addition.index,)
            ).fetchall()
            # Who had consumed the answer before is not charged again.
            moved = [(payer, cache.canonical(place - base)) for payer, place in read_charges(charges)]
            database.execute("DELETE FROM charges WHERE cache = ?", (addition.index,))
            add_charges(database, moved)
            arrays = [(str(beside / spec.name), str(group / spec.name)) for spec in addition.specs]
            plan_moves(database, [*arrays, (str(beside), f"{STAGING}/added-{addition.index}")])
            note_upkeep(database, what="add", cache=cache.index, detail={"outputs": addition.outputs})
        self._ledger.reload()
        finish_moves(self._path, database=self._ledger.database)
        self._teachers.reload(cache.teacher.id)
        joined = self._teachers.known(cache.teacher.id, cache.dataset.name)
        if joined is not None:
            self._teachers.publish(joined)

    def _check_same_slots(self, cache: CacheHandle, addition: CacheHandle) -> None:
        same = addition.num_slots <= cache.num_slots
        for first in range(0, addition.num_slots if same else 0, 1 << 16):
            slots = np.arange(first, min(first + (1 << 16), addition.num_slots))
            same = same and all(_equal(cache, addition, name, slots) for name in ("rows", "views", "keys"))
        if not same:
            raise IdentityError(
                f"slots of {cache.dataset.name} have changed since outputs began to be added (a repair?): drop what is "
                f"there and begin anew: logit-cache rm {self._path} {cache.teacher.id}/{addition.dataset.name}"
            )


def _equal(cache: CacheHandle, addition: CacheHandle, name: str, slots: AnyArray) -> bool:
    return np.array_equal(cache.take(name, slots), addition.take(name, slots))
