"""The simulated federation: what it does in one round, and that it learns under attack."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig, PrivacyConfig, load
from scarcity_ray.layers import Layer1Aggregator
from scarcity_ray.plan import FederationPlan, make_plan
from scarcity_ray.robust import aggregate
from scarcity_ray.workloads.attacks import AttackConfig
from scarcity_ray.workloads.comparison import ComparisonInputs, compare, comparisons, defence
from scarcity_ray.workloads.config import LabConfig, load_job, load_run
from scarcity_ray.workloads.scene import (
    NO_ATTACK,
    Scene,
    SimulatedAttackers,
    Travelling,
    baskets_in_order,
    byzantine_clients,
)
from scarcity_ray.workloads.simulate import (
    basket_model,
    basket_rule,
    federated_delta,
    noised_rows,
    simulate,
    train_alone,
    with_momentum,
)
from scarcity_ray_client import Client, Trained, Workload

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


def test_a_weighted_mean_weighs_by_examples_and_its_noise_covers_the_heaviest():
    rows = np.random.default_rng(3).standard_normal((8, 250)).astype(np.float32)
    rows /= 2 * np.linalg.norm(rows, axis=1, keepdims=True)
    rows[3] = np.nan
    examples = [1, 2, 3, 50, 4, 30, 5000, 6]
    plan = _plan(aggregation_method=AggregationMethod.WEIGHTED, byzantine_fraction=0.0, max_examples=40)
    made = federated_delta(rows, np.repeat([0, 1], 4), plan, examples)
    heavy = np.array([4, 30, 40, 6]) @ rows[4:] / 80
    np.testing.assert_allclose(made.delta, (np.array([1, 2, 3]) @ rows[:3] / 6 + heavy) / 2, atol=1e-6)
    assert made.sigma == pytest.approx(2 * 0.5 * max(3 / 6, 40 / 80) / plan.mu_release, rel=1e-3)


def test_where_a_record_is_the_unit_the_noise_is_for_one_of_the_smallest_clients():
    federation = load_run(QUICKSTART).federation
    privacy = PrivacyConfig(unit="record", person_clip_norm=0.5, min_persons=10)
    federation = replace(federation, privacy=privacy, gossip_budget_share=0.0)
    plan = make_plan(replace(federation, layer1=replace(federation.layer1, clip_norm=0.5)))
    rows, baskets = np.zeros((26, 250), np.float32), np.repeat([0, 1], 13)
    examples = np.where(np.arange(26) == 5, 400, 1000)
    made = federated_delta(rows, baskets, plan, examples.tolist())
    assert made.sigma == pytest.approx(2 * 0.5 / 400 / 9 / 2 / plan.mu_release, rel=0.05)
    assert federated_delta(rows, baskets, plan).sigma == pytest.approx(40 * made.sigma, rel=0.05)


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


@pytest.mark.parametrize(
    "settings",
    [
        {"aggregation_method": AggregationMethod.CENTERED_CLIPPING, "clipping_radius": 0.5},
        {"aggregation_method": AggregationMethod.MULTI_KRUM, "num_selected": 3},
        {"aggregation_method": AggregationMethod.WEIGHTED, "max_examples": 50},
        {"aggregation_method": AggregationMethod.KRUM, "pre": ("nnm",)},
    ],
)
def test_a_clipped_mean_is_one_whatever_else_the_rule_beside_it_has_set(settings):
    federation = load_run(QUICKSTART).federation
    plain = defence("clipped_mean", federation).plan
    layer1 = replace(federation.layer1, **settings)
    assert defence("clipped_mean", replace(federation, layer1=layer1)).plan.config == plain.config


@pytest.mark.parametrize("method", list(AggregationMethod))
def test_every_rule_can_be_simulated(method):
    rng = np.random.default_rng(0)
    few = {"byzantine_fraction": 0.09} if method.value == "centered_clipping" else {}
    plan = _plan(aggregation_method=method, **few)
    made = federated_delta(rng.standard_normal((22, 250)).astype(np.float32), np.arange(22) // 11, plan)
    assert np.linalg.norm(made.delta) <= 1.0 + 1e-5
    assert 0 < made.sigma <= 2 / plan.mu_release


@pytest.fixture(scope="module")
def short():
    job = load_job(QUICKSTART, ["training.rounds=3", "workload.args.clients=104"])
    return job.config.federation, Scene.of(job, "accuracy")


def test_the_same_arguments_give_the_same_metrics(short):
    federation, scene = short
    attack = AttackConfig(name="gaussian")
    first = simulate(scene, attack, defence("federation", federation))
    assert first == simulate(scene, attack, defence("federation", federation))
    assert len(first.curve) == 3
    assert first.curve[-1] == first.metrics["accuracy"]


UNWILLING = """
import numpy as np
from scarcity_ray import AggregationRule

