"""Why rules do what docs/attacks.md says they do: each reason there, checked where it can be seen alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.lab.laboratory import TEST_SHARE, Case, Clients, byzantine_clients
from scarcity_ray.robust import TOLERANCE, aggregate
from scarcity_ray.robust.rules.tolerance import nnm_kappa
from scarcity_ray.workloads.attacks import Honest, InnerProductManipulation, LittleIsEnough, View
from scarcity_ray.workloads.digit_images import NUM_PIXELS, load_digits

pytest.importorskip("sklearn")
DATA = load_digits(NUM_PIXELS, TEST_SHARE, 0)
N, F = 25, 5


def _gradients(steps=20, **settings):
    """Every client's honest gradient after some steps of the unattacked mean, and who would attack."""
    case = Case("mean", **{"num_clients": N, "num_byzantine": F, **settings})
    nobody = np.zeros(case.num_clients, dtype=bool)
    clients = Clients.of(case, DATA, Honest(), nobody)
    model = np.zeros(650, np.float32)
    for _ in range(steps):
        model -= np.float32(2.0) * clients.gradients(model).mean(axis=0)
    return clients.gradients(model), byzantine_clients(case)


def _cosine(first, second):
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "meamed", "bulyan"])
def test_coordinate_rules_cut_off_the_few_clients_that_hold_a_label(rule):
    for steps in (0, 20):
        unlike, _ = _gradients(steps, split="sorted")
        alike, _ = _gradients(steps, split="iid")
        cut = aggregate(unlike, method=rule, num_byzantine=F).vector
        kept = aggregate(alike, method=rule, num_byzantine=F).vector
        assert _cosine(cut, unlike.mean(axis=0)) < 0.25
        assert _cosine(kept, alike.mean(axis=0)) > 0.75


def test_rules_that_weigh_whole_rows_by_distance_keep_the_direction():
    unlike, _ = _gradients(0, split="sorted")
    for rule, f in (("geometric_median", F), ("centered_clipping", 2)):
        assert _cosine(aggregate(unlike, method=rule, num_byzantine=f).vector, unlike.mean(axis=0)) > 0.95


@pytest.mark.parametrize("split", ["iid", "sorted"])
def test_krum_takes_the_colluders_row_that_hides_beside_the_mean(split):
    rows, byzantine = _gradients(split=split)
    view = View(rows[byzantine], rows[~byzantine], np.random.default_rng(0))
    rows[byzantine] = LittleIsEnough().rows(view)
    (selected,) = aggregate(rows, method="krum", num_byzantine=F).selected
    assert byzantine[selected]
    honest = rows[~byzantine]
    mean = honest.mean(axis=0)
    nearest = np.linalg.norm(honest - mean, axis=1).min()
    assert np.linalg.norm(rows[selected] - mean) < nearest


@pytest.mark.parametrize("split", ["iid", "sorted"])
def test_krum_takes_the_turned_mean_once_the_mean_is_small_beside_the_clients_differences(split):
    rows, byzantine = _gradients(split=split)
    view = View(rows[byzantine], rows[~byzantine], np.random.default_rng(0))
    rows[byzantine] = InnerProductManipulation().rows(view)
    (selected,) = aggregate(rows, method="krum", num_byzantine=F).selected
    assert byzantine[selected]


def test_a_turned_mean_of_strength_one_only_slows_the_mean():
    rows, byzantine = _gradients()
    view = View(rows[byzantine], rows[~byzantine], np.random.default_rng(0))
    rows[byzantine] = InnerProductManipulation().rows(view)
    honest = rows[~byzantine].mean(axis=0)
    assert np.allclose(rows.mean(axis=0), (N - 2 * F) / N * honest, atol=1e-6)


def test_for_sorted_clients_no_theorem_bounds_the_error_below_the_mean_itself():
    rows, _ = _gradients(0, split="sorted")
    mean = rows.mean(axis=0)
    variance = np.square(rows - mean).sum(axis=1).mean()
    for name, tolerance in TOLERANCE.items():
        if tolerance.kappa is not None and name != "mean":
            kappa = tolerance.kappa(N, F)
            assert kappa * variance > 100 * float(mean @ mean), name
            assert nnm_kappa(N, F, kappa) > kappa, "the promise of mixing is for small f / n"


def test_monnas_pivot_attacks_in_two_of_the_three_seeds_at_seven_attackers():
    pivots = {f: [bool(byzantine_clients(_pivot_case(f, s))[0]) for s in range(3)] for f in (2, 5, 7)}
    assert pivots == {2: [False] * 3, 5: [False] * 3, 7: [True, False, True]}


def _pivot_case(f, seed):
    return Case("monna", num_clients=N, num_byzantine=f, seed=seed, per_basket=N)


def test_clipping_holds_attackers_down_where_clients_are_alike():
    case = {"split": "domains", "num_clients": 55, "num_byzantine": 10, "per_basket": 11}
    rows, _ = _gradients(20, **case)
    domains = replace(Case("mean"), **case).domains
    longest = np.linalg.norm(rows, axis=1).mean()
    inside = np.mean([np.linalg.norm(rows[domains == d].mean(axis=0)) for d in range(5)])
    assert inside > 0.7 * longest
    assert np.linalg.norm(rows.mean(axis=0)) < 0.3 * longest
