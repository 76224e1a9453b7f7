"""What each encoding of logits costs in bytes and in error, measured on a cache's own answers.

Shape key: B answers of a batch, C classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cache.encoding import decode_rows, encode_rows
from cache.layout import OUTPUT_DTYPES, AnyArray, output_specs
from cache.reader import CacheReader
from shared.errors import InputError

BATCH = 256
"""DIST and CKD compare the answers of a batch with each other."""
EPS = 1e-8

Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fidelity:
    """One encoding against the answers as they are kept: means over rows, or over batches of `BATCH`."""

    encoding: str
    bytes_per_row: int
    """Of the logits alone."""
    top1_agreement: float
    """Rows whose largest logit stays the largest, 0 to 1."""
    kl_tau1: float
    """KL(kept || encoded) of the softmax, in nats."""
    kl_tau4: float
    mse: float
    """Over rows and classes."""
    dist: float
    """1 - Pearson over classes plus 1 - Pearson over the batch, of the softmax (Huang et al. 2022); no tau^2."""
    ckd: float
    """Squared error between differences of all ordered pairs (Xu et al. 2025, the relation term)."""


def measure_fidelity(
    path: Path, *, teacher: str | None = None, dataset: str | None = None, samples: int = 8192, seed: int = 0
) -> list[Fidelity]:
    """Every encoding on ``samples`` random answers of a cache; what it was kept in already costs nothing more here.

    Raises `InputError` for a cache that holds fewer than two answers.
    """
    with CacheReader.open(path, teacher=teacher, dataset=dataset) as reader:
        if reader.num_slots < 2:
            raise InputError(f"{path} has {reader.num_slots} folded answers, two or more are compared: fill it first")
        chosen = np.random.default_rng(seed).permutation(reader.num_slots)[:samples]
        rows, views = reader.rows_and_views(chosen)
        kept = reader.gather(rows, view=views, outputs="logits")["logits"].astype(np.float32)
    # A last batch of one has nothing to be compared with.
    kept = kept[: len(kept) - (len(kept) % BATCH == 1)] if len(kept) > BATCH else kept
    return [_fidelity(kept, encoding=encoding) for encoding in OUTPUT_DTYPES]


def _fidelity(kept: AnyArray, *, encoding: str) -> Fidelity:
    arrays = output_specs({"logits": encoding}, classes=kept.shape[1], features=0)
    batches = [kept[start : start + BATCH] for start in range(0, len(kept), BATCH)]
    weights = [len(batch) for batch in batches]
    measured = [_errors(batch.astype(np.float64), seen(batch, encoding=encoding)) for batch in batches]
    means = {name: float(np.average([errors[name] for errors in measured], weights=weights)) for name in measured[0]}
    return Fidelity(encoding=encoding, bytes_per_row=sum(array.slot_bytes for array in arrays), **means)


def seen(values: AnyArray, *, encoding: str) -> Doubles:
    """What readers of an encoding see of float32 values [B, C]."""
    read = decode_rows(*encode_rows(values)) if encoding == "int8" else values.astype(encoding)
    return read.astype(np.float64)


def _errors(kept_BC: Doubles, seen_BC: Doubles) -> dict[str, float]:
    return {
        "top1_agreement": float((kept_BC.argmax(axis=1) == seen_BC.argmax(axis=1)).mean()),
        "kl_tau1": _kl(kept_BC, seen_BC),
        "kl_tau4": _kl(kept_BC / 4, seen_BC / 4),
        "mse": float(np.square(kept_BC - seen_BC).mean()),
        "dist": _dist(_softmax(kept_BC), _softmax(seen_BC)),
        "ckd": _ckd(kept_BC, seen_BC),
    }


def _log_softmax(logits_BC: Doubles) -> Doubles:
    shifted = logits_BC - logits_BC.max(axis=1, keepdims=True)
    result: Doubles = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _softmax(logits_BC: Doubles) -> Doubles:
    result: Doubles = np.exp(_log_softmax(logits_BC))
    return result


def _kl(kept_BC: Doubles, seen_BC: Doubles) -> float:
    kept_log, seen_log = _log_softmax(kept_BC), _log_softmax(seen_BC)
    return float((np.exp(kept_log) * (kept_log - seen_log)).sum(axis=1).mean())


def _dist(kept_BC: Doubles, seen_BC: Doubles) -> float:
    return sum(1 - float(_pearson(kept_BC, seen_BC, axis=axis).mean()) for axis in (1, 0))


def _pearson(first: Doubles, second: Doubles, *, axis: int) -> Doubles:
    first = first - first.mean(axis=axis, keepdims=True)
    second = second - second.mean(axis=axis, keepdims=True)
    norms = np.linalg.norm(first, axis=axis) * np.linalg.norm(second, axis=axis)
    # Equal sides without any spread (a class that nobody has a chance of) agree.
    same = (first == second).all(axis=axis)
    result: Doubles = np.where(same, 1.0, (first * second).sum(axis=axis) / (norms + EPS))
    return result


def _ckd(kept_BC: Doubles, seen_BC: Doubles) -> float:
    """Mean over ordered pairs i != j and classes of ((k_i - k_j) - (s_i - s_j))^2, in closed form."""
    error_BC = kept_BC - seen_BC
    spread = np.square(error_BC - error_BC.mean(axis=0)).sum()
    return float(2 * spread / (max(1, len(error_BC) - 1) * error_BC.shape[1]))
