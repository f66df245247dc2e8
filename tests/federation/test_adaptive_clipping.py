"""Adaptive clipping in the whole federation: by the definition, through deaths, and what rides along."""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation
from scarcity_ray.layers import Layer1Aggregator, Layer1Input

DIMENSION = 6
SIZES = {"a": 5, "b": 8, "c": 6}
RATE, QUANTILE = 0.3, 0.6
START, RATIO = 1.0, 0.75


def settings(**changes: Any) -> dict[str, Any]:
    layer2 = {
        "central_dp_epsilon": math.inf,
        "clip_norm": START * RATIO,
        "adaptive_clipping": True,
        "clip_quantile": QUANTILE,
        "clip_learning_rate": RATE,
        **changes.pop("layer2", {}),
    }
    return {
        "vector_dim": DIMENSION,
        "auto_aggregate": False,
        "total_epsilon": math.inf,
        "gossip_budget_share": 0.0,
        "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "clip_norm": START},
        "layer2": layer2,
        **changes,
    }


def clipped(vector: Any, norm: float) -> Any:
    return vector * min(1.0, norm / float(np.linalg.norm(vector)))


def crowd(fed: HierarchicalFederation) -> None:
    fed.register_clients([(f"{domain}{i}", domain) for domain, size in SIZES.items() for i in range(size)])


def send(fed: HierarchicalFederation, rng: np.random.Generator, scale: float = 3.0) -> dict[str, Any]:
    """Every client's update of the round, by domain, with norms around `scale`."""
    sent = {}
    for domain, size in SIZES.items():
        rows = rng.normal(size=(size, DIMENSION))
        rows *= scale * rng.lognormal(0.0, 0.6, (size, 1)) / np.linalg.norm(rows, axis=1, keepdims=True)
        assert all(fed.submit_updates([f"{domain}{i}" for i in range(size)], rows))
        sent[domain] = rows.astype(np.float32).astype(np.float64)
    return sent


def expected(sent: dict[str, Any], clip_norm: float) -> tuple[Any, float]:
    """The release and the next clip norm, by the definitions (Andrew et al. 2021, algorithm 1)."""
    members = sum(SIZES.values())
    model, share = np.zeros(DIMENSION), 0.0
    for rows in sent.values():
        mean = np.mean([clipped(row, clip_norm) for row in rows], axis=0)
        model += len(rows) / members * clipped(mean, RATIO * clip_norm)
        share += float(np.sum(np.linalg.norm(rows, axis=1) <= clip_norm)) / members
    return model, clip_norm * math.exp(-RATE * (share - QUANTILE))


@pytest.mark.parametrize("secure", [True, False])
def test_rounds_are_the_papers_algorithm_applied_to_what_was_sent(secure: bool, open_federation: Any) -> None:
    fed = open_federation(settings(layer2={"use_secure_aggregation": secure}))
    crowd(fed)
    rng, clip_norm, path = np.random.default_rng(3), START, []
    assert fed.get_meta_params() == {}
    for _ in range(16):
        model, following = expected(send(fed, rng), clip_norm)
        np.testing.assert_allclose(fed.force_aggregate(), model, rtol=0, atol=2e-6 * max(1.0, clip_norm))
        clip_norm = fed.get_meta_params()["clip_norm"]
        assert clip_norm == pytest.approx(following, rel=1e-5)
        assert clip_norm == fed.get_global_meta_model().clip_norm
        path.append(clip_norm)
        fed.advance_round()
    # From a third of the typical norm to its quantile.
    assert 3.0 * 0.9 < np.median(path[-6:]) < 3.0 * 1.5


def test_without_adaptation_no_model_tells_a_clip_norm(open_federation: Any) -> None:
    fed = open_federation(settings(layer2={"adaptive_clipping": False}))
    crowd(fed)
    send(fed, np.random.default_rng(1))
    assert fed.force_aggregate() is not None
    assert fed.get_global_meta_model().clip_norm is None
    assert fed.get_meta_params() == {}


