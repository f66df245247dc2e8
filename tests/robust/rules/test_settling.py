"""Selections that approximate distances settle are those of the exact ones."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scarcity_ray.robust import (
    Geometry,
    NearestNeighborMixing,
    aggregate,
    get_pre_aggregation,
    get_rule,
    inline_blocks,
    row_norms,
)
from scarcity_ray.robust import aggregation as aggregation_module
from scarcity_ray.robust.measures.approximate_distances import (
    HEAD,
    MOST_ERROR,
    measure_approximately,
)
from scarcity_ray.robust.measures.distances import exact_pairs
from scarcity_ray.robust.rules.base import Setting
from scarcity_ray.robust.rules.bulyan import bulyan_selection, settled_selection

pytestmark = pytest.mark.usefixtures("products_by")


def distances_for(rng, n):
    """Squared distances with near ties, exact ties and equal rows."""
    rows = rng.standard_normal((n, 3)) if rng.random() < 0.5 else rng.integers(-2, 3, (n, 3)).astype(float)
    rows += rng.choice([0.0, 1e-7, 1e-4]) * rng.standard_normal((n, 3))
    for _ in range(rng.integers(0, 4)):
        rows[rng.integers(n)] = rows[rng.integers(n)]
    return np.square(rows[:, None] - rows[None]).sum(axis=2)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["krum", "multi_krum", "bulyan"]))
@example(41, "bulyan")  # two pairs of nearest rows share a row, at equal distances
def test_a_settled_selection_is_that_of_all_distances_within_the_error(seed, method):
    rng = np.random.default_rng(seed)
    f = int(rng.integers(0, 4))
    n = get_rule(method).least_rows(f) + int(rng.integers(0, 6))
    distances, error = distances_for(rng, n), float(rng.choice([1e-9, 1e-6, 1e-3, 1e-1]))
    rule = get_rule(method)
    asked = []

    def exact(rows):
        asked.append(rows)
        return distances[rows]

    settled = rule.settle(distances, error, Setting(n, f), exact)
    if settled is None:
        return
    if asked:
        assert rule.select(distances, Setting(n, f)).rows == settled.rows
        return
    for _ in range(5):
        noise = 1 + error * rng.choice([-1.0, 1.0, 0.3], (n, n))
        moved = distances * np.triu(noise, 1)
        moved = moved + moved.T
        for later, earlier in np.argwhere(np.tril(distances == 0, -1)).tolist():
            moved[later], moved[:, later] = moved[earlier], moved[:, earlier]
        chosen = rule.select(moved, Setting(n, f))
        assert chosen.rows == settled.rows


@given(st.integers(0, 2**32 - 1), st.sampled_from(["krum", "multi_krum"]), st.floats(1e-9, 0.3))
def test_a_few_exact_rows_settle_what_the_error_leaves_in_doubt(seed, method, error):
    rng = np.random.default_rng(seed)
    n, f = 40, 5
    exact = distances_for(rng, n)
    exact = np.triu(exact, 1) + np.triu(exact, 1).T
    approximate = exact * np.triu(1 + error * rng.uniform(-1, 1, (n, n)), 1)
    approximate = approximate + approximate.T
    for later, earlier in np.argwhere(np.tril(exact == 0, -1)).tolist():
        approximate[later], approximate[:, later] = approximate[earlier], approximate[:, earlier]
    rule = get_rule(method)
    settled = rule.settle(approximate, error, Setting(n, f), lambda rows: exact[rows])
    expected = rule.select(exact, Setting(n, f))
    assert settled is None or settled.rows == expected.rows
    assert settled is not None or error > 1e-4


@given(st.integers(0, 2**32 - 1), st.floats(1e-9, 0.05))
def test_a_few_exact_rows_settle_what_bulyan_has_in_doubt(seed, error):
    rng = np.random.default_rng(seed)
    exact = distances_for(rng, 31)
    exact = np.triu(exact, 1) + np.triu(exact, 1).T
    approximate = exact * np.triu(1 + error * rng.uniform(-1, 1, (31, 31)), 1)
    approximate = approximate + approximate.T
    for later, earlier in np.argwhere(np.tril(exact == 0, -1)).tolist():
        approximate[later], approximate[:, later] = approximate[earlier], approximate[:, earlier]
    rule = get_rule("bulyan")
    settled = rule.settle(approximate, error, Setting(31, 5), lambda rows: exact[rows])
    assert settled is None or settled.rows == rule.select(exact, Setting(31, 5)).rows


@pytest.mark.parametrize("n", [11, 40, 100])
def test_settled_selections_are_the_rule_on_ordinary_rows(n):
    rng = np.random.default_rng(n)
    settled = 0
    for _ in range(20):
        rows = rng.standard_normal((n, 500))
        distances = np.square(rows[:, None] - rows[None]).sum(axis=2) if n < 50 else None
        if distances is None:
            squares = np.square(rows).sum(axis=1)
            distances = np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0)
            distances = np.triu(distances, 1) + np.triu(distances, 1).T
        picked, _ = settled_selection(distances, n // 5, np.full(n, 2.0**-20))
        if picked is not None:
            settled += 1
            assert picked == sorted(bulyan_selection(distances, n // 5)[0])
    assert settled >= 16


@pytest.mark.parametrize("method", ["krum", "multi_krum", "bulyan"])
def test_settled_rules_never_measure_in_float64(method, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("measured in float64")

    rows = np.random.default_rng(1).standard_normal((23, 9000)).astype(np.float32)
    expected = aggregate(rows, method=method, num_byzantine=4)
    monkeypatch.setattr(aggregation_module, "measure", refuse)
    assert aggregate(rows, method=method, num_byzantine=4).vector.tobytes() == expected.vector.tobytes()
    rows[[1, 5, 9]] = rows[5]
    aggregate(rows, method=method, num_byzantine=4)


@pytest.mark.parametrize("method", ["krum", "multi_krum", "bulyan"])
def test_approximate_and_exact_distances_give_the_same_result(method, monkeypatch):
    rng = np.random.default_rng(2)
    cases = []
    for _ in range(10):
        rows = (rng.standard_normal((19, 3000)) + 10 * rng.standard_normal(3000)).astype(np.float32)
        rows[:4] = rows[:4] * rng.choice([1.0, -10.0, 1e6]) if rng.random() < 0.7 else rows[0]
        cases.append((rows, aggregate(rows, method=method, num_byzantine=4)))
    monkeypatch.setattr(aggregation_module, "measure_approximately", lambda *_: None)
    for rows, result in cases:
        exact = aggregate(rows, method=method, num_byzantine=4)
        assert exact.selected == result.selected
        assert exact.vector.tobytes() == result.vector.tobytes()


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-9, 1e-6, 1e-4, 1e-2]))
def test_mixing_that_approximate_distances_settle_on_is_that_of_the_exact_ones(seed, error):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 30))
    f = int(rng.integers(0, (n + 1) // 2))
    exact = distances_for(rng, n)
    approximate = exact * np.triu(1 + error * rng.uniform(-0.9, 0.9, (n, n)), 1)
    approximate = approximate + approximate.T
    for later, earlier in np.argwhere(np.tril(exact == 0, -1)).tolist():
        approximate[later], approximate[:, later] = approximate[earlier], approximate[:, earlier]
        exact[later], exact[:, later] = exact[earlier], exact[:, earlier]
    exact = np.maximum(exact, exact.T)
    nnm = get_pre_aggregation("nnm")
    settled = nnm.settle(approximate, error, f, lambda pairs: exact[pairs[:, 0], pairs[:, 1]])
    if settled is not None:
        expected = nnm.coefficients(Geometry(exact, exact, n), f)
        assert settled.tobytes() == expected.tobytes()


@pytest.mark.parametrize("method", ["mean", "median", "trimmed_mean", "meamed"])
def test_nearest_neighbour_mixing_settles_on_the_bytes_of_float64_distances(method, monkeypatch):
    rng = np.random.default_rng(5)
    settled = 0
    for trial in range(8):
        rows = rng.standard_normal((23, 9000)).astype(np.float32)
        rows[:trial] *= np.float32(10.0**trial)
        rows[11] = rows[3]
        quick = aggregate(rows, method=method, num_byzantine=4, pre=["nnm"])
        with monkeypatch.context() as patched:
            patched.setattr(NearestNeighborMixing, "may_settle", False)
            slow = aggregate(rows, method=method, num_byzantine=4, pre=["nnm"])
        assert quick.vector.tobytes() == slow.vector.tobytes()
        assert quick.selected == slow.selected
        norms, blocks = row_norms(rows), inline_blocks(rows)
        known, exact = measure_approximately(blocks, norms), partial(exact_pairs, blocks)
        if known is not None and known.error <= MOST_ERROR:
            settled += get_pre_aggregation("nnm").settle(known.squared, known.error, 4, exact) is not None
    assert settled >= 4


@pytest.mark.parametrize("method", ["krum", "multi_krum", "bulyan"])
@pytest.mark.parametrize("lie", [1e8, 1e25, 3e38])
def test_a_head_that_misleads_costs_no_row(method, lie):
    rows = np.random.default_rng(5).normal(size=(23, HEAD + 500)).astype(np.float32)
    rows[7] = np.median(rows, axis=0)
    rows[7, HEAD:] = lie
    rows[7, :HEAD] *= np.sqrt(HEAD) / np.linalg.norm(rows[7, :HEAD])
    honest = aggregate(np.delete(rows, 7, axis=0), method=method, num_byzantine=4)
    found = aggregate(rows, method=method, num_byzantine=5)
    assert 7 not in found.selected
    if method == "krum":
        again = {index + (index >= 7) for index in honest.selected}
        assert set(found.selected) == again


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, HEAD, HEAD + 400])
def test_a_row_that_is_not_finite_behind_its_head_is_masked(bad, column):
    rows = np.random.default_rng(6).normal(size=(13, HEAD + 500)).astype(np.float32)
    spoilt = rows.copy()
    for index in (0, 6, 12):
        spoilt[index, column] = bad
    found = aggregate(spoilt, method="multi_krum", num_byzantine=4)
    assert found.rejected == (0, 6, 12)
    kept = aggregate(np.delete(rows, [0, 6, 12], axis=0), method="multi_krum", num_byzantine=1)
    assert found.vector.tobytes() == kept.vector.tobytes()
