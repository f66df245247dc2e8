"""Agreement of rows with the result, far rows, and the report on a result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.robust import aggregate, aggregate_blocks, agreement, detect_outliers, inline_blocks
from scarcity_ray.robust.rules import RULES

METHODS = sorted(RULES)
DISTANCES = st.lists(st.floats(0, 1e30) | st.just(float("inf")), min_size=1, max_size=30)


def rows_for(n=31, d=50, seed=0):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


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


@pytest.mark.parametrize("method", METHODS)
def test_a_report_changes_no_bit_and_says_how_far_each_row_stood(method):
    rows = rows_for(d=9000)
    rows[5, 3] = np.nan
    rows[6] += 100
    plain = aggregate(rows, method=method, num_byzantine=3)
    result = aggregate(rows, method=method, num_byzantine=3, report=True)
    assert plain.report is None
    assert result.vector.tobytes() == plain.vector.tobytes()
    kept = np.delete(np.arange(31), 5)
    expected = np.linalg.norm(rows[kept].astype(np.float64) - result.vector, axis=1)
    np.testing.assert_allclose(result.report.distances[kept], expected, rtol=1e-5, atol=1e-9)
    assert result.report.distances[5] == result.report.z[5] == np.inf
    if result.report.outside is not None:
        assert result.report.outside[5] == 1
        assert result.report.outside[6] > 0.99
    if method not in ("mean", "fedavg", "weighted", "monna"):
        assert np.argmax(result.report.z[kept]) == 5


@pytest.mark.parametrize("pre", [("nnm",), ("arc",), ("nnm", "arc")])
@pytest.mark.parametrize("method", ["mean", "krum", "centered_clipping", "geometric_median", "median"])
def test_distances_in_a_report_are_to_the_result_behind_a_pre_aggregation_too(method, pre):
    rows = rows_for(d=9000)
    rows[6] += 3
    result = aggregate(rows, method=method, num_byzantine=3, pre=pre, report=True)
    expected = np.linalg.norm(rows.astype(np.float64) - result.vector, axis=1)
    np.testing.assert_allclose(result.report.distances, expected, rtol=1e-5)


def test_a_row_rule_reports_without_reading_the_rows_again():
    rows = rows_for(d=9000)
    rounds = []

    def counted(kernel, *args):
        rounds.append(kernel.__name__)
        return inline_blocks(rows)(kernel, *args)

    for method in ("krum", "multi_krum", "geometric_median", "mda"):
        reads = []
        for report in (False, True):
            rounds.clear()
            aggregate_blocks(counted, len(rows), method=method, num_byzantine=3, report=report)
            reads.append(list(rounds))
        assert reads[0] == reads[1]


def test_rows_much_closer_to_the_result_than_to_each_other_are_looked_at_again():
    rng = np.random.default_rng(0)
    rows = np.concatenate([np.eye(9, 500), 1e-3 * rng.normal(size=(1, 500)) + np.eye(9, 500).mean(axis=0)])
    rows = rows.astype(np.float32)
    result = aggregate(rows, method="monna", num_byzantine=1, report=True)
    expected = np.linalg.norm(rows.astype(np.float64) - result.vector, axis=1)
    np.testing.assert_allclose(result.report.distances, expected, rtol=1e-5)


@pytest.mark.parametrize("apart", [1.0, 1e-1, 1e-3, 0.0])
@pytest.mark.parametrize("method", ["median", "bulyan", "mean"])
def test_rows_that_all_but_equal_the_result_are_told_apart(method, apart):
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=12000) + apart * rng.normal(size=(16, 12000))).astype(np.float32)
    report = aggregate_blocks(
        inline_blocks(rows),
        16,
        method=method,
        num_byzantine=1,
        norms=np.linalg.norm(rows.astype(np.float64), axis=1),
        report=True,
    )
    expected = np.linalg.norm(rows.astype(np.float64) - report.vector, axis=1)
    np.testing.assert_allclose(report.report.distances, expected, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_a_report_on_rows_whose_squares_leave_float32_says_how_far_they_stood(scale):
    rows = (rows_for(d=50) * scale).astype(np.float32)
    result = aggregate(rows, method="median", num_byzantine=3, report=True)
    expected = np.linalg.norm(rows.astype(np.float64) - result.vector, axis=1)
    np.testing.assert_allclose(result.report.distances, expected, rtol=1e-5)


def test_the_outside_share_counts_coordinates_beyond_all_values_that_were_averaged():
    rows = np.float32([[0, 9], [1, 1], [2, 2], [3, 3], [4, 0]])
    for method, expected in (
        ("trimmed_mean", [1, 0, 0, 0, 1]),
        ("median", [1, 1, 0, 1, 1]),
        ("meamed", [0.5, 0, 0, 0, 0.5]),
    ):
        result = aggregate(rows, method=method, num_byzantine=1, report=True)
        assert result.report.outside.tolist() == expected
    assert aggregate(rows, method="krum", num_byzantine=1, report=True).report.outside is None
    assert aggregate(rows, method="median", num_byzantine=1, pre=["nnm"], report=True).report.outside is None
