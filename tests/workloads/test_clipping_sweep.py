"""Adaptive clipping on the quickstart against the best fixed clip norm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.lab.clipping_sweep import (
    FIXED,
    STARTS,
    ClippingCase,
    ClippingResult,
    best_fixed,
    clipping_cases,
    run_clipping,
)
from scarcity_ray.workloads.averaging import RunningModel
from scarcity_ray.workloads.config import load_run

pytest.importorskip("sklearn")
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def test_the_cases_are_the_fixed_norms_and_adaptation_from_ten_times_off_both_ways():
    names = [case.name for case in clipping_cases()]
    assert len(names) == len(set(names)) == len(FIXED) + len(STARTS)
    assert {"fixed 1", "adaptive from 0.1", "adaptive from 1", "adaptive from 10"} <= set(names)


def test_the_best_is_the_fixed_one_with_the_highest_median():
    results = [
        ClippingResult(ClippingCase(1.0), (0.9, 0.1, 0.2)),
        ClippingResult(ClippingCase(2.0), (0.3, 0.3, 0.3)),
        ClippingResult(ClippingCase(1.0, adaptive=True), (0.9, 0.9, 0.9)),
    ]
    assert best_fixed(results) is results[1]


def test_a_sweep_changes_both_clip_norms_and_nothing_else_that_matters():
    config = load_run(QUICKSTART, ["workload.rounds=3"])
    cases = [ClippingCase(0.05), ClippingCase(1.0), ClippingCase(10.0, adaptive=True)]
    small, usual, loose = (result.accuracies for result in run_clipping(config, cases, [0]))
    assert small != usual
    assert loose[0] < usual[0]


@given(
    clip_norms=st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 10.0]) | st.floats(0.1, 10), max_size=12),
    seed=st.integers(0, 99),
)
def test_a_delta_counts_as_if_clipped_to_the_least_clip_norm_since_its_release(clip_norms, seed):
    deltas = np.random.default_rng(seed).standard_normal((len(clip_norms), 3)).astype(np.float32)
    model, told = RunningModel.zeros(3), [*clip_norms, 0.7]
    for number, delta in enumerate(deltas):
        model = model.step(delta, 2.0, 3.0, (told[number], told[number + 1]))
        since = [min(told[i : number + 2]) / told[i] for i in range(number + 1)]
        np.testing.assert_allclose(model.current, 2.0 * np.array(since) @ deltas[: number + 1], atol=1e-5)
        norms = [norm for norm, _ in model.parts]
        assert norms == sorted(norms)
        assert norms[-1] <= told[number + 1]


def test_while_the_clip_norm_rises_deltas_count_in_full():
    rising, plain = RunningModel.zeros(2), RunningModel.zeros(2)
    for number in range(5):
        delta = np.array([1.0, number], np.float32)
        rising = rising.step(delta, 1.0, 3.0, (1.0 + number, 2.0 + number))
        plain = plain.step(delta, 1.0, 3.0)
    np.testing.assert_allclose(rising.average, plain.average, rtol=1e-6)


@pytest.mark.slow
def test_from_any_start_the_median_of_fifteen_seeds_is_within_two_points_of_the_best_fixed_norm():
    results = list(run_clipping(load_run(QUICKSTART), clipping_cases(), range(15)))
    best = best_fixed(results)
    for result in results:
        print(result.case.name, result.accuracy, result.accuracies)
    assert all(r.accuracy >= best.accuracy - 0.02 for r in results if r.case.adaptive)
    fixed = {r.case.clip_norm: r.accuracy for r in results if not r.case.adaptive}
    assert fixed[10.0] < best.accuracy - 0.2
    assert fixed[0.1] < best.accuracy - 0.05