class Unwilling(AggregationRule):
    def least_rows(self, num_byzantine):
        return 1
    def aggregate(self, rows, num_byzantine, rng):
        if (rows < -0.5).any():
            raise FloatingPointError("one is far below")
        return rows.mean(axis=0)
"""


def test_a_basket_whose_rule_fails_waits_also_in_an_attackers_trials(tmp_path, monkeypatch):
    (tmp_path / "unwilling_rule.py").write_text(UNWILLING)
    monkeypatch.syspath_prepend(tmp_path)
    plan = _plan(aggregation_method="unwilling_rule:Unwilling")
    rows = np.full((22, 250), 0.05, np.float32)
    rows[0, 0] = -0.9
    made = federated_delta(rows, np.repeat([0, 1], 11), plan)
    assert np.allclose(made.delta, 0.05, atol=1e-6), "the other basket's alone"
    assert made.rule_failures == 1
    assert not basket_rule(plan)(rows[:11]).any()


def test_comparisons_are_those_asked_for_and_the_rules_also_under_other_attacks():
    lab = LabConfig(
        attack=AttackConfig(name="ipm"),
        compare=("clean", "plain_mean", "local_only"),
        compare_attacks=("alie", "ipm", "alie"),
    )
    assert [(run.name, run.attack.name) for run in comparisons(lab)] == [
        ("federation", "ipm"),
        ("clean", "none"),
        ("plain_mean", "ipm"),
        ("local_only", "none"),
        ("federation", "alie"),
        ("plain_mean", "alie"),
    ]
    assert comparisons(LabConfig()) == []


def test_a_mean_that_attackers_break_has_no_metrics_and_the_rule_goes_on(short):
    federation, scene = short
    attack = AttackConfig(name="nan")
    broken = simulate(scene, attack, defence("plain_mean", federation))
    assert np.isnan(broken.curve).all()
    assert broken.metrics == {}
    assert simulate(scene, attack, defence("federation", federation)).metrics["accuracy"] > 0.0


class Line(Workload):
    """Each client pulls one number towards its own; one of them never trains."""

    def __init__(self, failing=()):
        self.failing = failing

    def clients(self):
        return [Client(f"c{i}", "all", data=i) for i in range(6)]

    def initial_model(self):
        return {"w": np.zeros(1, np.float32)}

    def train(self, model, client, round_id):
        if client.data in self.failing:
            raise ValueError("no data")
        return Trained(model={"w": model["w"] + 0.5 * (client.data - model["w"])})

    def evaluate(self, model):
        return {"value": float(model["w"][0])}


def _line(training, failing=()):
    workload = Line(failing)
    clients = tuple(workload.clients())
    nobody = np.zeros(6, np.bool_)
    return Scene(workload, workload.codec(), clients, nobody, np.arange(6) // 3, training, 0, "value")


def test_a_client_that_gives_no_update_is_left_out():
    training = replace(load_run(QUICKSTART).training, rounds=1, averaging_decay=None, optimizer={})
    plain = simulate(_line(training, failing=(5,)), NO_ATTACK, defence("plain_mean", None))
    assert plain.metrics["value"] == pytest.approx(0.5 * np.mean([0, 1, 2, 3, 4]))


def test_alone_each_client_keeps_to_its_own_data():
    training = replace(load_run(QUICKSTART).training, rounds=2)
    found = train_alone(_line(training, failing=(0,)))
    assert found.metrics["value"] == pytest.approx(0.75 * np.mean([0, 1, 2, 3, 4, 5]))
    assert found.curve == ()


def test_drawn_clients_alone_train():
    training = replace(load_run(QUICKSTART).training, rounds=1, clients_per_round=2)
    scene = _line(training)
    draws = [scene.chosen(number).tolist() for number in range(9)]
    assert all(len(set(draw)) == 2 for draw in draws)
    assert draws[0] == scene.chosen(0).tolist()
    assert len({place for draw in draws for place in draw}) > 2


def test_a_scene_travels_whole(short):
    federation, scene = short
    read = Travelling.of(scene).read()
    run = comparisons(LabConfig(compare=("clean",)))[0]
    here = simulate(scene, NO_ATTACK, defence("clean", federation))
    assert compare(run, ComparisonInputs(Travelling.of(read), federation)).run == here


@pytest.mark.parametrize(("count", "share"), [(260, 0.2), (7, 0.5), (10, 0.0)])
def test_the_byzantine_number_is_exact(count, share):
    byzantine = byzantine_clients(count, share, 3)
    assert int(byzantine.sum()) == round(share * count)
    assert np.array_equal(byzantine, byzantine_clients(count, share, 3))
    assert share == 0.0 or count < 9 or not np.array_equal(byzantine, byzantine_clients(count, share, 4))


def test_baskets_fill_in_order():
    assert baskets_in_order(("a", "b", "a", "a", "b", "a", "a"), 2).tolist() == [0, 1, 0, 2, 1, 2, 3]


def test_simulated_attackers_see_their_own_basket_and_leave_the_honest_alone(short):
    federation, scene = short
    plan = make_plan(federation)
    attackers = SimulatedAttackers(
        scene, AttackConfig(name="ipm", scale=0.5), lambda clip_norm: basket_rule(plan.at(clip_norm))
    )
    ids = [client.client_id for client in scene.clients]
    baskets = [f"basket_{number}" for number in scene.baskets]
    rows = np.random.default_rng(0).standard_normal((104, 250)).astype(np.float32)
    sent = attackers.sent(3, ids, baskets, rows, 1.0)
    assert np.array_equal(sent[~scene.byzantine], rows[~scene.byzantine])
    assert attackers.byzantine == {ids[place] for place in np.flatnonzero(scene.byzantine)}
    place = int(np.flatnonzero(scene.byzantine)[0])
    honest = (scene.baskets == scene.baskets[place]) & ~scene.byzantine
    np.testing.assert_allclose(sent[place], -0.5 * rows[honest].mean(axis=0), rtol=1e-4, atol=1e-6)
    assert not attackers.poisons


def _final(job, name, attack=None):
    found = simulate(
        Scene.of(job, "accuracy"), attack or job.config.lab.attack, defence(name, job.config.federation)
    )
    return found.metrics["accuracy"]


@pytest.mark.long
def test_one_seed_is_far_above_the_plain_mean_and_near_the_clean_run():
    job = load_job(QUICKSTART)
    attacked = _final(job, "federation")
    assert attacked >= _final(job, "plain_mean") + 0.15
    one_seeds_margin = 0.13
    assert attacked >= _final(job, "clean", NO_ATTACK) - one_seeds_margin


@pytest.mark.slow
def test_the_median_of_five_seeds_is_within_ten_points_of_clean_and_fifteen_above_the_plain_mean():
    finals = []
    for seed in range(5):
        changes = (f"federation.seed={seed}", f"workload.args.seed={seed}", "lab.compare_attacks=[alie]")
        job = load_job(QUICKSTART, changes)
        inputs = ComparisonInputs(Travelling.of(Scene.of(job, "accuracy")), job.config.federation)
        made = {(r.name, r.attack.name): compare(r, inputs).run for r in comparisons(job.config.lab)}
        finals.append({key: run.metrics["accuracy"] for key, run in made.items()})
    median = {key: float(np.median([final[key] for final in finals])) for key in finals[0]}
    print(median)
    attacked = median["federation", "sign_flip"]
    assert attacked >= median["plain_mean", "sign_flip"] + 0.15
    assert attacked >= median["clean", "none"] - 0.10
    assert median["federation", "alie"] >= median["clean", "none"] - 0.10


def test_noised_rows_have_the_plans_noise_and_liars_add_none(short):
    """And momentum is that of the baskets (`tests/baskets/test_local_state.py`)."""
    _, scene = short
    dimension = 2000
    privacy = {
        "unit": "person",
        "noise": "site",
        "person_clip_norm": 1.0,
        "min_persons": 50,
        "row_epsilon": 1.0,
    }
    config = load(
        HierarchicalFederationConfig,
        {"vector_dim": dimension, "privacy": privacy, "layer1": {"momentum": 0.5, "clip_norm": 1e3}},
    )
    plan = FederationPlan(config)
    liar = int(np.flatnonzero(scene.byzantine)[0])
    honest = int(np.flatnonzero(~scene.byzantine)[0])
    places, rows = np.array([honest, liar]), np.zeros((2, dimension), np.float32)
    noised = noised_rows(rows, places, scene, plan, np.random.default_rng(0))
    assert noised[0].std() == pytest.approx(plan.site_noise.sigma(scene.counts(plan)[honest]), rel=0.1)
    assert not noised[1].any()
    momenta = np.zeros((len(scene.clients), dimension), np.float32)
    row = np.array([np.ones(dimension), np.full(dimension, np.nan)], np.float32)
    assert [with_momentum(row, places, momenta, plan)[0, 0] for _ in range(3)] == [0.5, 0.75, 0.875]
    assert not momenta[liar].any()
