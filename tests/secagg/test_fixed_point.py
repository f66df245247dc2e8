"""Fixed point: half a unit of error, exact signed sums, refusals instead of wrap-around."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scarcity_ray.errors import UsageError
from scarcity_ray.secagg import decode, encode, to_signed

REALS = hnp.arrays(np.float32, st.integers(1, 30), elements=st.floats(-100, 100, width=32))


@given(vector=REALS, exponent=st.integers(0, 22), ring_bits=st.sampled_from([32, 64]))
def test_rounding_error_is_at_most_half_a_unit(vector, exponent, ring_bits):
    scale = 2.0 ** min(exponent, 24)
    units = to_signed(encode(vector, scale, ring_bits))
    assert np.all(np.abs(units - vector.astype(np.float64) * scale) <= 0.5)


@given(
    matrix=hnp.arrays(np.float64, (5, 7), elements=st.floats(-50, 50)),
    scale=st.floats(1e-3, 1e6),
    ring_bits=st.sampled_from([32, 64]),
)
def test_sum_of_encodings_decodes_to_the_signed_sum(matrix, scale, ring_bits):
    rows = [encode(row, scale, ring_bits) for row in matrix]
    total = np.sum(rows, axis=0, dtype=rows[0].dtype)
    expected = np.sum([[round(x * scale) for x in row] for row in matrix], axis=0)
    np.testing.assert_array_equal(to_signed(total), expected)
    np.testing.assert_array_equal(decode(total, scale), expected / scale)


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_signed_decode_covers_the_whole_range(ring_bits):
    dtype = np.dtype(f"uint{ring_bits}")
    words = np.array([0, 1, 2 ** (ring_bits - 1) - 1, 2 ** (ring_bits - 1), 2**ring_bits - 1], dtype=dtype)
    half = 2 ** (ring_bits - 1)
    assert to_signed(words).tolist() == [0, 1, half - 1, -half, -1]
    assert to_signed(words).dtype == np.int64


@pytest.mark.parametrize(
    ("vector", "scale", "ring_bits"),
    [
        ([np.nan], 1.0, 32),
        ([np.inf], 1.0, 64),
        ([2.0**31], 1.0, 32),
        ([-(2.0**31) - 1], 1.0, 32),
        ([2.0**63], 1.0, 64),
        ([1.0], 0.0, 32),
        ([1.0], np.nan, 32),
        ([1.0], 1.0, 16),
        ([1e300], 1e300, 64),
        ([1j], 1.0, 32),
        (["one"], 1.0, 32),
        ([None], 1.0, 32),
    ],
)
def test_what_does_not_fit_is_refused(vector, scale, ring_bits):
    with pytest.raises(UsageError):
        encode(np.array(vector), scale, ring_bits)


def test_the_edges_of_the_range_fit():
    assert to_signed(encode(np.array([2.0**31 - 1, -(2.0**31)]), 1.0, 32)).tolist() == [2**31 - 1, -(2**31)]


def test_ties_go_to_even_and_the_input_is_left_alone():
    vector = np.array([0.5, 1.5, -0.5, -1.5], dtype=np.float32)
    vector.flags.writeable = False
    assert to_signed(encode(vector, 1.0, 32)).tolist() == [0, 2, 0, -2]


def test_other_types_are_no_ring():
    with pytest.raises(UsageError):
        to_signed(np.zeros(3, dtype=np.int32))
