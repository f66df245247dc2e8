from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust import (
    clip_rows,
    clip_vector,
    row_norm,
    row_norms,
)
from scarcity_ray.robust.measures.rows import norms_from


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40))
def test_a_norm_is_exact_to_float64_rounding(values):
    row = np.array(values, np.float32)
    assert row_norm(row) == pytest.approx(float(np.linalg.norm(row.astype(np.float64))), rel=1e-12)


def test_a_norm_is_finite_if_and_only_if_the_row_is():
    largest = np.full(20_000, np.finfo(np.float32).max)
    assert np.isfinite(row_norm(largest))
    for bad in (np.nan, np.inf, -np.inf):
        row = largest.copy()
        row[-1] = bad
        assert not np.isfinite(row_norm(row))


@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    st.floats(1e-3, 1e3),
)
def test_a_clipped_row_has_at_most_the_clip_norm(values, clip_norm):
    row = np.array(values, np.float32)
    before = row.tobytes()
    clipped = clip_vector(row, clip_norm)
    assert clipped.dtype == np.float32
    assert row_norm(clipped) <= clip_norm * (1 + 2.0**-23)
    if row_norm(row) <= clip_norm:
        assert clipped.tobytes() == before
    else:
        assert row_norm(clipped) == pytest.approx(clip_norm, rel=1e-6)
    assert row.tobytes() == before
    assert not np.shares_memory(clipped, row)


def test_rows_within_the_clip_norm_are_returned_bit_by_bit_and_all_rows_as_clip_vector_does():
    rows = np.random.default_rng(0).standard_normal((5, 9000)).astype(np.float32)
    rows[1] *= 1e-3
    rows.flags.writeable = False
    clipped = clip_rows(rows, row_norms(rows), 2.0)
    assert clipped[1].tobytes() == rows[1].tobytes()
    for row, result in zip(rows, clipped, strict=True):
        assert result.tobytes() == clip_vector(row, 2.0).tobytes()


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=8),
    st.sampled_from([1e-30, 1e-3, 1.0, 1e30, np.inf]),
    st.sampled_from([1e-30, 1e-3, 0.5, 1.0, 3e38]),
)
def test_norms_from_a_bound_are_exact_and_others_lie_below_it(values, size, least):
    with np.errstate(invalid="ignore"):
        row = (np.array(values) * size).astype(np.float32)
    norm, found = row_norm(row), norms_from([row], least)[0]
    np.testing.assert_equal(found, norm if not norm < least else found)
    assert not norm < least or found < least
