"""Promises about federations, one by one, on both runtimes (docs/specification.md#the-federation).

The promises of one workflow look at one federation's story, told once a runtime.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from scarcity_ray import (
    BasketConfig,
    BufferConfig,
    GossipConfig,
    HierarchicalFederation,
    HierarchicalFederationConfig,
    IdentityKeyPair,
    Layer1Config,
    Layer2Config,
)

DIMENSION = 16
STATS_KEYS = {
    "n_clients",
    "n_baskets",
    "n_updates_buffered",
    "n_layer1_aggregations",
    "n_layer2_aggregations",
    "privacy_consumed_epsilon",
    "current_round",
    "basket_stats",
}


def update_of(client: int, round_id: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng([client, round_id])
    return np.full(DIMENSION, 0.2) + 0.02 * rng.normal(size=DIMENSION)


@dataclass
class Story:
    """What a federation said, in the order in which it was asked."""

    fed: HierarchicalFederation
    seen: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def automatic(open_federation: Any) -> Story:
    """Two domains of five clients under default settings; every trigger acts by itself."""
    fed = open_federation({"vector_dim": DIMENSION})
    seen: dict[str, Any] = {
        "model at first": fed.get_global_model(),
        "maybe at first": fed.maybe_aggregate(),
        "meta at first": fed.get_meta_params(),
        "budget at first": fed.get_privacy_budget(),
        "stats at first": fed.get_stats(),
    }
    keypair = IdentityKeyPair.generate()
    seen["baskets"] = [
        fed.register_client(client_id="hospital_0", domain_id="healthcare", identity_keypair=keypair),
        *(
            fed.register_client(f"hospital_{i}", "healthcare", features=np.array([i, 1.0]))
            for i in range(1, 5)
        ),
        *(fed.register_client(f"bank_{i}", "finance") for i in range(5)),
    ]
    seen["healthcare model at first"] = fed.get_basket_model("healthcare")
    seen["accepted"] = [
        fed.submit_update(client_id=f"hospital_{i}", update=update_of(i), round_id=0) for i in range(4)
    ]
    seen["model with four of five"] = fed.get_basket_model("healthcare")
    seen["stats with four of five"] = fed.get_stats()
    seen["replay"] = fed.submit_update("hospital_1", update_of(1), round_id=0)
    seen["fifth"] = fed.submit_update("hospital_4", update_of(4))
    seen["model before gossip"] = fed.get_basket_model("healthcare_basket_0")
    seen["budget before gossip"] = fed.get_privacy_budget()
    seen["gossip"] = fed.run_gossip_round()
    seen["budget after gossip"] = fed.get_privacy_budget()
    seen["model with all five"] = fed.get_basket_model("healthcare_basket_0")
    seen["stats after layer 1"] = fed.get_stats()
    seen["global after one basket"] = fed.get_global_model()
    for i in range(5):
        fed.submit_update(f"bank_{i}", update_of(10 + i))
    seen["global before the banks' gossip"] = fed.get_global_model()
    fed.run_gossip_round()
    seen["global after both"] = fed.get_global_model()
    seen["budget after layer 2"] = fed.get_privacy_budget()
    seen["given"] = fed.maybe_aggregate()
    seen["given again"] = fed.maybe_aggregate()
    seen["meta model"] = fed.get_global_meta_model()
    seen["stats after layer 2"] = fed.get_stats()
    seen["next round"] = fed.advance_round()
    seen["stats in round 1"] = fed.get_stats()
    return Story(fed, seen)


@pytest.fixture(scope="module")
def silent(open_federation: Any) -> HierarchicalFederation:
    """Two domains of five clients, without gossip."""
    fed: HierarchicalFederation = open_federation({"vector_dim": DIMENSION, "gossip_budget_share": 0.0})
    for i in range(10):
        fed.register_client(f"client_{i}", "healthcare" if i < 5 else "finance")
    return fed


@pytest.fixture(scope="module")
def manual(open_federation: Any, clock: Any) -> Story:
    """No automatic aggregation, no noise, plain means: triggers by count, time and staleness, and force."""
    fed = open_federation(
        {
            "vector_dim": DIMENSION,
            "auto_aggregate": False,
            "total_epsilon": math.inf,
            "gossip": {"local_dp_epsilon": math.inf, "peers_per_round": 2},
            "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
            # Two of three fresh baskets release where none is assumed to collude with the aggregator.
            "layer2": {"central_dp_epsilon": math.inf, "assumed_corrupt_fraction": 0.0},
        }
    )
    seen: dict[str, Any] = {}
    for domain, size in (("a", 4), ("b", 4), ("c", 4), ("pair", 2), ("single", 1)):
        for i in range(size):
            fed.register_client(f"{domain}{i}", domain)

    def submit(domain: str, *indices: int) -> None:
        for i in indices:
            assert fed.submit_update(f"{domain}{i}", update_of(i, ord(domain[0])))

    def layer1() -> int:
        fed.maybe_aggregate()
        return int(fed.get_stats()["n_layer1_aggregations"])

    submit("a", 0, 1, 2, 3)
    seen["without auto_aggregate"] = fed.get_stats()["n_layer1_aggregations"]
    seen["all members"] = layer1()
    submit("b", 0, 1, 2)
    seen["three of four"] = layer1()
    clock.advance(61.0)
    seen["three of four and a minute"] = layer1()
    seen["global with two of three"] = fed.get_global_model()
    submit("c", 0, 1, 2)
    submit("pair", 0, 1)
    submit("single", 0)
    seen["waiting"] = fed.get_stats()
    seen["gossip"] = fed.run_gossip_round()
    for _ in range(5):
        fed.advance_round()
    seen["five rounds later"] = layer1()
    seen["stats late"] = fed.get_stats()
    seen["forced with too few"] = fed.force_aggregate()
    submit_round = fed.get_stats()["current_round"]
    for domain in ("a", "b"):
        for i in range(3):
            fed.submit_update(f"{domain}{i}", update_of(i, 77), round_id=submit_round)
    seen["maybe with three of four"] = fed.maybe_aggregate()
    seen["forced"] = fed.force_aggregate()
    seen["forced again"] = fed.force_aggregate()
    seen["withdrawn before"] = fed.get_stats()["n_updates_withdrawn"]
    seen["removed"] = fed.unregister_client("pair0")
    seen["removed again"] = fed.unregister_client("pair0")
    seen["stats at the end"] = fed.get_stats()
    return Story(fed, seen)


@pytest.fixture(scope="module")
def spent(open_federation: Any) -> Story:
    """A budget of one release."""
    fed = open_federation(
        {
            "vector_dim": DIMENSION,
            "total_epsilon": 1.2,
            "total_delta": 1e-5,
            "gossip": {"local_dp_epsilon": 0.3},
            "gossip_budget_share": 0.1,
        }
    )
    for i in range(10):
        fed.register_client(f"c{i}", "a" if i < 5 else "b")
    for i in range(10):
        fed.submit_update(f"c{i}", update_of(i))
    seen = {
        "model": fed.maybe_aggregate(),
        "budget": fed.get_privacy_budget(),
        "gossip": fed.run_gossip_round(),
        "accepted": fed.submit_update("c0", update_of(0, 1)),
        "maybe": fed.maybe_aggregate(),
        "forced": fed.force_aggregate(),
        "kept": fed.get_global_model(),
        "stats": fed.get_stats(),
    }
    fed.renew_budget(1.2, 1e-5, operator="the board")
    fed.advance_round()
    seen["budget renewed"] = fed.get_privacy_budget()
    seen["accepted renewed"] = [fed.submit_update(f"c{i}", update_of(i, 1)) for i in range(10)]
    seen["model renewed"] = fed.maybe_aggregate()
    seen["stats renewed"] = fed.get_stats()
    return Story(fed, seen)


def test_config_has_the_fields_and_defaults() -> None:
    config = HierarchicalFederationConfig()
    for name, kind in {
        "basket": BasketConfig,
        "gossip": GossipConfig,
        "buffer": BufferConfig,
        "layer1": Layer1Config,
        "layer2": Layer2Config,
    }.items():
        assert getattr(config, name) == kind()
    assert dataclasses.is_dataclass(config)
    assert (config.total_epsilon, config.total_delta) == (10.0, 1e-4)
    assert (config.auto_aggregate, config.vector_dim) == (True, 64)


def test_federation_is_made_from_a_config(automatic: Story) -> None:
    assert automatic.fed.config.vector_dim == DIMENSION


def test_register_client_assigns_the_basket_of_its_domain(automatic: Story) -> None:
    assert automatic.seen["baskets"] == ["healthcare_basket_0"] * 5 + ["finance_basket_0"] * 5


def test_register_client_takes_features(automatic: Story) -> None:
    info = automatic.fed.get_client("hospital_3")
    assert info is not None
    assert info.features is not None
    np.testing.assert_array_equal(info.features, [3.0, 1.0])


def test_register_client_takes_an_identity_keypair(automatic: Story) -> None:
    assert automatic.seen["accepted"][0] is True


def test_unregister_client_tells_whether_it_was_found(manual: Story) -> None:
    assert manual.seen["removed"] is True
    assert manual.seen["removed again"] is False
    assert manual.fed.unregister_client("nobody") is False


def test_advance_round_moves_to_the_next_round(automatic: Story) -> None:
    assert automatic.seen["next round"] == 1
    assert automatic.seen["stats in round 1"]["current_round"] == 1


def test_submit_update_returns_success(automatic: Story) -> None:
    assert automatic.seen["accepted"] == [True] * 4
    assert automatic.seen["fifth"] is True


def test_submit_update_refuses_a_replay(automatic: Story) -> None:
    assert automatic.seen["replay"] is False
    assert automatic.seen["stats after layer 1"]["rejections"] == {"replayed": 1}


def test_submit_update_refuses_beyond_the_participation_cap(manual: Story) -> None:
    round_id = manual.fed.get_stats()["current_round"]
    accepted = [manual.fed.submit_update("single0", update_of(k, 900), round_id=round_id) for k in range(4)]
    assert accepted == [True, True, True, False]


def test_submit_update_stores_in_the_buffer(automatic: Story) -> None:
    stats = automatic.seen["stats with four of five"]
    assert stats["n_updates_buffered"] == 4
    assert stats["basket_stats"]["healthcare"]["updates"] == 4


def test_a_submission_fires_its_trigger_once_the_round_has_gossiped(automatic: Story) -> None:
    """DESIGN section 3: aggregated at the submission itself, gossip would change no model."""
    assert automatic.seen["model with four of five"] is None
    assert automatic.seen["model before gossip"] is None
    assert automatic.seen["model with all five"] is not None
    assert automatic.seen["global after one basket"] is None
    assert automatic.seen["global before the banks' gossip"] is None
    assert automatic.seen["global after both"] is not None


def test_submit_update_runs_what_its_trigger_fires(silent: HierarchicalFederation) -> None:
    for i in range(10):
        assert silent.get_global_model() is None
        assert silent.submit_update(f"client_{i}", update_of(i))
    assert silent.get_global_model() is not None


def test_without_auto_aggregate_nothing_runs_by_itself(manual: Story) -> None:
    assert manual.seen["without auto_aggregate"] == 0


def test_gossip_round_returns_messages_exchanged_by_domain(manual: Story) -> None:
    # Two peers each. The fourth members of b and c have no state: they send nothing, and what is sent to
    # them, by two of the others, waits.
    assert manual.seen["gossip"] == {"a": 8, "b": 4, "c": 4, "pair": 2, "single": 0}


def test_gossip_works_with_default_settings(automatic: Story) -> None:
    counts = automatic.seen["gossip"]
    assert set(counts) == {"healthcare", "finance"}
    assert all(isinstance(count, int) and 0 <= count <= 5 * 5 for count in counts.values())
    assert counts["finance"] == 0


def test_gossip_moves_local_states(manual: Story) -> None:
    # Basket c was aggregated after gossip among its three senders; the mean of what they then held
    # differs from the mean of what they sent, weighted by age.
    plain = np.mean([update_of(i, ord("c")) for i in range(3)], axis=0)
    clipped = plain / max(1.0, float(np.linalg.norm(plain)))
    model = manual.fed.get_basket_model("c")
    assert model is not None
    assert np.linalg.norm(model) <= 1.0 + 1e-6
    assert float(model @ clipped) > 0.0


def test_maybe_aggregate_gives_none_before_any_trigger(automatic: Story) -> None:
    assert automatic.seen["maybe at first"] is None


def test_maybe_aggregate_gives_the_new_global_model_once(automatic: Story) -> None:
    np.testing.assert_array_equal(automatic.seen["given"], automatic.seen["global after both"])
    assert automatic.seen["given again"] is None


def test_layer1_is_due_when_the_clients_have_submitted(manual: Story) -> None:
    assert manual.seen["all members"] == 1


def test_layer1_is_due_after_the_time_threshold(manual: Story) -> None:
    assert manual.seen["three of four"] == 1
    assert manual.seen["three of four and a minute"] == 2


def test_layer1_is_due_when_the_buffer_is_stale(manual: Story) -> None:
    assert manual.seen["five rounds later"] == 3


def test_layer2_waits_for_fresh_baskets_and_the_interval(manual: Story) -> None:
    assert manual.seen["global with two of three"] is not None
    assert manual.seen["forced with too few"] is None


def test_force_aggregate_ignores_triggers(manual: Story) -> None:
    assert manual.seen["maybe with three of four"] is None
    assert manual.seen["forced"] is not None
    assert manual.seen["forced again"] is None


def test_get_global_model_is_none_before_any_aggregation(automatic: Story) -> None:
    assert automatic.seen["model at first"] is None


def test_get_global_model_is_the_last_layer2_aggregate(automatic: Story) -> None:
    model = automatic.fed.get_global_model()
    assert model is not None
    assert (model.shape, model.dtype) == ((DIMENSION,), np.float32)
    np.testing.assert_array_equal(model, automatic.seen["meta model"].aggregate)


def test_get_basket_model_is_none_and_then_the_basket_aggregate(automatic: Story) -> None:
    assert automatic.seen["healthcare model at first"] is None
    model = automatic.seen["model with all five"]
    assert (model.shape, model.dtype) == ((DIMENSION,), np.float32)
    # Krum gives one of the rows.
    rows = [np.asarray(update_of(i), np.float32) for i in range(5)]
    assert min(float(np.abs(row - model).max()) for row in rows) < 1e-6


def test_get_meta_params_is_a_dict(automatic: Story) -> None:
    assert automatic.seen["meta at first"] == {}
    assert automatic.fed.get_meta_params() == {}


def test_get_privacy_budget_begins_with_the_whole(automatic: Story) -> None:
    assert automatic.seen["budget at first"] == (10.0, 1e-4)


def test_gossip_consumes_budget(automatic: Story) -> None:
    before, after = automatic.seen["budget before gossip"], automatic.seen["budget after gossip"]
    assert after[0] < before[0]
    assert after[1] <= before[1]


def test_layer2_consumes_about_its_epsilon(automatic: Story) -> None:
    before, after = automatic.seen["budget after gossip"], automatic.seen["budget after layer 2"]
    assert 0.5 < before[0] - after[0] <= 1.0
    assert after[1] <= before[1]


def test_get_stats_has_the_documents_keys(automatic: Story) -> None:
    for name, stats in automatic.seen.items():
        if name.startswith("stats"):
            assert set(stats) >= STATS_KEYS


def test_get_stats_counts(automatic: Story) -> None:
    stats = automatic.seen["stats after layer 2"]
    expected = {
        "n_clients": 10,
        "n_baskets": 2,
        "n_updates_buffered": 0,
        "n_layer1_aggregations": 2,
        "n_layer2_aggregations": 1,
        "current_round": 0,
    }
    assert {key: stats[key] for key in expected} == expected
    spent_epsilon = 10.0 - automatic.seen["budget after layer 2"][0]
    assert stats["privacy_consumed_epsilon"] == pytest.approx(spent_epsilon)
    assert automatic.seen["stats at first"]["privacy_consumed_epsilon"] == 0.0


def test_basket_stats_are_keyed_by_domain(automatic: Story) -> None:
    stats = automatic.seen["stats with four of five"]["basket_stats"]
    assert {domain: (entry["clients"], entry["updates"]) for domain, entry in stats.items()} == {
        "healthcare": (5, 4),
        "finance": (5, 0),
    }


def test_layer1_clears_processed_updates(automatic: Story) -> None:
    assert automatic.seen["stats after layer 1"]["n_updates_buffered"] == 0


def test_layer2_makes_a_global_meta_model(automatic: Story) -> None:
    meta = automatic.seen["meta model"]
    assert (meta.n_baskets, meta.n_clients_total, meta.round_id) == (2, 10, 0)
    assert meta.noise_sigma > 0.0
    assert 0.0 < meta.privacy_spent <= 10.0


def test_not_enough_clients_still_gossip(manual: Story) -> None:
    assert manual.seen["gossip"]["pair"] == 2
    assert manual.seen["gossip"]["single"] == 0


def test_not_enough_clients_make_layer1_wait_and_updates_stay(manual: Story) -> None:
    waiting, late = manual.seen["waiting"]["basket_stats"], manual.seen["stats late"]["basket_stats"]
    assert (waiting["pair"]["updates"], waiting["single"]["updates"]) == (2, 1)
    assert (late["pair"]["updates"], late["single"]["updates"]) == (2, 1)
    assert manual.fed.get_basket_model("pair") is None


def test_a_leaving_clients_updates_are_withdrawn_and_counted(manual: Story) -> None:
    assert manual.seen["withdrawn before"] == 0
    assert manual.seen["stats at the end"]["n_updates_withdrawn"] == 1
    assert manual.seen["stats at the end"]["basket_stats"]["pair"]["updates"] == 1


def test_a_spent_budget_reads_zero(spent: Story) -> None:
    assert spent.seen["model"] is not None
    assert spent.seen["budget"] == (0.0, 0.0)


def test_a_spent_budget_blocks_gossip(spent: Story) -> None:
    assert spent.seen["gossip"] == {"a": 0, "b": 0}


def test_a_spent_budget_blocks_aggregation(spent: Story) -> None:
    assert spent.seen["maybe"] is None
    assert spent.seen["forced"] is None


def test_a_spent_budget_makes_the_federation_read_only(spent: Story) -> None:
    assert spent.seen["accepted"] is False
    assert spent.seen["stats"]["read_only"] is True
    np.testing.assert_array_equal(spent.seen["kept"], spent.seen["model"])


def test_a_renewed_budget_ends_read_only(spent: Story) -> None:
    assert spent.seen["budget renewed"] == (1.2, 1e-5)
    assert all(spent.seen["accepted renewed"])
    assert spent.seen["model renewed"] is not None
    assert spent.seen["stats renewed"]["n_layer2_aggregations"] == 2


def test_the_lifetime_epsilon_outlives_a_renewal(spent: Story) -> None:
    once, twice = spent.seen["stats"], spent.seen["stats renewed"]
    assert once["privacy_lifetime_epsilon"] == once["privacy_consumed_epsilon"]
    assert twice["privacy_lifetime_epsilon"] > twice["privacy_consumed_epsilon"] > 0.0