def test_the_bits_are_those_of_rows_before_clipping_and_gossip(open_federation: Any) -> None:
    # Norms far above C: no bit says "below", though every row is clipped to C when it is formed, and mixed.
    gossip = {"local_dp_epsilon": math.inf, "push_drift_threshold": 0.0, "mixing": "average"}
    fed = open_federation(settings(gossip=gossip, gossip_budget_share=0.5))
    crowd(fed)
    send(fed, np.random.default_rng(1), scale=100.0)
    assert sum(fed.run_gossip_round().values()) > 0
    fed.force_aggregate()
    assert fed.get_meta_params()["clip_norm"] == pytest.approx(math.exp(RATE * QUANTILE), rel=1e-5)


def test_an_update_that_waited_is_clipped_again_to_the_lesser_clip_norm(open_federation: Any) -> None:
    # Baskets b and c release; a has one row too few, and its rows of norm 1 meet a smaller C in round 1.
    fed = open_federation(
        settings(layer1={**settings()["layer1"], "min_updates": 5}, layer2={"assumed_corrupt_fraction": 0.0})
    )
    crowd(fed)
    early = np.eye(5, DIMENSION)
    for i in range(4):
        assert fed.submit_update(f"a{i}", early[i])
    for domain in "bc":
        assert all(
            fed.submit_updates(
                [f"{domain}{i}" for i in range(SIZES[domain])], np.full((SIZES[domain], DIMENSION), 1e-3)
            )
        )
    fed.force_aggregate()
    lesser = fed.get_meta_params()["clip_norm"]
    assert lesser == pytest.approx(math.exp(-RATE * (1 - QUANTILE)), rel=1e-5)
    assert fed.submit_update("a4", 1e-3 * early[4])
    fed.force_aggregate()
    model = fed.get_basket_meta_model("a")
    assert model.clip_norm == lesser
    assert model.bit == pytest.approx(1 / 5 - 1 / 2)
    np.testing.assert_allclose(model.aggregate[:4], lesser / 5, rtol=1e-5)


def test_an_aggregate_that_waited_is_released_with_its_own_sensitivity(open_federation: Any) -> None:
    fed = open_federation(settings(layer2={"central_dp_epsilon": 8.0}, total_epsilon=50.0))
    crowd(fed)
    send(fed, np.random.default_rng(2))
    fed._driver.run_layer1(["a_basket_0"], True)
    held = fed.get_basket_meta_model("a")
    assert held.clip_norm == START
    plan = fed.plan.at(0.5)
    facts = held.facts("a", 5)
    assert plan.sensitivity(facts) == pytest.approx(2 * min(START / 5, 0.5 * RATIO), rel=1e-5)
    release = plan.release([facts])
    assert release.clip_norm == 0.5


@pytest.mark.parametrize("names", [("global",), ("basket:0",), ("global", "basket:0"), ("directory",)])
def test_whoever_dies_the_clip_norm_goes_on_from_the_last_release(
    names: tuple[str, ...], open_federation: Any
) -> None:
    fed = open_federation(settings())
    crowd(fed)
    rng, clip_norm = np.random.default_rng(8), START
    for round_id in range(4):
        if round_id == 2:
            for name in names:
                fed._runtime.kill(name)
        model, following = expected(send(fed, rng), clip_norm)
        np.testing.assert_allclose(fed.force_aggregate(), model, rtol=0, atol=3e-6)
        clip_norm = fed.get_meta_params()["clip_norm"]
        assert clip_norm == pytest.approx(following, rel=1e-5)
        fed.advance_round()
    assert len(fed.get_stats()["faults"]) == len(names)


def test_baskets_opened_later_begin_at_the_last_released_clip_norm(open_federation: Any) -> None:
    fed = open_federation(settings(runtime={"baskets_per_actor": 1}))
    crowd(fed)
    rng = np.random.default_rng(8)
    for _ in range(3):
        send(fed, rng)
        fed.force_aggregate()
        fed.advance_round()
    fed.register_clients([(f"z{i}", "z") for i in range(4)])
    send(fed, rng)
    assert all(fed.submit_updates([f"z{i}" for i in range(4)], np.ones((4, DIMENSION))))
    told = fed.get_meta_params()["clip_norm"]
    fed.force_aggregate()
    assert fed.get_basket_meta_model("z").clip_norm == told > START


