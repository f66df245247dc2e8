"""docs/refused_rows.md, sentence by sentence: why refused rows are not taken off f."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scarcity_ray.privacy import rule_sensitivity
from scarcity_ray.robust import aggregate

Rows = NDArray[np.float64]


def trimmed_mean(rows: Rows, f: int) -> Rows:
    mean: Rows = np.sort(rows, axis=0)[f : len(rows) - f].mean(axis=0)
    return mean


def clipped(rows: Rows) -> Rows:
    return rows / np.maximum(1.0, np.linalg.norm(rows, axis=1, keepdims=True))


def bound(num_rows: int, f: int) -> float:
    return rule_sensitivity("trimmed_mean", num_rows=num_rows, num_byzantine=f, clip_norm=1.0)


def test_f_is_that_of_the_members_however_many_rows_were_refused(open_federation: Any) -> None:
    config = {
        "vector_dim": 3,
        "auto_aggregate": False,
        "layer1": {"aggregation_method": "trimmed_mean", "byzantine_fraction": 0.2},
    }
    fed = open_federation(config)
    names = [f"c{i:02d}" for i in range(20)]
    fed.register_clients([(name, "a") for name in names])
    rows = np.full((20, 3), 0.1)
    rows[:4] = np.nan
    assert sum(receipt.accepted for receipt in fed.submit_updates(names, rows)) == 16
    fed.force_aggregate()
    model = fed.get_basket_meta_model("a")
    assert (model.n_contributors, model.num_byzantine) == (16, 4)
    sensitivity = fed.plan.sensitivity(model.facts("a", 20))
    assert sensitivity == pytest.approx(2.0 / 8, rel=1e-3)
    assert fed.unregister_client("c00")
    fed.advance_round()
    fed.submit_updates(names[4:], rows[4:])
    fed.force_aggregate()
    assert fed.get_basket_meta_model("a").num_byzantine == 3


def test_the_noise_that_refused_rows_cost() -> None:
    assert bound(19, 4) / bound(20, 4) == pytest.approx(1.09, abs=0.005)
    assert bound(16, 4) / bound(20, 4) == pytest.approx(1.5)


@given(data=st.data(), n=st.integers(5, 14), r=st.integers(0, 2))
def test_with_acceptance_public_any_f_made_of_it_keeps_the_bound(data: st.DataObject, n: int, r: int) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10_000)))
    rows = clipped(rng.standard_normal((n - r, 4)) * rng.choice([0.1, 1.0, 10.0], (n - r, 1)))
    other = rows.copy()
    other[0] = clipped(rng.standard_normal((1, 4)) * 10.0)[0]
    for f in {max(0, 2 - r), (n - r - 1) // 2}:
        moved = np.linalg.norm(trimmed_mean(rows, f) - trimmed_mean(other, f))
        assert moved <= bound(n - r, f) * (1 + 1e-9)


def test_a_refused_row_that_becomes_valid_moves_the_result_beyond_the_bound_if_f_depends_on_it() -> None:
    refused, joined = -np.eye(16), np.vstack([-np.eye(16), np.zeros(16)])
    moved = np.linalg.norm(trimmed_mean(refused, 0) - trimmed_mean(joined, 1))
    assert moved == pytest.approx(0.25)
    assert moved > 1.8 * max(bound(16, 0), bound(17, 1))
    assert moved == pytest.approx(np.sqrt(16) / 2 * bound(16, 0))
    kept = [np.linalg.norm(trimmed_mean(rows, 4)) for rows in (refused, joined)]
    assert kept == [0.0, 0.0]


@given(data=st.data(), n=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_with_f_kept_a_row_that_joins_moves_the_clipped_result_by_no_more_than_the_claim(
    data: st.DataObject, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    f = data.draw(st.integers(0, (n - 1) // 2))
    before, after = joined_pair(rng, n, f)
    assert np.linalg.norm(after - before) <= bound(n + 1, f) * (1 + 1e-9) < bound(n, f) * (1 + 1e-9)


def joined_pair(rng: np.random.Generator, n: int, f: int) -> tuple[Rows, Rows]:
    """Clipped results without and with a row that opposes them; the first often lies outside the ball."""
    rows = clipped(rng.standard_normal((n, 6)) * rng.choice([0.1, 1.0, 10.0], (n, 1)))
    if rng.random() < 0.5:
        rows = clipped(10.0 * (rng.random((n, 6)) < 0.7))
    mean = trimmed_mean(rows, f)
    towards = -mean if rng.random() < 0.5 else rng.standard_normal(6)
    row = clipped(100.0 * towards[np.newaxis])
    first, second = clipped(np.stack([mean, trimmed_mean(np.vstack([rows, row]), f)]))
    return first, second


def test_that_bound_is_nearly_reached() -> None:
    """Rows at one point and one that joins at the opposite one; without f it is exact."""
    for n, f in ((8, 0), (9, 4), (20, 4)):
        rows = np.tile([1.0, 0.0], (n, 1))
        rows[:f] = [-1.0, 0.0]
        moved = np.linalg.norm(trimmed_mean(rows, f) - trimmed_mean(np.vstack([rows, [[-1.0, 0.0]]]), f))
        assert moved == pytest.approx(bound(n + 1, f))


def test_honest_rows_that_were_refused_leave_too_weak_a_rule_if_they_count_against_f() -> None:
    """Eleven clients, f = 2: two attackers that send finite rows, two honest ones whose training diverged."""
    rng = np.random.default_rng(0)
    honest = clipped(0.1 + 0.01 * rng.standard_normal((7, 5)))
    rows = np.vstack([honest, np.full((2, 5), -1.0 / np.sqrt(5))])
    low, high = honest.min(axis=0), honest.max(axis=0)
    weakened = aggregate(rows, method="trimmed_mean", num_byzantine=0).vector
    assert (weakened < low).all()
    as_it_is = aggregate(rows, method="trimmed_mean", num_byzantine=2).vector
    assert ((as_it_is >= low) & (as_it_is <= high)).all()
