"""int8 answers: every row has a scale and a zero of its own.

Shape key: B answers.
"""

import numpy as np
from numpy.typing import NDArray

from cache.layout import AnyArray

Floats = NDArray[np.float32]
LOWEST, HIGHEST = -128, 127


def encode_rows(values: AnyArray) -> tuple[NDArray[np.int8], Floats, Floats]:
    """int8 [B, ...], scale [B] and zero [B] of finite floats [B, ...]; no value is off by more than half a scale.

    A row's lowest value becomes -128, its highest 127.
    """
    rows = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    low, high = rows.min(axis=1), rows.max(axis=1)
    scale = ((high - low) / (HIGHEST - LOWEST)).astype(np.float32)
    zero = (low - LOWEST * scale.astype(np.float64)).astype(np.float32)
    # Steps are counted with scale and zero as they are kept. A row of equal values has no steps: its zero says it all.
    steps = np.where(scale > 0, scale, 1).astype(np.float64)[:, None]
    counted = np.rint((rows - zero[:, None]) / steps).clip(LOWEST, HIGHEST).astype(np.int8)
    return counted.reshape(np.shape(values)), scale, zero


def decode_rows(steps: AnyArray, scale: Floats, zero: Floats, *, out: Floats | None = None) -> Floats:
    """``steps * scale + zero`` in float32 [B, ...], product and sum rounded one after the other; into ``out`` if given.

    Everyone who reads an int8 answer sees these numbers.
    """
    per_row = (len(steps), *[1] * (steps.ndim - 1))
    values: Floats = np.multiply(steps, scale.reshape(per_row), out=out, dtype=np.float32)
    values += zero.reshape(per_row)
    return values
