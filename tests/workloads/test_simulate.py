"""The simulated federation: what it does in one round, and that it learns under attack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scarcity_ray.config import AggregationMethod
from scarcity_ray.layers import Layer1Aggregator
from scarcity_ray.plan import make_plan
from scarcity_ray.robust import aggregate
from scarcity_ray.workloads.attacks import AttackConfig
from scarcity_ray.workloads.comparison import ComparisonInputs, compare, comparisons, defence
from scarcity_ray.workloads.config import load_run
from scarcity_ray.workloads.population import make_scene
from scarcity_ray.workloads.simulate import basket_model, basket_rule, federated_delta, simulate

pytest.importorskip("sklearn")
QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def _plan(**changes):
    federation = load_run(QUICKSTART).federation
    return make_plan(replace(federation, layer1=replace(federation.layer1, **changes)))


def test_a_round_is_clip_rule_clip_weighted_mean():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((26, 250)).astype(np.float32)  # norms near 16, all clipped to 1
    baskets = np.repeat([0, 1], [11, 15])
    made = federated_delta(rows, baskets, _plan())
    delta, sigma = made.delta, made.sigma
    vectors = []
    for basket, f in ((0, 2), (1, 3)):
        inside = rows[baskets == basket].astype(np.float64)
        inside /= np.linalg.norm(inside, axis=1, keepdims=True)
        trimmed = np.sort(inside, axis=0)[f:-f].mean(axis=0)
        vectors.append(trimmed / max(1.0, np.linalg.norm(trimmed)))
    assert np.allclose(delta, (11 * vectors[0] + 15 * vectors[1]) / 26, atol=1e-6)
    # w 2C / (n - 2f): 11/26 * 2/7 and 15/26 * 2/9; grid and float32 slack on top
    assert sigma == pytest.approx(max(11 / 26 * 2 / 7, 15 / 26 * 2 / 9) / _plan().mu_release, rel=1e-4)


def test_rows_that_are_not_finite_are_left_out_and_a_short_basket_waits():
    rows = np.ones((22, 250), dtype=np.float32)
    baskets = np.repeat([0, 1], 11)
    rows[:8] = np.nan  # 3 finite rows left, the trimmed mean with f = 2 needs 5
    rows[11:13] = np.inf
    made = federated_delta(rows, baskets, _plan())
    delta, sigma = made.delta, made.sigma
    assert np.allclose(np.linalg.norm(delta), 1.0, atol=1e-5)
    assert sigma == pytest.approx(2 / (9 - 4) / _plan().mu_release, rel=1e-4)
    none = federated_delta(np.full_like(rows, np.nan), baskets, _plan())
    assert not none.delta.any()
    assert none.sigma == 0.0


def test_a_baskets_vector_is_mixed_as_the_config_says():
    rows = np.random.default_rng(2).standard_normal((13, 250)).astype(np.float32)
    rows /= 2 * np.linalg.norm(rows, axis=1, keepdims=True)
    plan = _plan(pre=("nnm",))
    _, model = basket_model(rows, plan, Layer1Aggregator(plan.config.layer1))
    vector = model.aggregate
    expected = aggregate(rows, method="trimmed_mean", num_byzantine=2, pre=["nnm"]).vector
    assert np.allclose(vector, expected, atol=1e-6)
    assert np.array_equal(basket_rule(_plan(pre=("nnm",)))(rows), vector)


def test_a_clipped_mean_has_its_own_smaller_noise():
    rows = np.ones((260, 250), dtype=np.float32)
    baskets = np.arange(260) // 13
    federation = load_run(QUICKSTART).federation
    trimmed = federated_delta(rows, baskets, defence("federation", federation).plan)
    mean = federated_delta(rows, baskets, defence("clipped_mean", federation).plan)
    assert mean.sigma / trimmed.sigma == pytest.approx(9 / 13, rel=1e-3)


@pytest.mark.parametrize("method", list(AggregationMethod))
def test_every_rule_can_be_simulated(method):
    rng = np.random.default_rng(0)
    few = {"byzantine_fraction": 0.09} if method.value == "centered_clipping" else {}
    plan = _plan(aggregation_method=method, **few)
    made = federated_delta(rng.standard_normal((22, 250)).astype(np.float32), np.arange(22) // 11, plan)
    assert np.linalg.norm(made.delta) <= 1.0 + 1e-5
    assert 0 < made.sigma <= 2 / plan.mu_release


def test_the_same_arguments_give_the_same_accuracies():
    config = load_run(QUICKSTART, ["workload.rounds=3"])
    scene = make_scene(config)
    first = simulate(scene, AttackConfig(name="gaussian"), defence("federation", config.federation))
    assert first == simulate(scene, AttackConfig(name="gaussian"), defence("federation", config.federation))
    assert len(first) == 3


def test_comparisons_hold_every_defence_under_the_jobs_attack_once():
    runs = comparisons(AttackConfig(name="ipm"), ("alie", "ipm", "alie"))
    assert [(r.name, r.attack.name) for r in runs] == [
        ("clean", "none"),
        ("federation", "ipm"),
        ("clipped_mean", "ipm"),
        ("plain_mean", "ipm"),
        ("federation", "alie"),
        ("clipped_mean", "alie"),
        ("plain_mean", "alie"),
    ]


def _final(config, name, attack=None):
    scene = make_scene(config)
    return simulate(scene, attack or config.workload.attack, defence(name, config.federation))[-1]


def test_one_seed_is_far_above_the_plain_mean_and_near_the_clean_run():
    config = load_run(QUICKSTART)
    attacked = _final(config, "federation")
    assert attacked >= _final(config, "plain_mean") + 0.15
    one_seeds_margin = 0.13
    assert attacked >= _final(config, "clean", AttackConfig(name="none")) - one_seeds_margin


@pytest.mark.slow
def test_the_median_of_five_seeds_is_within_ten_points_of_clean_and_fifteen_above_the_plain_mean():
    finals = []
    for seed in range(5):
        config = load_run(QUICKSTART, [f"federation.seed={seed}"])
        inputs = ComparisonInputs(make_scene(config), config.federation)
        runs = comparisons(config.workload.attack, ("alie",))
        finals.append({(r.name, r.attack.name): compare(r, inputs)[-1] for r in runs})
    median = {key: float(np.median([final[key] for final in finals])) for key in finals[0]}
    print(median)
    attacked = median["federation", "sign_flip"]
    assert attacked >= median["plain_mean", "sign_flip"] + 0.15
    assert attacked >= median["clean", "none"] - 0.10
    assert median["federation", "alie"] >= median["clean", "none"] - 0.10
