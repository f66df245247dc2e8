from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

from scarcity_ray.buffer import Rejection, content_digest, read_row

DIMENSION = 3


class Hostile:
    def __array__(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError("boom")

    def __float__(self) -> float:
        raise RuntimeError("boom")


class HostileList(list):
    def __iter__(self) -> None:
        raise RuntimeError("boom")


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (None, Rejection.NOT_NUMERIC),
        (np.ma.masked_array([1.0, 2.0, 3.0], [True, False, False]), Rejection.NOT_NUMERIC),
        ("abc", Rejection.NOT_NUMERIC),
        (b"abc", Rejection.NOT_NUMERIC),
        (True, Rejection.NOT_NUMERIC),
        (1j, Rejection.NOT_NUMERIC),
        ({"a": 1}, Rejection.NOT_NUMERIC),
        (Hostile(), Rejection.NOT_NUMERIC),
        ([Hostile()] * 3, Rejection.NOT_NUMERIC),
        (HostileList([1.0] * 3), Rejection.NOT_NUMERIC),
        (["1", "2", "3"], Rejection.NOT_NUMERIC),
        ([1.0, None, 2.0], Rejection.NOT_NUMERIC),
        ([True, False, True], Rejection.NOT_NUMERIC),
        ([1j, 0.0, 0.0], Rejection.NOT_NUMERIC),
        (np.array([1.0, None, 3.0], dtype=object), Rejection.NOT_NUMERIC),
        (np.array([1.0, True, 3.0], dtype=object), Rejection.NOT_NUMERIC),
        (np.array(["a", "b", "c"]), Rejection.NOT_NUMERIC),
        (np.array([True, False, True]), Rejection.NOT_NUMERIC),
        (np.array([1j, 2, 3]), Rejection.NOT_NUMERIC),
        (np.array([1, 2, 3], dtype="M8[s]"), Rejection.NOT_NUMERIC),
        (np.zeros(3, dtype=[("a", "f4")]), Rejection.NOT_NUMERIC),
        (np.bool_(True), Rejection.NOT_NUMERIC),
        (1.0, Rejection.WRONG_SHAPE),
        (10**400, Rejection.WRONG_SHAPE),
        (np.float64(1), Rejection.WRONG_SHAPE),
        (np.array(1.0), Rejection.WRONG_SHAPE),
        (np.zeros((1, 3)), Rejection.WRONG_SHAPE),
        (np.zeros((3, 1)), Rejection.WRONG_SHAPE),
        (np.zeros(2), Rejection.WRONG_SHAPE),
        (np.zeros(0), Rejection.WRONG_SHAPE),
        ([], Rejection.WRONG_SHAPE),
        ([1.0, 2.0], Rejection.WRONG_SHAPE),
        ([[1.0], [2.0], [3.0]], Rejection.WRONG_SHAPE),
        ([[1.0], [2.0, 3.0], 4.0], Rejection.WRONG_SHAPE),
        (np.array([1.0, np.nan, 2.0]), Rejection.NOT_FINITE),
        (np.array([1.0, -np.inf, 2.0], dtype=np.float16), Rejection.NOT_FINITE),
        (np.array([1.0, 1e39, 2.0]), Rejection.NOT_FINITE),
        (np.array([1.0, 1e300, 2.0], dtype=np.longdouble), Rejection.NOT_FINITE),
        ([1.0, float("nan"), 2.0], Rejection.NOT_FINITE),
        ([10**400, 1, 2], Rejection.NOT_FINITE),
        ([10**40, 1, 2], Rejection.NOT_FINITE),
    ],
)
def test_hostile_messages_have_a_reason(message: object, reason: Rejection) -> None:
    assert read_row(message, DIMENSION) is reason


@pytest.mark.parametrize(
    "message",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        [np.float32(1), np.int64(2), 3],
        np.array([1, 2, 3], dtype=np.uint8),
        np.array([1, 2, 3], dtype=">f8"),
        np.array([1, 2, 3], dtype=np.float16),
        np.array([1, 0, 2, 0, 3, 0], dtype=np.float32)[::2],
    ],
)
def test_real_vectors_become_a_row_of_our_own(message: object) -> None:
    row = read_row(message, DIMENSION)
    assert isinstance(row, np.ndarray)
    assert (row.dtype, row.tolist(), row.flags.writeable) == (np.float32, [1, 2, 3], False)
    assert content_digest(row) == content_digest(np.array([1, 2, 3], dtype=np.float32))
    assert row.flags.owndata


def test_large_finite_values_are_kept() -> None:
    assert read_row(np.full(3, 3e38), DIMENSION).tolist() == pytest.approx([3e38] * 3, rel=1e-6)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner, inner),
    max_leaves=6,
)
arrays = hnp.arrays(
    dtype=hnp.scalar_dtypes() | st.just(np.dtype(object)),
    shape=hnp.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=4),
)


@settings(max_examples=200, deadline=None)
@given(anything | arrays)
def test_no_message_raises_and_what_is_read_is_finite(message: object) -> None:
    row = read_row(message, DIMENSION)
    if not isinstance(row, Rejection):
        assert row.shape == (DIMENSION,)
        assert row.dtype == np.float32
        assert np.isfinite(row).all()
