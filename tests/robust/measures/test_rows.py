from __future__ import annotations

import threading

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.robust import (
    ScaledRows,
    clip_rows,
    clip_vector,
    column_blocks,
    detect_outliers,
    num_columns,
    one_blas_thread,
    row_norm,
    row_norms,
    take_block,
)


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


def test_scaled_rows_are_those_that_scaling_first_gives_bit_by_bit_and_only_those_asked_for_are_formed():
    rng = np.random.default_rng(1)
    rows = (rng.standard_normal((6, 20_000)) * 10.0 ** rng.integers(-3, 30, (6, 1))).astype(np.float32)
    norms = row_norms(rows)
    scaled = ScaledRows(list(rows), np.minimum(1.0, 2.5 / norms))
    assert num_columns(scaled) == 20_000
    for columns in column_blocks(20_000):
        block = take_block(scaled, columns)
        assert len(block) == 6
        for row, given_row in zip(block, rows, strict=True):
            expected = given_row if row_norm(given_row) <= 2.5 else clip_vector(given_row, 2.5)
            assert row.tobytes() == expected[columns].tobytes()
    block = take_block(scaled, slice(0, 10))
    assert block[4] is block[4]
    assert set(block._formed) == {4}
    assert take_block(ScaledRows(rows, np.ones(6)), slice(0, 10))[4].base is not None


@given(st.integers(1, 100_000))
def test_blocks_cover_every_column_once(d):
    covered = [column for block in column_blocks(d) for column in range(block.start, block.stop)]
    assert covered == list(range(d))


def test_one_blas_thread_inside_the_guard_and_the_earlier_number_after_it():
    def threads():
        return [lib["num_threads"] for lib in threadpoolctl.threadpool_info() if lib["user_api"] == "blas"]

    np.ones((2, 2)) @ np.ones((2, 2))
    before = threads()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with one_blas_thread():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with one_blas_thread():
        thread.start()
        inside.wait(10)
        with one_blas_thread():
            assert set(threads()) == {1}
    assert set(threads()) == {1}
    leave.set()
    thread.join()
    assert threads() == before


def test_a_row_far_from_the_others_is_reported_whatever_the_others_do():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((11, 30)).astype(np.float32)
    rows[[2, 5, 7]] += 100
    assert detect_outliers(rows, np.zeros(30)) == [2, 5, 7]
    rows[:] = 1
    rows[4] = 3
    assert detect_outliers(rows, np.zeros(30)) == [4]


def test_a_row_that_is_not_finite_is_reported():
    rows = np.ones((5, 3), np.float32)
    rows[3, 0] = np.nan
    assert detect_outliers(rows, np.zeros(3)) == [3]
    assert detect_outliers([], np.zeros(3)) == []


def test_wrong_references_are_usage_errors():
    with pytest.raises(UsageError, match="reference has 2 entries"):
        detect_outliers(np.ones((3, 3)), np.ones(2))
    with pytest.raises(UsageError, match="z_thresh"):
        detect_outliers(np.ones((3, 3)), np.ones(3), z_thresh=0)
