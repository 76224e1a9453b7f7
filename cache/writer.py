"""The one process that writes a cache: finds answers, reserves calls, commits answers, folds them into Zarr.

Shape key: B answers of one batch.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from threading import RLock
from time import monotonic
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from cache.additions import Additions
from cache.batch import AnswerBatch, check_rows, pack_answers
from cache.folding import Folding
from cache.handle import CacheHandle, Place, place_from
from cache.housekeeping import Housekeeping
from cache.info import describe_cache
from cache.layout import LEDGER, AnyArray, Bytes
from cache.ledger import Ledger
from cache.ledger_schema import sqlite_errors
from cache.lock import WriterLock
from cache.model_call import ModelCall
from cache.opening import Teachers, prepare_folder
from cache.payer import LOCAL_OWNER, Payer
from cache.payments import Payments
from cache.reservation import CallRequest, Reservation
from cache.reservations import check_paid
from cache.stage import AliasItem, Stage
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.errors import DiskFullError
from shared.outputs import OutputForm

__all__ = ["AnswerBatch", "CacheHandle", "CacheWriter", "CallRequest", "ModelCall", "Place", "Reservation"]

log = logging.getLogger(__name__)

IDLE_S = 30.0
"""Seconds without a commit after which the tail is folded."""


class CacheWriter(Payments):
    """All methods may be called from any thread; only one process at a time may write a cache."""

    def __init__(self, path: Path, *, lock: WriterLock) -> None:
        """Use `open`."""
        self.path = path
        self._file_lock = lock
        super().__init__(Ledger(path), lock=RLock())
        self._closed = False
        self._hits: deque[tuple[Payer, CacheHandle, Sequence[Place], int]] = deque()
        self._last_commit = monotonic()
        try:
            self._teachers = Teachers(path, ledger=self._ledger, lock=self._lock)
            self._teachers.recover()
        except BaseException:
            self._ledger.database.close()
            raise
        self._folding = Folding(path, teachers=self._teachers, ledger=self._ledger, lock=self._lock)
        self.additions = Additions(
            path, teachers=self._teachers, ledger=self._ledger, folding=self._folding, lock=self._lock
        )
        """Outputs that caches get after they were made."""
        self._housekeeping = Housekeeping(self._tidy)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open the cache in the folder ``path``, creating it if absent, and recover what a crash left.

        Raises `CacheLockedError` where another process writes, `InputError` for another format or a folder that holds
        something else, `CorruptCacheError`.
        """
        path = Path(path)
        prepare_folder(path)
        lock = WriterLock(path)
        try:
            with sqlite_errors(path / LEDGER):
                return cls(path, lock=lock)
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Fold the tail, write the last counts, let the next process write; `DiskFullError` where hits are lost."""
        self._housekeeping.stop()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._count_hits()
        with ExitStack() as last:
            last.callback(self._file_lock.release)
            last.callback(self._close_ledger)
            try:
                self.fold()
                self._folding.publish_ledger()
            except DiskFullError as error:
                # Everything is in the journal; the next writer folds it.
                log.warning("not folded: %s", error)

    def _close_ledger(self) -> None:
        with self._lock:
            self._count_hits()
            self._ledger.close()

    def open_cache(
        self,
        teacher: TeacherDescription,
        dataset: DatasetDescription,
        outputs: Mapping[str, str] | None = None,
        forms: Mapping[str, OutputForm] | None = None,
    ) -> CacheHandle:
        """The cache of this teacher and data set, created if absent with ``outputs`` {name: dtype}.

        ``forms`` says what outputs besides logits and features look like. Raises `IdentityError` where the name belongs
        to another data set, `InputError` for other outputs than it has.
        """
        with self._folding.turn, self._lock:
            return self._teachers.open_cache(teacher, dataset, outputs=outputs, forms=forms)

    # Reading

    def find(self, teacher_id: str, key: bytes, *, cache: CacheHandle | None = None) -> Place | None:
        """The first committed answer of a teacher to these pixels, in any of its data sets.

        With ``cache``, only an answer that has all of its outputs in its dtypes.
        """
        with self._lock:
            number = self._teachers.find(teacher_id, key, kind=None if cache is None else cache.kind)
            return None if number is None else place_from(number)

    def find_at_once(self, teacher_id: str, keys: Sequence[bytes], *, cache: CacheHandle) -> list[Place | None]:
        """`find` for several keys, without waiting: while another thread works on the cache, nothing is found."""
        if not self._lock.acquire(blocking=False):
            return [None] * len(keys)
        try:
            return [self.find(teacher_id, key, cache=cache) for key in keys]
        finally:
            self._lock.release()

    def read(self, places: Sequence[Place], names: Sequence[str]) -> dict[str, AnyArray]:
        """Outputs of committed answers, arrays [B, ...] in the stored dtype (int8: float32), folded or not.

        Waits for nobody.
        """
        return {name: self._teachers.answers(places, name) for name in names}

    # Keeping

    def commit(
        self,
        cache: CacheHandle,
        *,
        run: str,
        reservation: Reservation,
        keys: Bytes,
        rows: Sequence[int] | NDArray[np.int64],
        views: Sequence[int] | NDArray[np.int64],
        labels: Sequence[int] | NDArray[np.int64],
        outputs: Mapping[str, AnyArray],
        aliases: Sequence[tuple[int, int, int, int]] = (),
        call: ModelCall | None = None,
    ) -> list[Place]:
        """Keep answers [B] durably and settle their calls; see `AnswerBatch` for the arguments. One transaction.

        Returns the place of every item, then of every alias. Raises `AnswerError` for an answer that must not be
        kept and `DiskFullError`; nothing is kept then, and the calls are still reserved.
        """
        batch = AnswerBatch(
            cache=cache,
            run=run,
            owner=reservation.payer.owner,
            reservation=reservation,
            keys=keys,
            rows=rows,
            views=views,
            labels=labels,
            outputs=outputs,
            aliases=aliases,
            call=call,
        )
        return self.commit_all([batch])[0]

    def commit_all(self, batches: Sequence[AnswerBatch]) -> list[list[Place]]:
        """`commit` for several batches, of any runs and caches, in one transaction."""
        packed = [pack_answers(batch) for batch in batches]
        with self._lock:
            check_paid(batches)
            for run in {batch.run for batch in batches if batch.run is not None}:
                self._ledger.check_run(run)
            stage = Stage(self._teachers)
            places = [stage.add_batch(batch, answers) for batch, answers in zip(batches, packed, strict=True)]
            grown = self._write(stage)
            for batch in batches:
                if batch.reservation is not None:
                    self._reservations.settle(batch.reservation, calls=batch.calls)
        self._fold_soon(grown)
        return places

    def adopt(
        self,
        cache: CacheHandle,
        *,
        keys: Bytes,
        rows: Sequence[int] | NDArray[np.int64],
        views: Sequence[int] | NDArray[np.int64],
        labels: Sequence[int] | NDArray[np.int64],
        outputs: Mapping[str, AnyArray],
    ) -> list[Place]:
        """Keep answers that another server paid for: like `commit`, but counting no calls and charging nobody."""
        batch = AnswerBatch(
            cache=cache, run=None, reservation=None, keys=keys, rows=rows, views=views, labels=labels, outputs=outputs
        )
        return self.commit_all([batch])[0]

    def alias(
        self, cache: CacheHandle, *, run: str, items: Sequence[AliasItem], owner: str = LOCAL_OWNER
    ) -> list[Place]:
        """Slots of their own, with the same bytes and 0 calls, for (row, view, label, place of the same pixels)."""
        check_rows(cache, rows=[row for row, *_ in items], views=[view for _, view, *_ in items])
        with self._lock:
            self._ledger.check_run(run)
            stage = Stage(self._teachers)
            places = [stage.add_alias(cache, payer=Payer(owner, run), item=item) for item in items]
            grown = self._write(stage)
        self._fold_soon(grown)
        return places

    def _write(self, stage: Stage) -> list[CacheHandle]:
        """Make a stage durable, then real; returns the caches that grew."""
        self._last_commit = monotonic()
        self._count_hits()
        with self._ledger.transaction() as database:
            stage.write(database, ledger=self._ledger)
        self._ledger.apply_calls(stage.calls)
        return stage.apply()

    def note_hits(
        self, *, run: str, cache: CacheHandle, places: Sequence[Place], joined: int = 0, owner: str = LOCAL_OWNER
    ) -> None:
        """Count answers a run got without a call of its own, ``joined`` of them while they were being computed.

        Charges what the run had not consumed yet. Durable with the next transaction, at the latest a second later.
        Waits for nobody: while another thread commits, they are counted when it has.
        """
        self._ledger.check_run(run)
        self._hits.append((Payer(owner, run), cache, places, joined))
        if self._lock.acquire(blocking=False):
            try:
                self._count_hits()
            finally:
                self._lock.release()

    def _count_hits(self) -> None:
        """Under the lock: what `note_hits` was told since."""
        while self._hits:
            payer, cache, places, joined = self._hits.popleft()
            self._ledger.note_hits(payer, cache=cache.index, hits=len(places) - joined, joined=joined)
            self._ledger.charges.note(payer, self._teachers.canonical(places))

    # Folding

    def fold(self, cache: CacheHandle | None = None) -> None:
        """Move all committed answers into Zarr, of one cache or of all; raises `DiskFullError`, nothing is lost.

        Others commit and read meanwhile.
        """
        self._folding.fold(cache)

    def _fold_soon(self, grown: Sequence[CacheHandle]) -> None:
        """Have full blocks folded by the housekeeping's thread, or here where it cannot keep up."""
        if self._folding.note(grown):
            self._housekeeping.wake()
        if self._folding.is_behind(grown):
            self._folding.fold_due()

    def _tidy(self) -> None:
        """Every second, or woken: write hits, fold full blocks; after a quiet time: fold the tail."""
        with self._lock:
            if self._closed:
                return
            self._count_hits()
            self._ledger.flush()
            quiet = monotonic() - self._last_commit > IDLE_S
            if quiet:
                self._last_commit = monotonic()
        self._folding.fold_due()
        if quiet:
            self._folding.fold_rest()

    # Counts

    def ledger_counts(self) -> dict[str, Any]:
        """What ``GET /v1/ledger`` answers."""
        with self._lock:
            self._count_hits()
            return {**self._ledger.describe(), "reserved": self._reservations.open_calls}

    def info(self) -> dict[str, Any]:
        """What ``logit-cache info --json`` prints."""
        with self._lock:
            self._count_hits()
            self._ledger.flush()
        return describe_cache(self.path)
