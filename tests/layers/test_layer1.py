"""Layer 1 against brute force: what it clips, what it refuses, what it hands on."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scarcity_ray.config import AggregationMethod, Layer1Config
from scarcity_ray.errors import TooFewUpdates, UsageError
from scarcity_ray.layers import Layer1Aggregator, Layer1Input
from scarcity_ray.robust import clip_rows, column_blocks, row_norms, take_block

CLIP = 1.5


def clip(rows):
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows * np.minimum(1.0, CLIP / np.maximum(norms, 1e-300))


def krum_scores(rows, f):
    squared = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    return np.sort(squared, axis=1)[:, : max(1, len(rows) - f - 2)].sum(axis=1)


def krum(rows, f, weights, m):
    return rows[np.argmin(krum_scores(rows, f))]


def multi_krum(rows, f, weights, m):
    order = np.argsort(krum_scores(rows, f), kind="stable")
    return rows[order[: m or len(rows) - f - 2]].mean(axis=0)


def bulyan(rows, f, weights, m):
    left, chosen, theta = list(range(len(rows))), [], len(rows) - 2 * f
    while len(chosen) < theta:
        best = left[int(np.argmin(krum_scores(rows[left], f)))]
        chosen.append(best)
        left.remove(best)
    picked = rows[chosen]
    nearest = np.argsort(np.abs(picked - np.median(picked, axis=0)), axis=0, kind="stable")[: theta - 2 * f]
    return np.take_along_axis(picked, nearest, axis=0).mean(axis=0)


BRUTE = {
    "mean": lambda rows, f, weights, m: rows.mean(axis=0),
    "fedavg": lambda rows, f, weights, m: rows.mean(axis=0),
    "weighted": lambda rows, f, weights, m: np.average(rows, axis=0, weights=weights),
    "median": lambda rows, f, weights, m: np.median(rows, axis=0),
    "trimmed_mean": lambda rows, f, weights, m: np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0),
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
}
LEAST = {"krum": lambda f: 2 * f + 3, "multi_krum": lambda f: 2 * f + 3, "bulyan": lambda f: 4 * f + 3}


def least_rows(method, f):
    one = {"mean", "fedavg", "weighted"}
    return LEAST[method](f) if method in LEAST else 1 if method in one else 2 * f + 1


def aggregator(method, f=1, **layer1):
    return Layer1Aggregator(
        Layer1Config(
            aggregation_method=method, num_byzantine=f, clip_norm=CLIP, **{"min_updates": 1, **layer1}
        )
    )


def gaussian_rows(seed, n, d, scale):
    """Rows in general position, so that no rule meets a tie that rounding may break either way."""
    return (scale * np.random.Generator(np.random.PCG64DXSM(seed)).standard_normal((n, d))).astype(np.float32)


@pytest.mark.parametrize("method", sorted(BRUTE))
@given(
    seed=st.integers(0, 10**6),
    f=st.integers(0, 2),
    extra=st.integers(0, 5),
    d=st.integers(2, 40),
    scale=st.sampled_from([0.01, 0.3, 5.0, 1e6]),
)
def test_the_aggregate_is_the_rules_on_clipped_rows_clipped(method, seed, f, extra, d, scale):
    n = least_rows(method, f) + extra
    rows = gaussian_rows(seed, n, d, scale)
    weights = (
        np.random.Generator(np.random.PCG64DXSM(seed)).uniform(0.1, 2, n) if method == "weighted" else None
    )
    m = 2 if method == "multi_krum" and extra > 2 else None
    model = aggregator(method, f, num_selected=m).aggregate(rows, weights)
    clipped = clip(rows.astype(np.float64)).astype(np.float32).astype(np.float64)
    expected = clip(BRUTE[method](clipped, f, weights, m))
    np.testing.assert_allclose(model.aggregate, expected, rtol=3e-5, atol=1e-6 * min(scale, CLIP))
    assert model.aggregate.dtype == np.float32


@pytest.mark.parametrize("method", ["median", "trimmed_mean"])
def test_a_result_that_leaves_the_ball_is_clipped_again(method):
    # Each coordinate is large in two of three rows of norm C, so the median's norm is sqrt(3/2) C.
    rows = CLIP / np.sqrt(2) * np.array([[1, 1, 0], [1, 0, 1], [0, 1, 1]], np.float32)
    model = aggregator(method, 1).aggregate(rows)
    assert np.linalg.norm(model.aggregate) == pytest.approx(CLIP, rel=1e-6)
    np.testing.assert_allclose(model.aggregate, CLIP / np.sqrt(3), rtol=1e-6)


@pytest.mark.parametrize("method", sorted(BRUTE))
@given(data=st.data())
def test_the_aggregate_has_at_most_the_clip_norm(method, data):
    values = st.one_of(st.sampled_from([0.0, 1e8, -1e8, 3e38, 1.5]), st.floats(-3, 3, width=32))
    n, d = least_rows(method, 1) + 2, data.draw(st.integers(1, 6))
    rows = data.draw(hnp.arrays(np.float32, (n, d), elements=values.map(lambda v: float(np.float32(v)))))
    aggregate = aggregator(method, 1).aggregate(rows).aggregate
    assert np.linalg.norm(aggregate.astype(np.float64)) <= CLIP * (1 + 2**-23)


@pytest.mark.parametrize("method", sorted(BRUTE))
def test_with_too_few_rows_it_refuses_and_never_weakens_itself(method):
    f = 2
    least = least_rows(method, f)
    rows = gaussian_rows(0, least, 5, 1.0)
    assert aggregator(method, f).aggregate(rows).n_contributors == least
    if least > 1:
        with pytest.raises(TooFewUpdates) as refusal:
            aggregator(method, f).aggregate(rows[:-1])
        assert (refusal.value.rule, refusal.value.rows, refusal.value.least) == (method, least - 1, least)
    with pytest.raises(TooFewUpdates):
        aggregator(method, f, min_updates=least + 1).aggregate(rows)
    with pytest.raises((TooFewUpdates, UsageError)):
        aggregator(method, f).aggregate(np.zeros((0, 5), np.float32))


def test_f_is_a_fraction_of_the_members_not_of_the_rows():
    layer1 = Layer1Config(aggregation_method="krum", byzantine_fraction=0.2)
    rows = gaussian_rows(0, 8, 4, 1.0)
    model = Layer1Aggregator(layer1).aggregate_basket(Layer1Input(rows, num_members=10))
    assert (model.num_byzantine, model.n_members, model.confidence) == (2, 10, 0.8)
    with pytest.raises(TooFewUpdates):
        Layer1Aggregator(layer1).aggregate_basket(Layer1Input(rows, num_members=20))
    assert Layer1Aggregator(layer1).aggregate(rows).num_byzantine == 1


@pytest.mark.parametrize("method", sorted(BRUTE))
def test_inputs_are_never_written_to(method):
    rows = gaussian_rows(1, 9, 6, 4.0)
    rows.flags.writeable = False
    weights = np.arange(1.0, 10.0) if method == "weighted" else None
    before, weights_before = rows.tobytes(), None if weights is None else weights.tobytes()
    one = aggregator(method, 1).aggregate(rows, weights)
    as_list = [np.array(row) for row in rows]
    two = aggregator(method, 1).aggregate(as_list, weights)
    assert rows.tobytes() == before
    assert [row.tobytes() for row in as_list] == [row.tobytes() for row in rows]
    assert weights is None or weights.tobytes() == weights_before
    assert one.aggregate.tobytes() == two.aggregate.tobytes()
    assert not np.shares_memory(one.aggregate, rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused_by_number(bad):
    rows = gaussian_rows(0, 7, 3, 1.0)
    rows[2, 1] = rows[5, 0] = bad
    with pytest.raises(UsageError, match=r"\[2, 5\]"):
        aggregator("krum", 1).aggregate(rows)


@pytest.mark.parametrize(
    "updates", [np.zeros(5), np.zeros((2, 2, 2)), [[1.0, 2.0], [1.0]], [["a"], ["b"]], 3, [None], [[], []]]
)
def test_updates_of_another_kind_are_refused(updates):
    with pytest.raises(UsageError):
        aggregator("mean").aggregate(updates)


@pytest.mark.parametrize(
    "weights", [[1.0], [1, -1, 1, 1], [0, 0, 0, 0], [1, np.nan, 1, 1], [1, np.inf, 1, 1]]
)
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(UsageError, match="weights"):
        aggregator("weighted").aggregate(gaussian_rows(0, 4, 3, 1.0), weights)


def test_weights_matter_to_the_weighted_rule_alone_and_their_largest_share_is_told():
    rows = gaussian_rows(0, 5, 3, 0.1)
    weights = [4.0, 1.0, 1.0, 1.0, 1.0]
    assert aggregator("weighted").aggregate(rows, weights).max_row_share == 0.5
    assert aggregator("weighted").aggregate(rows).max_row_share == pytest.approx(0.2)
    plain, given_weights = (aggregator("mean").aggregate(rows, w) for w in (None, weights))
    assert plain.aggregate.tobytes() == given_weights.aggregate.tobytes()
    assert plain.max_row_share is None


def test_a_basket_model_says_who_when_and_how_many():
    rows = gaussian_rows(0, 5, 3, 0.1)
    rows[3] += 50.0
    meta = np.array([0.25])
    model = aggregator("multi_krum", 1).aggregate_basket(
        Layer1Input(
            rows,
            basket_id="health_basket_0",
            client_ids=["a", "b", "c", "d", "e"],
            num_members=8,
            round_id=7,
            timestamp=12.5,
            meta=meta,
        )
    )
    assert (model.basket_id, model.n_contributors, model.round_id, model.timestamp) == (
        "health_basket_0",
        5,
        7,
        12.5,
    )
    assert model.confidence == 5 / 8
    assert "d" not in model.selected
    assert set(model.selected) < {"a", "b", "c", "e"}
    assert model.meta is meta
    facts = model.facts("health", 9)
    assert (facts.num_members, facts.num_rows, facts.num_byzantine, facts.fresh) == (9, 5, 1, True)
    assert aggregator("median").aggregate(rows).selected == ("0", "1", "2", "3", "4")


def test_more_rows_than_members_are_no_more_than_full_confidence():
    given = Layer1Input(gaussian_rows(0, 5, 3, 1.0), num_members=3)
    assert aggregator("mean").aggregate_basket(given).confidence == 1.0


@pytest.mark.parametrize("method", [m.value for m in AggregationMethod])
def test_the_aggregate_is_bitwise_the_same_for_any_driver_of_blocks(method):
    rows = gaussian_rows(2, 9, 20_000, 0.01)

    def backwards(matrix, seconds):
        def map_blocks(kernel, /, *args):
            spans = column_blocks(len(matrix[0]))
            done = {
                i: kernel(np.array(take_block(matrix, spans[i])), *args) for i in reversed(range(len(spans)))
            }
            return [done[i] for i in range(len(spans))]

        return map_blocks

    config = Layer1Config(aggregation_method=method, num_byzantine=int(method != "centered_clipping"))
    one = Layer1Aggregator(config).aggregate(rows)
    two = Layer1Aggregator(config, blocks_of=backwards).aggregate(rows)
    assert one.aggregate.tobytes() == two.aggregate.tobytes()
    assert one.selected == two.selected


@pytest.mark.parametrize("method", [m.value for m in AggregationMethod])
def test_rows_above_the_clip_norm_are_the_clipped_ones_bit_by_bit_without_a_copy_of_them(method):
    rows = gaussian_rows(3, 14, 130_000, 1.0)
    config = Layer1Config(
        aggregation_method=method, num_byzantine=int(method != "centered_clipping"), clip_norm=CLIP
    )
    layer = Layer1Aggregator(config)
    first = layer.aggregate(clip_rows(rows, row_norms(rows), CLIP))
    layer.aggregate(rows)
    tracemalloc.start()
    second = layer.aggregate(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    if method == "centered_clipping":  # it weighs by norms, and takes a clipped row's for the clip norm
        np.testing.assert_allclose(second.aggregate, first.aggregate, rtol=1e-6, atol=1e-9)
    else:
        assert second.aggregate.tobytes() == first.aggregate.tobytes()
    assert second.selected == first.selected
    assert peak < 0.3 * rows.nbytes
