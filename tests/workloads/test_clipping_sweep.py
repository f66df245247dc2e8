"""Adaptive clipping on the quickstart against the best fixed clip norm."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.lab.clipping_sweep import (
    FIXED,
    STARTS,
    ClippingCase,
    ClippingResult,
    best_fixed,
    clipping_cases,
    run_clipping,
)
from scarcity_ray.workloads.config import load_job

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
    job = load_job(QUICKSTART, ["training.rounds=3"])
    cases = [ClippingCase(0.05), ClippingCase(1.0), ClippingCase(10.0, adaptive=True)]
    small, usual, loose = (result.accuracies for result in run_clipping([job], cases))
    assert small != usual
    assert loose[0] < usual[0]


@pytest.mark.slow
def test_from_any_start_the_median_of_fifteen_seeds_is_within_two_points_of_the_best_fixed_norm():
    jobs = [load_job(QUICKSTART, [f"federation.seed={n}", f"workload.args.seed={n}"]) for n in range(15)]
    results = list(run_clipping(jobs, clipping_cases()))
    best = best_fixed(results)
    for result in results:
        print(result.case.name, result.accuracy, result.accuracies)
    assert all(r.accuracy >= best.accuracy - 0.02 for r in results if r.case.adaptive)
    fixed = {r.case.clip_norm: r.accuracy for r in results if not r.case.adaptive}
    assert fixed[10.0] < best.accuracy - 0.2
    assert fixed[0.1] < best.accuracy - 0.05
