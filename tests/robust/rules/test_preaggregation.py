from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import TooFewUpdates, UsageError
from scarcity_ray.robust import (
    AdaptiveClipping,
    Bucketing,
    CenteredClipping,
    NearestNeighborMixing,
    StaticClipping,
    aggregate,
    inline_blocks,
    measure,
)
from scarcity_ray.robust.rules import RULES


def rows_for(seed, n=13, d=6):
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d)) * rng.uniform(0.1, 3, (n, 1))
    rows[rng.integers(n)] = rows[rng.integers(n)]
    return rows.astype(np.float32)


def mixed_rows(step, rows, f):
    geometry = measure(inline_blocks(rows), origin=True)
    mixing = step.coefficients(geometry, f)
    np.testing.assert_allclose(mixing.sum(axis=1), 1)
    return mixing[:, : len(rows)] @ rows.astype(np.float64)


@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_nearest_neighbour_mixing_averages_each_row_with_its_nearest_others(seed, f):
    rows = rows_for(seed).astype(np.float64)
    expected = []
    for index, row in enumerate(rows):
        apart = np.square(rows - row).sum(axis=1)
        apart[index] = -1
        expected.append(rows[np.argsort(apart, kind="stable")[: len(rows) - f]].mean(axis=0))
    np.testing.assert_allclose(mixed_rows(NearestNeighborMixing(), rows_for(seed), f), expected, atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 14))
def test_bucketing_averages_every_row_in_exactly_one_bucket(seed, size):
    rows = rows_for(seed)
    mixing = Bucketing(size, seed).coefficients(measure(inline_blocks(rows)), 1)
    sizes = np.count_nonzero(mixing, axis=1)
    assert len(mixing) == -(-13 // size)
    assert (np.count_nonzero(mixing, axis=0) == 1).all()
    np.testing.assert_allclose(mixing.max(axis=1), 1 / sizes)
    assert (Bucketing(size, seed).coefficients(measure(inline_blocks(rows)), 1) == mixing).all()


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 5))
def test_after_clipping_no_row_is_longer_than_the_radius_and_shorter_ones_stand(seed, radius):
    rows = rows_for(seed)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    clipped = mixed_rows(StaticClipping(radius), rows, 2)
    np.testing.assert_allclose(np.linalg.norm(clipped, axis=1), np.minimum(norms, radius), rtol=1e-8)
    np.testing.assert_allclose(clipped[norms < radius * 0.999], rows[norms < radius * 0.999], rtol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(0, 6))
def test_adaptive_clipping_shortens_the_longest_rows_to_the_length_of_the_next(seed, f):
    rows = rows_for(seed)
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    count = int(2 * f / 13 * (13 - f) + 1e-9)
    radius = np.sort(norms)[::-1][count]
    clipped = mixed_rows(AdaptiveClipping(), rows, f)
    np.testing.assert_allclose(np.linalg.norm(clipped, axis=1), np.minimum(norms, radius), rtol=1e-8)


@given(st.integers(0, 2**32 - 1))
def test_a_mixed_geometry_is_that_of_the_mixed_rows(seed):
    rows = rows_for(seed)
    geometry = measure(inline_blocks(rows), origin=True)
    mixing = NearestNeighborMixing().coefficients(geometry, 3)
    mixed = (mixing[:, :13] @ rows.astype(np.float64)).astype(np.float32)
    expected = measure(inline_blocks(mixed), origin=True)
    np.testing.assert_allclose(geometry.mixed(mixing).squared, expected.squared, rtol=1e-4, atol=1e-6)


def test_rows_that_are_mixed_alike_are_equal():
    rows = rows_for(3)
    mixing = np.full((4, 13), 1 / 13)
    mixing[3] = np.eye(13)[2]
    distances = measure(inline_blocks(rows)).mixed(mixing).distances
    assert (distances[:3, :3] == 0).all()
    assert len(set(distances[3, :3].tolist())) == 1


PIPELINES = [
    ["nnm"],
    ["arc"],
    [StaticClipping(1.0)],
    [StaticClipping(1.0), "nnm"],
    ["nnm", "arc"],
    ["arc", "nnm", StaticClipping(0.5)],
]


COMPOSED = [
    # Each rule after half of the pipelines, each pipeline before half of the rules; the other pairs by hand.
    pytest.param(pre, method, marks=pytest.mark.slow if (i + j) % 2 else ())
    for i, method in enumerate(sorted(set(RULES) - {"weighted", "centered_clipping", "fedavg"}))
    for j, pre in enumerate(PIPELINES)
]


@pytest.mark.parametrize(("pre", "method"), COMPOSED, ids=str)
def test_steps_compose_as_if_each_made_its_rows(pre, method):
    rows = rows_for(7, n=23, d=9000)
    by_hand = rows
    for step in pre:
        step = {"nnm": NearestNeighborMixing(), "arc": AdaptiveClipping()}.get(step, step)
        by_hand = mixed_rows(step, by_hand, 2).astype(np.float32)
    result = aggregate(rows, method=method, num_byzantine=2, pre=pre)
    expected = aggregate(by_hand, method=method, num_byzantine=2)
    np.testing.assert_allclose(result.vector, expected.vector, rtol=1e-3, atol=2e-5)


def test_a_far_row_is_mixed_away_by_any_column_rule():
    rows = rows_for(5, n=15)
    rows[3] = 1e25
    for method in ("median", "trimmed_mean", "meamed", "bulyan"):
        result = aggregate(rows, method=method, num_byzantine=2, pre=["nnm"])
        assert np.abs(result.vector).max() < 10
        assert 3 not in result.selected or method != "bulyan"


def test_centred_clipping_after_bucketing_has_its_buckets_as_rows():
    rows = rows_for(1, n=44)
    result = aggregate(rows, method=CenteredClipping(1.0), num_byzantine=1, pre=[Bucketing(4, 0)])
    assert np.linalg.norm(result.vector) <= 1 + 1e-6
    with pytest.raises(TooFewUpdates, match="needs at least 11 finite rows, got 9"):
        aggregate(rows, method=CenteredClipping(1.0), num_byzantine=1, pre=[Bucketing(5, 0)])


def test_wrong_steps_are_usage_errors():
    for pre in (["nmn"], [None]):
        with pytest.raises(UsageError, match="unknown pre-aggregation"):
            aggregate(rows_for(0), method="median", num_byzantine=1, pre=pre)
    for make in (lambda: Bucketing(0, 1), lambda: Bucketing(2, -1), lambda: StaticClipping(-1.0)):
        with pytest.raises(UsageError):
            make()
    with pytest.raises(UsageError, match="weights"):
        aggregate(rows_for(0), method="weighted", num_byzantine=1, weights=np.ones(13), pre=["nnm"])
    with pytest.raises(TooFewUpdates):
        aggregate(rows_for(0), method="mean", num_byzantine=7, pre=["nnm"])
