"""Agreement of rows with the result, from their distances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust import aggregate, agreement

DISTANCES = st.lists(st.floats(0, 1e30) | st.just(float("inf")), min_size=1, max_size=30)


@given(distances=DISTANCES)
def test_agreement_is_bounded(distances):
    agreed = agreement(np.array(distances))
    assert agreed.shape == (len(distances),)
    assert ((agreed >= 0) & (agreed <= 1)).all()


@given(distances=DISTANCES, place=st.integers(0, 29), further=st.floats(0, 1e30) | st.just(float("inf")))
def test_agreement_is_monotone(distances, place, further):
    place %= len(distances)
    moved = list(distances)
    moved[place] = max(further, distances[place])
    before, after = agreement(np.array(distances))[place], agreement(np.array(moved))[place]
    assert after <= before + 1e-12


@given(distances=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), power=st.integers(-60, 60))
def test_agreement_does_not_depend_on_the_unit_of_distance(distances, power):
    known = np.array(distances)
    assert agreement(known).tolist() == agreement(known * 2.0**power).tolist()


@given(distances=DISTANCES)
def test_a_row_no_further_off_than_the_middle_one_agrees_entirely_one_that_is_not_finite_not_at_all(
    distances,
):
    known = np.array(distances)
    finite = np.isfinite(known)
    agreed = agreement(known)
    assert (agreed[~finite] == 0).all()
    if finite.any():
        assert (agreed[finite & (known <= np.median(known[finite]))] == 1).all()


def test_one_row_apart_from_equal_ones_does_not_agree():
    report = aggregate(np.float32([[1], [1], [1], [2]]), method="median", num_byzantine=1, report=True).report
    assert agreement(report.distances).tolist() == [1, 1, 1, 0]
    assert report.z.tolist()[:3] == [0, 0, 0]
    assert report.z[3] > 1e300


@pytest.mark.parametrize("method", ["krum", "multi_krum", "bulyan", "median", "trimmed_mean", "mean"])
@pytest.mark.parametrize("n", [11, 40])
def test_honest_rows_agree_and_sign_flipped_ones_do_not(method, n):
    """Honest rows of a normal distribution in 300 dimensions: the two groups' distances are far apart."""
    rng = np.random.default_rng(1)
    flipped = n // 6
    rows = 0.2 + 0.1 * rng.standard_normal((n, 300))
    rows[:flipped] *= -1
    result = aggregate(rows, method=method, num_byzantine=flipped, report=True)
    shares = np.zeros(n)
    shares[list(result.selected)] = 1 / len(result.selected)
    agreed = agreement(result.report.distances, shares)
    assert (agreed[:flipped] == 0).all()
    assert agreed[flipped:].mean() > 0.95


@given(data=st.data(), n=st.integers(2, 12))
def test_a_share_makes_the_distance_that_to_the_weighted_mean_of_the_others(data, n):
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    rows, shares = rng.standard_normal((n, 5)), rng.dirichlet(np.ones(n))
    mean = shares @ rows
    others = np.array([(mean - w * row) / (1 - w) for row, w in zip(rows, shares, strict=True)])
    apart, alone = np.linalg.norm(rows - mean, axis=1), np.linalg.norm(rows - others, axis=1)
    np.testing.assert_allclose(agreement(apart, shares), agreement(alone), atol=1e-9)
