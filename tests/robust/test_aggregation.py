from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcity_ray.config import AggregationMethod
from scarcity_ray.errors import TooFewUpdates, UsageError
from scarcity_ray.robust import (
    aggregate,
    aggregate_blocks,
    column_blocks,
    get_rule,
    least_rows,
    take_block,
)
from scarcity_ray.robust.rules import RULES

METHODS = sorted(RULES)
"""All rules by name, in the config or not."""


def rows_for(n=31, d=50, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def task_driver(rows, group_size):
    """Groups of blocks in any order, kernels and arguments through pickle, as tasks would have them."""
    blocks = column_blocks(len(rows[0]))
    groups = [blocks[start : start + group_size] for start in range(0, len(blocks), group_size)]

    def map_blocks(kernel, *args):
        done = {}
        for index in reversed(range(len(groups))):
            task_kernel, task_args = pickle.loads(pickle.dumps((kernel, args)))
            parts = [task_kernel(take_block(rows, block), *task_args) for block in groups[index]]
            done[index] = pickle.loads(pickle.dumps(parts))
        return [part for index in range(len(groups)) for part in done[index]]

    return map_blocks


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group_size", [1, 2, 7])
def test_any_grouping_of_blocks_gives_bitwise_the_same_vector(method, group_size):
    rows = rows_for(d=33_000)
    rows[3] *= 1e9
    expected = aggregate(rows, method=method, num_byzantine=3)
    result = aggregate_blocks(task_driver(rows, group_size), len(rows), method=method, num_byzantine=3)
    assert result.vector.tobytes() == expected.vector.tobytes()
    assert result.selected == expected.selected


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_never_written_to_and_may_be_read_only(method):
    rows = rows_for()
    before = rows.tobytes()
    rows.flags.writeable = False
    from_matrix = aggregate(rows, method=method, num_byzantine=3)
    from_list = aggregate(list(rows), method=method, num_byzantine=3)
    from_columns = aggregate(np.asfortranarray(rows), method=method, num_byzantine=3)
    assert rows.tobytes() == before
    assert from_matrix.vector.tobytes() == from_list.vector.tobytes() == from_columns.vector.tobytes()
    assert not np.shares_memory(from_matrix.vector, rows)


@pytest.mark.parametrize("method", METHODS)
def test_float32_out_for_any_real_type_in(method):
    rows = np.rint(10 * rows_for()) + 0.0
    expected = aggregate(rows.astype(np.float32), method=method, num_byzantine=3).vector
    assert expected.dtype == np.float32
    for kind in (np.float64, np.float16, np.int64, ">f4"):
        result = aggregate(rows.astype(kind), method=method, num_byzantine=3).vector
        assert result.tobytes() == expected.tobytes()
    assert aggregate(rows.tolist(), method=method, num_byzantine=3).vector.tobytes() == expected.tobytes()


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("monna", "mda")])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=settings.default.max_examples // 3)
def test_permuting_rows_permutes_the_selection_and_keeps_the_vector(method, seed):
    rows = rows_for(seed=seed)
    order = np.random.default_rng(seed).permutation(len(rows))
    result = aggregate(rows, method=method, num_byzantine=3)
    permuted = aggregate(rows[order], method=method, num_byzantine=3)
    assert {int(order[index]) for index in permuted.selected} == set(result.selected)
    np.testing.assert_allclose(permuted.vector, result.vector, rtol=2.0**-22, atol=1e-12)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "centered_clipping"])
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=settings.default.max_examples // 3)
def test_translating_rows_translates_the_vector(method, seed):
    rows = np.rint(100 * rows_for(seed=seed))
    shift = np.rint(1000 * np.random.default_rng(seed + 1).standard_normal(rows.shape[1])).astype(np.float32)
    result = aggregate(rows, method=method, num_byzantine=3)
    moved = aggregate(rows + shift, method=method, num_byzantine=3)
    assert moved.selected == result.selected
    np.testing.assert_allclose(moved.vector, result.vector + shift, rtol=2.0**-22, atol=2e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_masked_and_counted_against_f(method, bad):
    rows = rows_for()
    rows[2, 7] = bad
    rows[11] = bad
    result = aggregate(rows, method=method, num_byzantine=3)
    rest = aggregate(np.delete(rows, [2, 11], axis=0), method=method, num_byzantine=1)
    kept = np.delete(np.arange(31), [2, 11])
    assert result.vector.tobytes() == rest.vector.tobytes()
    assert result.num_rejected == 2
    assert result.rejected == (2, 11)
    assert result.selected == tuple(kept[list(rest.selected)])
    if rest.scores is not None:
        assert np.isnan(result.scores[[2, 11]]).all()
        assert result.scores[kept].tobytes() == rest.scores.tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_more_rows_that_are_not_finite_than_f_are_an_error(method):
    rows = rows_for()
    rows[:4, 0] = np.nan
    with pytest.raises(UsageError, match="4 of 31 rows are not finite, more than num_byzantine = 3"):
        aggregate(rows, method=method, num_byzantine=3)
    with pytest.raises((UsageError, TooFewUpdates)):
        aggregate(np.full((2, 3), np.nan), method=method, num_byzantine=2)


@pytest.mark.parametrize("method", METHODS)
def test_fewer_rows_than_the_least_are_refused(method):
    least = least_rows(method, 2)
    aggregate(rows_for(least), method=method, num_byzantine=2)
    with pytest.raises(TooFewUpdates) as caught:
        aggregate(rows_for(least)[1:], method=method, num_byzantine=2)
    assert (caught.value.rows, caught.value.least) == (least - 1, least)


def test_krum_with_three_rows_and_five_byzantine_ones_refuses():
    with pytest.raises(TooFewUpdates, match="krum needs at least 13 finite rows, got 3"):
        aggregate(rows_for(3), method="krum", num_byzantine=5)


def test_least_rows_are_those_of_the_papers():
    assert {method: least_rows(method, 3) for method in METHODS} == {
        "mean": 1,
        "fedavg": 1,
        "weighted": 1,
        "median": 7,
        "trimmed_mean": 7,
        "meamed": 7,
        "geometric_median": 7,
        "mda": 7,
        "caf": 7,
        "monna": 7,
        "krum": 9,
        "multi_krum": 9,
        "bulyan": 15,
        "centered_clipping": 31,
    }


@pytest.mark.parametrize(
    ("updates", "message"),
    [
        (np.zeros(3), "2-D"),
        (np.zeros((2, 2, 2)), "2-D"),
        ([np.zeros(3), np.zeros(4)], "row 1 has 4 entries"),
        ([[1.0, 2.0], [1.0]], "row 1 has 1 entries"),
        ([np.zeros((2, 2))], "1-D"),
        ([[[1.0], 2.0]], "row 0"),
        (np.zeros((3, 0)), "at least one entry"),
        (np.zeros((3, 2), complex), "real numbers"),
        (np.zeros((3, 2), bool), "real numbers"),
        (np.array([["a"]]), "real numbers"),
        (np.array([[None, 1.0]], object), "real numbers"),
        ("abc", "row 0"),
        (7, "sequence of rows"),
    ],
)
def test_wrong_shapes_and_types_are_usage_errors(updates, message):
    with pytest.raises(UsageError, match=message):
        aggregate(updates, method="mean", num_byzantine=0)


@pytest.mark.parametrize("f", [-1, 1.0, True, "1", None, np.float64(1)])
def test_f_must_be_a_nonnegative_integer(f):
    with pytest.raises(UsageError, match="num_byzantine"):
        aggregate(rows_for(), method="krum", num_byzantine=f)


def test_numpy_integers_are_integers():
    rows = rows_for()
    expected = aggregate(rows, method="multi_krum", num_byzantine=2, num_selected=3)
    result = aggregate(rows, method="multi_krum", num_byzantine=np.int32(2), num_selected=np.uint8(3))
    assert result.selected == expected.selected


@pytest.mark.parametrize("m", [0, -1, 27, 2.0, True])
def test_num_selected_is_at_most_n_f_2(m):
    with pytest.raises(UsageError, match="num_selected"):
        aggregate(rows_for(), method="multi_krum", num_byzantine=3, num_selected=m)


def test_arguments_of_other_rules_are_refused():
    with pytest.raises(UsageError, match="takes no num_selected"):
        aggregate(rows_for(), method="krum", num_byzantine=3, num_selected=2)
    with pytest.raises(UsageError, match="takes no weights"):
        aggregate(rows_for(), method="mean", num_byzantine=0, weights=np.ones(31))


@pytest.mark.parametrize(
    "weights", [np.ones(30), -np.ones(31), np.zeros(31), np.full(31, np.nan), "x", [1e308] * 31]
)
def test_weights_are_finite_and_nonnegative_with_a_positive_sum(weights):
    with pytest.raises(UsageError, match="weights"):
        aggregate(rows_for(), method="weighted", num_byzantine=0, weights=weights)


def test_an_unknown_method_is_a_usage_error_that_names_the_known_ones():
    with pytest.raises(UsageError, match=r"'krumm'.*bulyan.*krum"):
        aggregate(rows_for(), method="krumm", num_byzantine=0)
    with pytest.raises(UsageError):
        get_rule(None)


def test_no_rows_are_too_few():
    for empty in ([], np.zeros((0, 3))):
        with pytest.raises(TooFewUpdates, match="mean needs at least 1 finite rows, got 0"):
            aggregate(empty, method="mean", num_byzantine=0)


def test_every_method_has_a_rule_that_survives_pickling():
    for method in AggregationMethod:
        assert pickle.loads(pickle.dumps(get_rule(method))).name == get_rule(method).name
