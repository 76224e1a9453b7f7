"""Answers that arrive together, checked and rounded to the dtype they are kept in.

Shape key: B answers, A answer bytes of one slot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cache.encoding import encode_rows
from cache.handle import CacheHandle
from cache.layout import AnyArray, ArraySpec, Bytes, companions
from cache.model_call import ModelCall
from cache.payer import LOCAL_OWNER
from cache.reservation import Reservation
from cache.slot_index import VIEW_SHIFT
from shared.errors import AnswerError, InputError, OutputNotCachedError, RowRangeError
from shared.identity import KEY_BYTES

MAX_ABS = 65504.0
"""Largest finite float16; larger answers are refused in every dtype, so that a cache can be converted."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class AnswerBatch:
    """Answers of one teacher for one cache."""

    cache: CacheHandle
    run: str | None
    """Who is charged; None: nobody."""
    owner: str = LOCAL_OWNER
    """Whose key asked, charged beside the run."""
    reservation: Reservation | None
    """Pays the calls of every item; None: no calls are counted."""
    keys: Bytes
    """Keys of the pixels, uint8 [B, 32]."""
    rows: Sequence[int] | NDArray[np.int64]
    """Rows [B]; -1 for an upload, which gets the next one, or the place of an earlier answer to its key."""
    views: Sequence[int] | NDArray[np.int64]
    """Views [B]."""
    labels: Sequence[int] | NDArray[np.int64]
    """Labels [B]; -1 where there is none."""
    outputs: Mapping[str, AnyArray]
    """What the teacher said, arrays [B, ...] of floats; outputs that the cache does not keep are ignored.

    Where the cache keeps int8, also int8 with its ``.scale`` and ``.zero``, as ``CacheReader.gather(encoded=True)``
    gives them.
    """
    aliases: Sequence[tuple[int, int, int, int]] = ()
    """(row, view, label, item): more rows that show the pixels of an item of this batch."""
    paid_answers: int | None = None
    """Answers that the reservation pays; None: all items. Others have pixels that were answered already."""
    call: ModelCall | None = None
    """The forward pass that brought the answers, for the history; batches of one pass share it. None: not recorded."""

    @property
    def calls(self) -> int:
        """Calls that the reservation pays."""
        answers = len(self.keys) if self.paid_answers is None else self.paid_answers
        return answers * self.cache.calls_per_answer


def pack_answers(batch: AnswerBatch) -> Bytes:
    """The batch's answers as bytes [B, A] in the cache's dtypes; checks everything else too.

    Raises `AnswerError` naming the rows whose answer is not finite or too large, `RowRangeError`, `InputError`.
    """
    count = len(batch.keys)
    if batch.keys.dtype != np.uint8 or batch.keys.shape != (count, KEY_BYTES):
        raise InputError(f"keys must be uint8 [B, {KEY_BYTES}]; got {batch.keys.dtype} {list(batch.keys.shape)}")
    for name in ("rows", "views", "labels"):
        if len(getattr(batch, name)) != count:
            raise InputError(f"{len(getattr(batch, name))} {name} for {count} keys")
    check_rows(batch.cache, rows=batch.rows, views=batch.views)
    check_rows(batch.cache, rows=[row for row, *_ in batch.aliases], views=[view for _, view, *_ in batch.aliases])
    parts = [part for spec in batch.cache.specs if spec.is_output for part in _pack(batch, spec=spec)]
    return np.concatenate(parts, axis=1)


def check_rows(cache: CacheHandle, *, rows: ArrayLike, views: ArrayLike) -> None:
    """Raise `RowRangeError` for a row or view that a cache cannot hold."""
    rows, views = np.asarray(rows, dtype=np.int64), np.asarray(views, dtype=np.int64)
    # Uploads have no rows of their own: -1 asks for the next one.
    low, high = (0, cache.dataset.rows) if cache.dataset.rows else (-1, 1 << VIEW_SHIFT)
    wrong = np.flatnonzero((rows < low) | (rows >= high))
    if len(wrong):
        raise RowRangeError(f"row {rows[wrong[0]]} is not a row of {cache.dataset.name}: use {low} to {high - 1}")
    wrong = np.flatnonzero((views < 0) | (views >= 1 << 20))
    if len(wrong):
        raise RowRangeError(f"view {views[wrong[0]]} cannot be kept: use 0 to {(1 << 20) - 1}")


def _pack(batch: AnswerBatch, *, spec: ArraySpec) -> list[Bytes]:
    """Bytes [B, ...] of the arrays of one output."""
    if spec.name not in batch.outputs:
        raise OutputNotCachedError(f"the cache keeps {spec.name}, the answers have only {', '.join(batch.outputs)}")
    values: NDArray[Any] = np.asarray(batch.outputs[spec.name])
    beside = companions(spec)
    if beside and values.dtype == np.int8:
        return _pack_encoded(batch, spec=spec)
    if values.shape != (len(batch.keys), *spec.shape) or values.dtype.kind != "f":
        expected = [len(batch.keys), *spec.shape]
        raise AnswerError(f"{spec.name} must be floats {expected}; got {values.dtype} {list(values.shape)}")
    # Written so that NaN fails it too.
    wrong = np.flatnonzero(~(np.abs(values) <= MAX_ABS).reshape(len(values), -1).all(axis=1))
    if len(wrong):
        raise AnswerError(
            f"{spec.name} of {_names(batch, wrong)} not finite or beyond {MAX_ABS:g}: not kept; check the teacher"
        )
    if beside:
        encoded: tuple[AnyArray, ...] = encode_rows(values)
        return [_as_bytes(part, spec=array) for part, array in zip(encoded, (spec, *beside), strict=True)]
    return [_as_bytes(values, spec=spec)]


def _pack_encoded(batch: AnswerBatch, *, spec: ArraySpec) -> list[Bytes]:
    """Answers that another cache encoded: kept as they are, since encoding them again could change low bits."""
    arrays = (spec, *companions(spec))
    values = [np.asarray(batch.outputs.get(array.name, ())) for array in arrays]
    for array, part in zip(arrays, values, strict=True):
        if part.shape != (len(batch.keys), *array.shape) or part.dtype != array.numpy_dtype:
            expected = f"{array.dtype} {[len(batch.keys), *array.shape]}"
            raise AnswerError(f"{array.name} must be {expected}; got {part.dtype} {list(part.shape)}")
    if not np.isfinite(values[1:]).all():
        raise AnswerError(f"scales or zeros of {spec.name} are not finite: not kept; check where they come from")
    return [_as_bytes(part, spec=array) for array, part in zip(arrays, values, strict=True)]


def _as_bytes(values: AnyArray, *, spec: ArraySpec) -> Bytes:
    return np.ascontiguousarray(values, dtype=spec.numpy_dtype).reshape(len(values), -1).view(np.uint8)


def _names(batch: AnswerBatch, wrong: NDArray[np.intp]) -> str:
    shown = [f"{batch.rows[at]}" if batch.rows[at] >= 0 else f"(upload {at})" for at in wrong[:5].tolist()]
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    plural = "row" if len(wrong) == 1 else "rows"
    verb = "is" if len(wrong) == 1 else "are"
    return f"{plural} {', '.join(shown)}{more} of {batch.cache.dataset.name} {verb}"
