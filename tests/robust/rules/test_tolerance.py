from __future__ import annotations

import math

import numpy as np
import pytest

from scarcity_ray.config import AggregationMethod
from scarcity_ray.robust import TOLERANCE, aggregate, get_rule, least_rows
from scarcity_ray.robust.rules import RULES
from scarcity_ray.robust.rules.tolerance import least_kappa, nnm_kappa

BOUNDED = sorted(name for name, entry in TOLERANCE.items() if entry.kappa and name != "mean")


def ratio(rows, honest, method, f, pre=()):
    """Squared error over the honest variance."""
    result = aggregate(rows, method=method, num_byzantine=f, pre=pre).vector.astype(np.float64)
    mean = rows[honest].mean(axis=0)
    variance = np.mean(np.sum((rows[honest] - mean) ** 2, axis=1))
    return np.sum((result - mean) ** 2) / variance if variance > 0 else 0.0


def worst_found(method, n, f, rng, pre=(), starts=4, steps=25):
    """A search that climbs: rows of several shapes, then random moves of any that raise the ratio."""
    worst, honest = 0.0, np.arange(n) >= f
    for start in range(starts):
        d = 1 + start % 3
        rows = rng.standard_normal((n, d))
        if start % 2:
            rows = np.where(rng.random((n, d)) < 0.3, 1.0, 0.0) + 1e-3 * rows
        rows[:f] = rng.choice([0.5, 1.0, 3.0]) * rng.standard_normal(d)
        rows = rows.astype(np.float32).astype(np.float64)
        here, size = ratio(rows, honest, method, f, pre), 1.0
        for _ in range(steps):
            moved = rows.copy()
            which = rng.random(n) < rng.choice([0.1, 0.5])
            moved[which] += size * rng.standard_normal((int(which.sum()), d))
            moved = moved.astype(np.float32).astype(np.float64)
            there = ratio(moved, honest, method, f, pre)
            size *= 1.3 if there > here else 0.9
            if there > here:
                rows, here = moved, there
        worst = max(worst, here)
    return worst


@pytest.mark.long
@pytest.mark.parametrize("method", BOUNDED)
@pytest.mark.parametrize("f", [1, 2])
@pytest.mark.parametrize("steps", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_each_bound_holds_for_rows_found_by_search(method, f, steps):
    rng = np.random.default_rng(f)
    for n in (least_rows(method, f), least_rows(method, f) + 3):
        found = worst_found(method, n, f, rng, steps=steps)
        assert found <= TOLERANCE[method].kappa(n, f) * (1 + 1e-4)


def test_the_search_finds_rows_that_break_the_mean_and_a_bound_that_is_too_small():
    rng = np.random.default_rng(0)
    assert worst_found("mean", 5, 1, rng) > TOLERANCE["trimmed_mean"].kappa(5, 1)
    assert worst_found("krum", 5, 1, rng) > least_kappa(5, 1)


@pytest.mark.parametrize("method", ["trimmed_mean", "median", "krum", "geometric_median", "meamed"])
def test_the_bound_after_nearest_neighbour_mixing_holds_for_rows_found_by_search(method):
    rng = np.random.default_rng(3)
    n = least_rows(method, 2) + 2
    found = worst_found(method, n, 2, rng, pre=["nnm"])
    assert found <= nnm_kappa(n, 2, TOLERANCE[method].kappa(n, 2)) * (1 + 1e-4)


def test_centred_clipping_can_have_no_bound_and_says_so():
    equal = np.full((11, 2), 5.0)
    assert TOLERANCE["centered_clipping"].kappa is None
    result = aggregate(equal, method="centered_clipping", num_byzantine=1).vector
    assert np.linalg.norm(result - equal[0]) > 1.0


@pytest.mark.parametrize(("n", "f"), [(5, 2), (7, 3), (9, 2), (20, 4), (40, 12)])
def test_the_covariance_filters_bound_holds_against_the_greatest_variance_alone(n, f):
    rng = np.random.default_rng(n)
    for trial in range(60):
        d = 1 + trial % 6
        rows = rng.standard_normal((n, d)) * 10.0 ** rng.uniform(-2, 2, d)
        rows[:f] *= 10.0 ** rng.uniform(-3, 1)
        rows[:f] += rng.choice([0.0, 1.0, 3.0, 10.0]) * rng.standard_normal(d)
        rows = rows.astype(np.float32).astype(np.float64)
        mean = rows[f:].mean(axis=0)
        greatest = np.linalg.eigvalsh((rows[f:] - mean).T @ (rows[f:] - mean) / (n - f))[-1]
        result = aggregate(rows, method="caf", num_byzantine=f).vector
        assert np.sum((result - mean) ** 2) <= TOLERANCE["caf"].kappa(n, f) * greatest * (1 + 1e-4)


@pytest.mark.parametrize("method", BOUNDED)
def test_no_bound_is_below_f_over_n_minus_2f(method):
    for f in range(1, 6):
        for n in range(least_rows(method, f), 60):
            assert TOLERANCE[method].kappa(n, f) >= least_kappa(n, f)


def test_every_rule_has_an_entry_and_only_rules_have():
    assert {rule.name for rule in RULES.values()} == set(TOLERANCE)
    for method in AggregationMethod:
        assert get_rule(method).name in TOLERANCE
    assert TOLERANCE["bulyan"].breakdown == 0.25
    assert TOLERANCE["mean"].breakdown == 0.0
    assert TOLERANCE["mean"].kappa(5, 1) == math.inf
