"""Each rule against a float64 transcription of its paper's definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.robust import aggregate, inline_blocks, pairwise
from scarcity_ray.robust.rules.bulyan import bulyan_selection

LEAST = {
    "mean": lambda f: 1,
    "median": lambda f: 2 * f + 1,
    "trimmed_mean": lambda f: 2 * f + 1,
    "krum": lambda f: 2 * f + 3,
    "multi_krum": lambda f: 2 * f + 3,
    "bulyan": lambda f: 4 * f + 3,
}


def distances_of(rows):
    wide = np.asarray(rows, np.float64)
    return np.array([[np.sum((a - b) ** 2) for b in wide] for a in wide])


def scores_of(distances, left, neighbours):
    return [sum(sorted(distances[i, j] for j in left if j != i)[:neighbours]) for i in left]


def bulyan_columns(rows, beta):
    result = []
    for column in np.sort(np.asarray(rows, np.float64), axis=0).T:
        nearest = np.argsort(np.abs(column - np.median(column)), kind="stable")[:beta]
        result.append(np.mean(column[np.sort(nearest)]))
    return np.array(result)


def near(actual, expected, rows):
    """Equal up to one float32 rounding of the result and float64 rounding of the summands."""
    largest = np.max(np.abs(np.asarray(rows, np.float64)), initial=0.0)
    np.testing.assert_allclose(actual, expected, rtol=2.0**-23, atol=1e-14 * largest + 1e-45)


@st.composite
def problems(draw, method, integers=False):
    """Rows with ties, duplicates, one row of norm 1e8, and near-equal rows around a large mean."""
    f = draw(st.integers(0, 2))
    n = LEAST[method](f) + draw(st.integers(0, 4))
    d = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["grid"] if integers else ["grid", "normal", "large mean", "tenths"]))
    rows = {
        "grid": rng.integers(-2, 3, (n, d)).astype(np.float64),
        "normal": rng.standard_normal((n, d)),
        "large mean": 1e4 + 1e-2 * rng.standard_normal((n, d)),
        "tenths": rng.integers(-3, 4, (n, d)) / 10,
    }[kind]
    for _ in range(draw(st.integers(0, 3))):
        rows[rng.integers(n)] = rows[rng.integers(n)]
    if f and draw(st.booleans()):
        far = rng.standard_normal(d)
        rows[rng.integers(n)] = np.rint(far * 1e8 / np.linalg.norm(far))
    return rows.astype(np.float32), f


@given(problems("krum"))
def test_krum_sums_the_n_f_2_nearest_other_rows(problem):
    rows, f = problem
    scores = np.array(scores_of(distances_of(rows), range(len(rows)), len(rows) - f - 2))
    result = aggregate(rows, method="krum", num_byzantine=f)
    np.testing.assert_allclose(result.scores, scores, rtol=2.0**-10, atol=1e-300)
    (winner,) = result.selected
    assert scores[winner] <= scores.min() * (1 + 1e-9)
    assert result.vector.tobytes() == rows[winner].tobytes()


@given(problems("krum", integers=True))
def test_krum_gives_ties_to_the_lowest_index(problem):
    rows, f = problem
    scores = scores_of(distances_of(rows), range(len(rows)), len(rows) - f - 2)
    assert aggregate(rows, method="krum", num_byzantine=f).selected == (int(np.argmin(scores)),)


@given(problems("multi_krum"), st.data())
def test_multi_krum_averages_the_m_lowest_scores_computed_once(problem, data):
    rows, f = problem
    m = data.draw(st.integers(1, len(rows) - f - 2))
    scores = np.array(scores_of(distances_of(rows), range(len(rows)), len(rows) - f - 2))
    result = aggregate(rows, method="multi_krum", num_byzantine=f, num_selected=m)
    selected = list(result.selected)
    assert len(set(selected)) == m
    rest = np.delete(scores, selected)
    assert rest.size == 0 or scores[selected].max() <= rest.min() * (1 + 1e-9)
    near(result.vector, rows[selected].astype(np.float64).mean(axis=0), rows)


@given(problems("multi_krum", integers=True))
def test_multi_krum_gives_ties_to_the_lowest_index(problem):
    rows, f = problem
    scores = scores_of(distances_of(rows), range(len(rows)), len(rows) - f - 2)
    expected = np.sort(np.argsort(scores, kind="stable")[: len(rows) - f - 2])
    assert aggregate(rows, method="multi_krum", num_byzantine=f).selected == tuple(expected)


@given(problems("bulyan"))
def test_bulyan_selects_by_repeated_krum_on_the_shrinking_set(problem):
    rows, f = problem
    distances = distances_of(rows)
    picked, _ = bulyan_selection(pairwise(inline_blocks(rows)), f)
    assert len(picked) == len(rows) - 2 * f
    left = list(range(len(rows)))
    for winner in picked:
        scores = scores_of(distances, left, max(1, len(left) - f - 2))
        assert scores[left.index(winner)] <= min(scores) * (1 + 1e-9)
        left.remove(winner)
    assert aggregate(rows, method="bulyan", num_byzantine=f).selected == tuple(sorted(picked))


@given(problems("bulyan", integers=True))
def test_bulyan_gives_ties_to_the_lowest_index(problem):
    rows, f = problem
    distances, left, expected = distances_of(rows), list(range(len(rows))), []
    for _ in range(len(rows) - 2 * f):
        scores = scores_of(distances, left, max(1, len(left) - f - 2))
        expected.append(left.pop(int(np.argmin(scores))))
    assert aggregate(rows, method="bulyan", num_byzantine=f).selected == tuple(sorted(expected))


@given(problems("bulyan"))
def test_bulyan_averages_the_beta_values_closest_to_the_median(problem):
    rows, f = problem
    result = aggregate(rows, method="bulyan", num_byzantine=f)
    near(result.vector, bulyan_columns(rows[list(result.selected)], len(rows) - 4 * f), rows)


@given(problems("median"))
def test_median_is_the_middle_of_each_column(problem):
    rows, f = problem
    near(
        aggregate(rows, method="median", num_byzantine=f).vector, np.median(rows.astype(float), axis=0), rows
    )


@given(problems("trimmed_mean"))
def test_trimmed_mean_drops_f_values_at_either_end_of_each_column(problem):
    rows, f = problem
    kept = np.sort(rows.astype(np.float64), axis=0)[f : len(rows) - f]
    near(aggregate(rows, method="trimmed_mean", num_byzantine=f).vector, kept.mean(axis=0), rows)


@given(problems("mean"))
def test_mean_is_rounded_once_from_float64(problem):
    rows, _ = problem
    expected = rows.astype(np.float64).mean(axis=0)
    near(aggregate(rows, method="mean", num_byzantine=0).vector, expected, rows)
    near(aggregate(rows, method="fedavg", num_byzantine=0).vector, expected, rows)
    near(aggregate(rows, method="weighted", num_byzantine=0).vector, expected, rows)


@given(problems("mean"))
def test_weighted_divides_by_the_sum_of_the_weights(problem):
    rows, _ = problem
    weights = np.arange(1.0, len(rows) + 1)
    result = aggregate(rows, method="weighted", num_byzantine=0, weights=weights)
    near(result.vector, weights @ rows.astype(np.float64) / weights.sum(), rows)
    np.testing.assert_allclose(result.weights, weights / weights.sum())


@pytest.mark.parametrize("method", ["krum", "multi_krum", "bulyan"])
@pytest.mark.parametrize("norm", [1e8, 1e25, 3e38])
def test_a_row_of_any_norm_changes_no_selection(method, norm):
    rng = np.random.default_rng(5)
    for _ in range(20):
        rows = (rng.standard_normal((15, 40)) + 100 * rng.integers(0, 2)).astype(np.float32)
        far = rng.standard_normal(40)
        rows[4] = far * (norm / np.linalg.norm(far))
        rows[9] = rows[4]
        distances, left, picked = distances_of(rows), list(range(15)), []
        scores = np.array(scores_of(distances, left, 15 - 3 - 2))
        if method == "bulyan":
            for _ in range(15 - 6):
                stage = scores_of(distances, left, max(1, len(left) - 3 - 2))
                picked.append(left.pop(int(np.argmin(stage))))
        else:
            picked = np.argsort(scores, kind="stable")[: 1 if method == "krum" else 10].tolist()
        result = aggregate(rows, method=method, num_byzantine=3)
        assert result.selected == tuple(sorted(picked))
        assert np.isfinite(result.vector).all()
