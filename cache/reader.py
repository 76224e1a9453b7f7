"""Reads a cache: checks whose answers they are, then gathers them by row and view. Needs no ledger and no write access.

Shape key: B rows asked for, N rows, S slots, V views.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.catalog import read_catalog, select
from cache.constants import read_constants
from cache.epoch import epoch_order, epoch_slices, window_slots
from cache.layout import AnyArray, Bytes, forms_of, output_dtypes
from cache.placement import ORDERS, Order
from cache.sameness import KeyedDataset, check_same_images
from cache.snapshot import Snapshot, read_snapshot
from shared.descriptions import DatasetDescription, TeacherDescription
from shared.errors import InputError, MissingRowsError, OutputNotCachedError, RowRangeError
from shared.outputs import OutputForm
from shared.views import view_count

Ints = NDArray[np.int64]


class CacheReader:
    """One teacher's answers about one data set, as of `open` or the last `refresh`."""

    def __init__(
        self,
        path: Path,
        *,
        teacher: str | None,
        dataset: str | None,
        journal: bool,
        order: Order,
        in_memory: bool,
        check: bool,
    ) -> None:
        """Use `open`."""
        if order not in ORDERS:
            raise InputError(f"unknown order {order!r}; known: {', '.join(ORDERS)}")
        self._path = path
        self._journal = journal
        self._in_memory = in_memory
        self._check = check
        self.order: Order = order
        """How `epoch` visits answers."""
        entry = select(read_catalog(path), path=path, teacher=teacher, dataset=dataset)
        self.teacher: TeacherDescription = entry.teacher
        self.dataset: DatasetDescription = entry.dataset
        self.outputs: tuple[str, ...] = tuple(spec.name for spec in entry.specs if spec.is_output)
        """Names of what is kept."""
        self.dtypes: dict[str, str] = output_dtypes(entry.specs)
        """Stored dtype of each output; int8 is read as float32."""
        self.forms: dict[str, OutputForm] = forms_of(entry.specs)
        """Shape of each output for one row; an attention has ``height`` and ``width``."""
        self._last_view = view_count(self.dataset.view_policy) if self.dataset.rows else 0
        self._open: Snapshot | None = read_snapshot(
            path, entry=entry, journal=journal, in_memory=in_memory, check=check
        )

    @classmethod
    def open(
        cls,
        path: Path | str,
        teacher: str | None = None,
        dataset: str | None = None,
        journal: bool = False,
        *,
        order: Order = "random",
        in_memory: bool = False,
        check: bool = False,
    ) -> Self:
        """Open the cache in the folder ``path``.

        ``teacher`` is an id or its beginning, ``dataset`` is ``NAME/SPLIT``; both optional where one holds answers.
        ``journal`` adds answers that are committed but not folded yet (needs the ledger). ``order`` is that of `epoch`:
        "random", or "window" for answers that do not fit into memory, on a disk that seeks slowly. ``in_memory`` copies
        the answers: gathering is somewhat faster, opening slower, and other processes no longer share them.
        ``check`` compares every block of 8192 answers with its checksum before the first of them is gathered.
        Raises `IdentityError` for a cache of another teacher, `UnknownNameError` for a data set it does not have,
        `CorruptCacheError` for files that are damaged or short, `InputError`.
        """
        return cls(
            Path(path),
            teacher=teacher,
            dataset=dataset,
            journal=journal,
            order=order,
            in_memory=in_memory,
            check=check,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process (a spawned DataLoader worker) the same files are opened again, the pages are shared."""
        return _reopen, (
            type(self),
            {
                "path": self._path,
                "teacher": self.teacher.id,
                "dataset": self.dataset.name,
                "journal": self._journal,
                "order": self.order,
                "in_memory": self._in_memory,
                "check": self._check,
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files; arrays that were gathered stay valid."""
        self._open = None

    def refresh(self) -> None:
        """See what was folded (or, with ``journal``, committed) since."""
        entry = select(read_catalog(self._path), path=self._path, teacher=self.teacher.id, dataset=self.dataset.name)
        self._open = read_snapshot(
            self._path, entry=entry, journal=self._journal, in_memory=self._in_memory, check=self._check
        )

    @property
    def _now(self) -> Snapshot:
        if self._open is None:
            raise InputError("this reader is closed; open the cache again")
        return self._open

    @property
    def view_policy(self) -> str:
        """Which numbered views exist, see `shared.views`."""
        return self.dataset.view_policy

    @property
    def num_rows(self) -> int:
        """N: rows of the data set, cached or not."""
        return self.dataset.rows or self._now.index.num_rows

    @property
    def num_views(self) -> int:
        """V: views under which at least one row is answered; which rows, `present` says."""
        return self._now.num_views

    @property
    def num_slots(self) -> int:
        """S: answers there are."""
        return self._now.slots

    @cached_property
    def constants(self) -> Mapping[str, AnyArray]:
        """What the teacher says once, by name, such as ``classifier.weight`` [C, D]; empty where it was not kept."""
        return read_constants(self._path, teacher=self.teacher.id)

    def present(self, view: int = 0) -> NDArray[np.bool_]:
        """Which rows are answered under a view, bool [N]."""
        mask = np.zeros(self.num_rows, dtype=np.bool_)
        mask[self._now.index.rows_of(view)] = True
        return mask

    def gather(
        self,
        rows: ArrayLike,
        view: int | ArrayLike = 0,
        outputs: Sequence[str] | str | None = None,
        out: Mapping[str, AnyArray] | None = None,
        *,
        encoded: bool = False,
    ) -> dict[str, AnyArray]:
        """Answers about rows [B], arrays [B, ...] in the stored dtype; ``view`` is one for all or an array [B].

        int8 is read as float32; with ``encoded`` it is left as it is kept, ``NAME.scale`` and ``NAME.zero`` beside it.

        ``outputs`` names what is wanted, one or several; None: all that ``out`` has, or all that is kept. ``out`` holds
        arrays by name, contiguous and of the result's shape and dtype, that are written into and returned.
        Raises `MissingRowsError`, `RowRangeError`, `OutputNotCachedError`.
        """
        into = out or {}
        outputs = self._named(tuple(into) or None if outputs is None else outputs)
        slots = self._slots(rows, view=view)
        now = self._now
        if encoded:
            return {spec.name: now.take(spec.name, slots) for spec in now.specs.values() if spec.output in outputs}
        return {name: now.answers(name, slots, out=into.get(name)) for name in outputs}

    def prefetch(self, rows: ArrayLike, view: int | ArrayLike = 0, outputs: Sequence[str] | str | None = None) -> None:
        """Rows [B] will be gathered soon: where not all fits into memory, have them read meanwhile; errors as there."""
        slots = self._slots(rows, view=view)
        for name in self._named(outputs):
            self._now.will_need(name, slots)

    def epoch(
        self,
        rows: ArrayLike,
        *,
        batch: int = 256,
        view: int | ArrayLike = 0,
        outputs: Sequence[str] | str | None = None,
        seed: int = 0,
    ) -> Iterator[tuple[Ints, dict[str, AnyArray]]]:
        """Every item of rows [n] under its view once, in batches of (positions in ``rows`` [B], answers by output).

        Shuffled by ``seed`` as the reader's `order` says, and read ahead where not all fits into memory.
        """
        if batch < 1:
            raise InputError(f"batches of {batch} answers; use 1 or more")
        names, now = self._named(outputs), self._now
        slots = self._slots(rows, view=view)
        window = window_slots(sum(spec.slot_bytes for spec in now.specs.values() if spec.is_output))
        visited = epoch_order(slots, order=self.order, window=window, seed=seed)
        slots = slots[visited]

        def will_need(soon: Ints) -> None:
            for name in names:
                now.will_need(name, soon)

        told = None if now.fits else will_need
        for piece in epoch_slices(slots, batch=batch, order=self.order, window=window, will_need=told):
            yield visited[piece], {name: now.answers(name, slots[piece]) for name in names}

    def _named(self, outputs: Sequence[str] | str | None) -> Sequence[str]:
        """What is wanted, every one kept here."""
        outputs = self.outputs if outputs is None else (outputs,) if isinstance(outputs, str) else outputs
        for name in outputs:
            if name not in self.outputs:
                raise OutputNotCachedError(f"{name!r} is not in this cache; it keeps {', '.join(self.outputs)}")
        return outputs

    def labels(self, rows: ArrayLike, view: int | ArrayLike = 0) -> Ints:
        """Labels [B] of cached rows, -1 for uploads; errors as in `gather`."""
        return self._now.take("labels", self._slots(rows, view=view))

    def keys(self, rows: ArrayLike, view: int | ArrayLike = 0) -> Bytes:
        """Keys of the pixels that were answered, uint8 [B, 32]; errors as in `gather`."""
        return self.slot_keys(self._slots(rows, view=view))

    def check_dataset(self, dataset: KeyedDataset, *, samples: int = 32, seed: int = 0) -> None:
        """Raise `IdentityError` naming the first offending row unless these are the images that were answered."""
        check_same_images(self, dataset, samples=samples, seed=seed)

    def rows_and_views(self, slots: Ints) -> tuple[Ints, Ints]:
        """Rows [B] and views [B] of slots [B] within [0, S)."""
        return self._now.take("rows", slots), self._now.take("views", slots).astype(np.int64)

    def slot_keys(self, slots: Ints) -> Bytes:
        """Keys of slots [B] within [0, S), uint8 [B, 32]."""
        return self._now.take("keys", slots)

    def _slots(self, rows: ArrayLike, *, view: int | ArrayLike) -> Ints:
        """Slots [B] of rows [B], every one checked."""
        rows = self._checked_rows(rows)
        chosen = view if isinstance(view, int) else self._checked_views(view, rows=rows)
        # View 0 beside those that the policy numbers; uploads have no other.
        if isinstance(chosen, int) and not 0 <= chosen <= self._last_view:
            raise self._no_view(chosen)
        slots = self._now.index.slots_of(rows, view=chosen)
        if len(slots) and slots.min() < 0:
            raise self._missing(rows[slots < 0], view=chosen)
        return slots

    def _checked_rows(self, rows: ArrayLike) -> Ints:
        checked = _integers(rows, what="rows")
        if checked.ndim != 1:
            raise InputError(f"rows must be one-dimensional; got shape {list(checked.shape)}")
        # As unsigned numbers, negative rows are the largest: one comparison finds both kinds of wrong ones.
        if len(checked) and checked.view(np.uint64).max() >= self.num_rows:
            wrong = checked[(checked < 0) | (checked >= self.num_rows)][0]
            raise RowRangeError(f"row {wrong} is not a row of {self.dataset.name}: use 0 to {self.num_rows - 1}")
        return checked

    def _checked_views(self, view: ArrayLike, *, rows: Ints) -> Ints:
        views = _integers(view, what="views")
        if views.shape not in ((), rows.shape):
            raise InputError(f"{views.size} views for {len(rows)} rows: give one view, or one per row")
        wrong = views[(views < 0) | (views > self._last_view)].reshape(-1)
        if len(wrong):
            raise self._no_view(int(wrong[0]))
        return views

    def _no_view(self, view: int) -> RowRangeError:
        return RowRangeError(f"view {view} does not exist under {self.view_policy}: use 0 to {self._last_view}")

    def _missing(self, rows: Ints, *, view: int | Ints) -> MissingRowsError:
        shown = ", ".join(str(row) for row in rows[:5])
        more = f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        under = f" under view {view}" if isinstance(view, int) else ""
        return MissingRowsError(
            f"{len(rows)} rows of {self.dataset.name} are not answered{under}: {shown}{more}; "
            f"fill them with `teacher-server fill --cache {self._path}`, or use rows that are present",
            rows=rows.tolist(),
            view=view if isinstance(view, int) else None,
        )


def _reopen(reader: type[CacheReader], arguments: dict[str, Any]) -> CacheReader:
    return reader(**arguments)


def _integers(values: ArrayLike, *, what: str) -> Ints:
    array = np.asarray(values)
    if array.size and array.dtype.kind not in "iu":
        raise InputError(f"{what} must be integers; got {array.dtype}")
    return array.astype(np.int64, copy=False)
