from __future__ import annotations

import array
import re
import tracemalloc

import hypothesis.strategies as st
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from scarcity_ray_client.updates import Rejection, content_digest, read_array, read_row, read_rows

DIMENSION = 3


class Hostile:
    def __array__(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError("boom")

    def __float__(self) -> float:
        raise RuntimeError("boom")


class Tensor:
    """As PyTorch's: gives itself as an array, and its rows and entries are tensors."""

    def __init__(self, values: object) -> None:
        self.values = np.asarray(values)

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.values if dtype is None else self.values.astype(dtype)

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> object:
        return (Tensor(value) for value in self.values)


class Packed:
    """Gives itself by DLPack alone."""

    def __init__(self, values: object) -> None:
        self.values = np.asarray(values)

    def __dlpack__(self, **given: object) -> object:
        return self.values.__dlpack__(**given)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.values.__dlpack_device__()


ADDED = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int4"]
"""Types of ml_dtypes that hold 1, 2 and 3."""


class HostileList(list):
    def __iter__(self) -> None:
        raise RuntimeError("boom")


ENDLESS: list = []
ENDLESS.append(ENDLESS)


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
        (np.array([1.0, np.inf, 2.0]).astype(ml_dtypes.bfloat16), Rejection.NOT_FINITE),
        (np.array([1, 2, 3]).astype(ml_dtypes.complex32), Rejection.NOT_NUMERIC)
        if hasattr(ml_dtypes, "complex32")
        else (1j, Rejection.NOT_NUMERIC),
        (Tensor([True, False, True]), Rejection.NOT_NUMERIC),
        (Tensor(["a", "b", "c"]), Rejection.NOT_NUMERIC),
        ([Tensor(1.0), Tensor(True), 3.0], Rejection.NOT_NUMERIC),
        ([Tensor([1.0]), 2.0, 3.0], Rejection.WRONG_SHAPE),
        (Tensor([[1.0, 2.0, 3.0]]), Rejection.WRONG_SHAPE),
        (Tensor(1.0), Rejection.WRONG_SHAPE),
        (pd.Series([1.0, None, 3.0]), Rejection.NOT_FINITE),
        (pd.Series([1, None, 3], dtype=object), Rejection.NOT_NUMERIC),
        (pd.Series([True, False, True]), Rejection.NOT_NUMERIC),
        (pd.Series(["a", "b", "c"]), Rejection.NOT_NUMERIC),
        (pd.DataFrame([[1.0, 2.0, 3.0]]), Rejection.WRONG_SHAPE),
        (bytearray(3), Rejection.NOT_NUMERIC),
        (memoryview(b"abc"), Rejection.NOT_NUMERIC),
        (ENDLESS, Rejection.WRONG_SHAPE),
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
        np.array([1, 2, 3], dtype=object),
        [np.array(1), np.float16(2), Tensor(3.0)],
        Tensor([1, 2, 3]),
        list(Tensor([1, 2, 3])),
        Packed([1.0, 2.0, 3.0]),
        array.array("f", [1, 2, 3]),
        pd.Series([1.0, 2.0, 3.0]),
        pd.Series([1, 2, 3], dtype="Int64"),
        pd.Series([1, 2.0, np.float32(3)], dtype=object),
        pd.Series([1, 2, 3], index=["x", "y", "z"], dtype="float32"),
        *[np.array([1, 2, 3]).astype(getattr(ml_dtypes, name)) for name in ADDED],
        *[list(np.array([1, 2, 3]).astype(getattr(ml_dtypes, name))) for name in ADDED],
    ],
    ids=lambda message: re.sub(r" at 0x[0-9a-f]+", "", repr(message)),
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


@pytest.mark.long
@given(anything | arrays)
def test_no_message_raises_and_what_is_read_is_finite(message: object) -> None:
    row = read_row(message, DIMENSION)
    if not isinstance(row, Rejection):
        assert row.shape == (DIMENSION,)
        assert row.dtype == np.float32
        assert np.isfinite(row).all()


matrices = hnp.arrays(
    dtype=hnp.floating_dtypes() | hnp.integer_dtypes(),
    shape=st.tuples(st.integers(0, 6), st.integers(2, 4)),
    elements=None,
)


@given(matrices, st.sampled_from([np.float32(3e38), np.float32(1e-45), np.nan, -np.inf, 1.0]), st.data())
def test_many_rows_are_read_as_each_of_them_alone(
    matrix: np.ndarray, odd: float, data: st.DataObject
) -> None:
    if matrix.size and matrix.dtype.kind == "f":
        with np.errstate(over="ignore"):
            matrix[data.draw(st.integers(0, len(matrix) - 1)), 0] = odd
    for many in (matrix, tuple(matrix), list(matrix)):
        rows = read_rows(many, DIMENSION)
        assert len(rows) == len(matrix)
        for row, alone in zip(rows, matrix, strict=True):
            expected = read_row(alone, DIMENSION)
            if isinstance(expected, Rejection):
                assert row is expected
            else:
                assert row.tobytes() == expected.tobytes()
                assert (row.flags.owndata, row.flags.writeable) == (True, False)


def test_rows_that_were_refused_when_they_were_sent_stay_refused_for_that() -> None:
    sent = [[1.0, 2.0, 3.0], [10**400, 1, 2], [[1.0]], "text"]
    assert read_rows([read_array(one) for one in sent], DIMENSION)[1:] == [
        Rejection.NOT_FINITE,
        Rejection.WRONG_SHAPE,
        Rejection.NOT_NUMERIC,
    ]


def test_one_row_that_waits_does_not_keep_the_others_in_memory() -> None:
    matrix = np.ones((64, 4096), np.float32)
    tracemalloc.start()
    try:
        kept = read_rows(matrix, 4096)[5]
        assert tracemalloc.get_traced_memory()[0] < 3 * kept.nbytes
    finally:
        tracemalloc.stop()


def test_a_row_in_memory_that_nobody_can_write_to_is_kept_as_it_lies():
    body = bytes(range(4)) * 8
    row = np.frombuffer(body, np.float32, offset=4)
    assert read_row(row, 7) is row
    assert (
        read_row(np.frombuffer(body + bytes(9000), np.float32, 7), 7).base is None
    )  # it would hold the rest
    owner = np.ones(8, np.float32)
    owner.setflags(write=False)
    handed = np.frombuffer(owner.data, np.float32)
    assert read_row(handed, 8) is handed
    assert read_row(owner, 8) is not owner  # whoever has set it to read-only may set it back
    aside = np.frombuffer(bytes(29), np.float32, 7, offset=1)
    assert read_row(aside, 7).flags.aligned
    assert read_row(np.frombuffer(np.float32([np.nan, 1.0]).tobytes(), np.float32), 2) is Rejection.NOT_FINITE