def test_the_ledger_says_which_clip_norm_each_release_had(open_federation: Any, tmp_path: Any) -> None:
    fed = open_federation(settings(layer2={"central_dp_epsilon": 1.0}, total_epsilon=50.0))
    crowd(fed)
    rng, told = np.random.default_rng(8), [START]
    for _ in range(3):
        send(fed, rng)
        fed.force_aggregate()
        fed.advance_round()
        told.append(fed.get_meta_params()["clip_norm"])
    with sqlite3.connect(f"file:{fed.get_stats()['ledger_path']}?mode=ro", uri=True) as connection:
        records = [json.loads(record) for (record,) in connection.execute("SELECT record FROM ledger")]
    found = [r["body"]["details"]["clip_norm"] for r in records if "details" in r.get("body", {})]
    assert found == told[:-1]
    assert len(set(found)) == 3


def test_a_release_with_the_bit_costs_the_configured_mu_and_no_more(open_federation: Any) -> None:
    spent = {}
    for adaptive in (True, False):
        layer2 = {"central_dp_epsilon": 1.0, "adaptive_clipping": adaptive}
        fed = open_federation(settings(layer2=layer2, total_epsilon=50.0))
        crowd(fed)
        send(fed, np.random.default_rng(8))
        fed.force_aggregate()
        spent[adaptive] = fed.get_global_meta_model().privacy_spent, fed.get_global_meta_model().noise_sigma
    assert spent[True][0] == spent[False][0]
    assert spent[True][1] / spent[False][1] == pytest.approx((1 - 0.04) ** -0.5, rel=1e-4)


@pytest.mark.long
def test_the_sum_of_bits_has_the_noise_that_the_accounting_says(open_federation: Any) -> None:
    # All norms below C, a rate so small that C stays: what C's steps tell of the noise on the share.
    n = sum(SIZES.values())
    changes = {"central_dp_epsilon": 30.0, "clip_learning_rate": 1e-9, "clip_quantile": 0.5}
    fed = open_federation(settings(layer2=changes, total_epsilon=3000.0))
    crowd(fed)
    shares = []
    for _ in range(60):
        for domain, size in SIZES.items():
            rows = np.full((size, DIMENSION), 0.01)
            rows[: size // 2] *= 1e3
            assert all(fed.submit_updates([f"{domain}{i}" for i in range(size)], rows))
        before = fed.get_meta_params().get("clip_norm", START)
        fed.force_aggregate()
        shares.append(0.5 - math.log(fed.get_meta_params()["clip_norm"] / before) / 1e-9)
        fed.advance_round()
    true_share = sum(size - size // 2 for size in SIZES.values()) / n
    sigma = 5.0 / fed.plan.mu_release / n
    assert sigma < 0.1
    # Chi-square with 60 degrees at a false-alarm rate below 1e-6: within a factor 1.6 of sigma.
    spread = math.sqrt(float(np.mean((np.array(shares) - true_share) ** 2)))
    assert sigma / 1.6 < spread < 1.6 * sigma


def test_layer1_counts_bits_of_the_norms_that_it_is_told() -> None:
    rows = np.eye(4, dtype=np.float32)
    model = Layer1Aggregator().aggregate_basket(
        Layer1Input(rows, raw_norms=[0.5, 1.0, 1.0000001, 7.0], num_members=4)
    )
    assert model.bit == 0.0
    assert model.clip_norm == 1.0
    assert Layer1Aggregator().aggregate(rows).bit == 0.0


def test_a_coordinator_that_clips_at_another_norm_than_it_released_is_refused(open_federation: Any) -> None:
    fed = open_federation(settings())
    crowd(fed)
    rng = np.random.default_rng(8)
    send(fed, rng)
    assert fed.force_aggregate() is not None
    fed.advance_round()
    aggregator = fed._runtime.peers.roles["global"]
    honest = aggregator._last.model
    aggregator._last.model = replace(honest, clip_norm=2.0 * honest.clip_norm)
    send(fed, rng)
    assert fed.force_aggregate() is None
    assert fed.get_stats()["n_sessions_refused"] == len(SIZES)
