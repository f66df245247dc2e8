from __future__ import annotations

import gc
import pickle
import weakref

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust import (
    ScaledRows,
    clip_vector,
    column_blocks,
    inline_blocks,
    num_columns,
    row_norm,
    row_norms,
    take_block,
)


@given(st.integers(1, 100_000))
def test_blocks_cover_every_column_once(d):
    covered = [column for block in column_blocks(d) for column in range(block.start, block.stop)]
    assert covered == list(range(d))


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


def test_slices_of_rows_are_pickled_as_the_rows_they_show():
    rows = list(np.random.default_rng(3).standard_normal((4, 20_000)).astype(np.float32))
    last = list(inline_blocks(rows)(lambda block: block))[-1]
    again = pickle.loads(pickle.dumps(last))
    assert isinstance(again, list)
    np.testing.assert_array_equal(again, np.array(rows)[:, 16_384:])
    np.testing.assert_array_equal(take_block(last, slice(5, 9)), np.array(rows)[:, 16_389:16_393])


def test_slices_hold_no_rows_when_nobody_holds_them():
    """Rows may lie in a store that counts references: a cycle would keep them until the collector comes."""
    rows = [np.ones(20_000, np.float32) for _ in range(3)]
    last = weakref.ref(rows[-1])
    gc.disable()
    try:
        for block in inline_blocks(rows)(lambda block: block):
            block.addresses, block.chosen((2,))
        del block, rows
        assert last() is None
    finally:
        gc.enable()
