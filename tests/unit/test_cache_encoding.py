"""int8 with a scale and a zero per row: how far values move."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cache.encoding import decode_rows, encode_rows

LOGITS = st.floats(-65504, 65504, width=32)


@given(values=arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 40)), elements=LOGITS))
def test_no_value_moves_by_more_than_half_a_step(values: np.ndarray) -> None:
    steps, scale, zero = encode_rows(values)
    assert (steps.dtype, scale.dtype, zero.dtype) == (np.int8, np.float32, np.float32)
    moved = np.abs(decode_rows(steps, scale, zero).astype(np.float64) - values)
    # Beside half a step: what float32 cannot tell apart at this size.
    allowed = scale / 2 + 4 * np.spacing(np.abs(values).max(axis=1))
    assert (moved.max(axis=1) <= allowed).all()


def test_the_steps_are_those_of_a_row_computed_by_hand() -> None:
    """0 to 255 in steps of one: value v is step v - 128 of scale 1 and zero 128."""
    values = np.array([[0.0, 255.0, 3.0, 100.4], [-2.0, 508.0, 2.0, 0.0]])
    steps, scale, zero = encode_rows(values)
    assert steps.tolist() == [[-128, 127, -125, -28], [-128, 127, -126, -127]]
    assert (scale.tolist(), zero.tolist()) == ([1.0, 2.0], [128.0, 254.0])
    assert decode_rows(steps, scale, zero).tolist() == [[0, 255, 3, 100], [-2, 508, 2, 0]]


@pytest.mark.parametrize("value", [0.0, -3.25, 65504.0, 1e-30])
def test_a_row_of_equal_values_is_exact(value: float) -> None:
    steps, scale, zero = encode_rows(np.full((1, 7), value))
    np.testing.assert_array_equal(decode_rows(steps, scale, zero), np.full((1, 7), value, np.float32))


def test_maps_have_one_scale_per_slot() -> None:
    values = np.random.default_rng(0).standard_normal((3, 2, 4, 4)).astype(np.float32)
    steps, scale, zero = encode_rows(values)
    assert steps.shape == values.shape
    assert scale.shape == zero.shape == (3,)
    out = np.empty_like(values)
    assert decode_rows(steps, scale, zero, out=out) is out
    assert np.abs(out - values).max() < scale.max()
