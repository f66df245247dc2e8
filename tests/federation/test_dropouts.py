"""Baskets that go offline during secure aggregation: tolerated to the threshold, retried below it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation
from scarcity_ray.actors.global_aggregator import GlobalAggregator
from scarcity_ray.errors import ActorLost

DIMENSION = 4
BASKETS = 6
PHASES = ["advertise", "share_keys", "mask", "confirm", "unmask"]
CALLS = [*PHASES, "end_session"]


class LossyPeers:
    """Basket actors that hear nothing from a phase on, or whose answers in one phase are lost on the way.

    They hear of the session's end unless they are `deaf`.
    """

    def __init__(self, peers: Any) -> None:
        self.peers = peers
        self.silent: set[str] = set()
        self.phase = ""
        self.unheard = ""
        self.deaf = False

    def handle(self, name: str) -> Any:
        return _LossyHandle(self, name)


class _LossyHandle:
    def __init__(self, peers: LossyPeers, name: str) -> None:
        self.peers = peers
        self.name = name

    def call(self, method: str, *args: object) -> Any:
        peers = self.peers
        last = len(CALLS) if peers.deaf else len(PHASES)
        if self.name in peers.silent and peers.phase and method in CALLS[CALLS.index(peers.phase) : last]:
            return _Lost(self.name)
        future = peers.peers.handle(self.name).call(method, *args)
        return _Lost(self.name) if self.name in peers.silent and method == peers.unheard else future


class _Lost:
    def __init__(self, name: str) -> None:
        self.name = name

    def result(self) -> Any:
        raise ActorLost(self.name)


@pytest.fixture
def lossy(open_federation: Any) -> tuple[HierarchicalFederation, LossyPeers]:
    """Six baskets, each in an actor of its own; t = floor(2/3 * 6) + 1 = 5."""
    fed: HierarchicalFederation = open_federation(
        {
            "vector_dim": DIMENSION,
            "auto_aggregate": False,
            "gossip_budget_share": 0.0,
            "total_epsilon": 5.0,
            "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
            "runtime": {"baskets_per_actor": 1},
        }
    )
    fed.register_clients([(f"{b}_{i}", f"d{b}") for b in range(BASKETS) for i in range(3)])
    fill(fed)
    role = fed._runtime._peers.roles["global"]  # type: ignore[attr-defined]
    role._peers = LossyPeers(role._peers)
    return fed, role._peers


def fill(fed: HierarchicalFederation) -> None:
    for b in range(BASKETS):
        for i in range(3):
            assert fed.submit_update(f"{b}_{i}", np.full(DIMENSION, 0.1 * (b + 1)))


def fresh(fed: HierarchicalFederation) -> int:
    domains = fed.get_stats()["basket_stats"].values()
    return sum(basket["fresh"] for entry in domains for basket in entry["baskets"].values())


@pytest.mark.parametrize("phase", PHASES)
def test_one_dropout_of_six_is_tolerated_in_every_phase(phase: str, lossy: Any) -> None:
    fed, peers = lossy
    peers.silent, peers.phase = {"basket:5"}, phase
    model = fed.force_aggregate()
    counted = BASKETS if phase in ("confirm", "unmask") else BASKETS - 1
    meta = fed.get_global_meta_model()
    assert meta.n_baskets == counted
    expected = np.mean([min(0.1 * (b + 1), 0.5) for b in range(counted)])  # rows are clipped to norm 1
    assert np.abs(model - expected).max() < 6.0 * meta.noise_sigma
    # A dropout before the masked inputs were in keeps its aggregate for the next release.
    assert fresh(fed) == BASKETS - counted


@pytest.mark.parametrize("phase", PHASES[:4])
def test_below_the_threshold_it_aborts_without_charge_and_retries(phase: str, lossy: Any) -> None:
    fed, peers = lossy
    peers.silent, peers.phase = {"basket:4", "basket:5"}, phase
    assert fed.force_aggregate() is None
    stats = fed.get_stats()
    assert (stats["n_layer2_aborts"], stats["n_layer2_aggregations"]) == (1, 0)
    assert stats["last_layer2_aborts"]
    assert f"ended without a release: {stats['last_layer2_aborts'][-1]}" in str(fed.waiting_for())
    assert stats["privacy_consumed_epsilon"] == 0.0
    assert fresh(fed) == BASKETS
    fed.advance_round()
    peers.silent = set()
    assert fed.force_aggregate() is not None
    assert fed.get_global_meta_model().n_baskets == BASKETS
    assert fresh(fed) == 0
    assert "without a release" not in str(fed.waiting_for())


def test_too_many_dropouts_while_unmasking_cost_the_charge_and_the_aggregates(lossy: Any) -> None:
    fed, peers = lossy
    peers.silent, peers.phase = {"basket:4", "basket:5"}, "unmask"
    assert fed.force_aggregate() is None
    stats = fed.get_stats()
    assert (stats["n_layer2_aborts"], stats["n_layer2_aggregations"]) == (1, 0)
    assert stats["privacy_consumed_epsilon"] > 0.0
    assert "without a release" in str(fed.waiting_for())
    assert fresh(fed) == 0
    assert fed.get_global_model() is None


@pytest.mark.parametrize("phase", ["confirm", "unmask"])
def test_an_aggregate_that_may_be_in_a_release_is_not_used_again_without_word(phase: str, lossy: Any) -> None:
    """Its actor hears nothing after it has handed in its masked aggregate, the session's end included."""
    fed, peers = lossy
    peers.silent, peers.phase, peers.deaf = {"basket:5"}, phase, True
    assert fed.force_aggregate() is not None
    assert fed.get_global_meta_model().n_baskets == BASKETS
    peers.silent = set()
    assert fresh(fed) == 0
    assert fed.force_aggregate() is None


@pytest.mark.parametrize("phase", ["_gather_facts", "_pin_facts", "_agree"])
def test_what_died_with_a_basket_before_or_in_a_session_is_named(
    lossy: Any, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Also where the release goes on without it."""
    fed, _ = lossy
    honest = getattr(GlobalAggregator, phase)

    def dies(self: GlobalAggregator, *args: Any) -> Any:
        fed._runtime.kill("basket:5")
        return honest(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(GlobalAggregator, phase, dies)
        assert fed.force_aggregate() is not None
    assert fed.get_global_meta_model().n_baskets == BASKETS - 1
    assert fed.lost_updates == tuple((f"5_{i}", 0) for i in range(3))


def test_an_aggregate_whose_masked_form_was_lost_in_a_session_that_was_charged_is_used_again(
    lossy: Any,
) -> None:
    """It is not in the sum: for that its basket believes the charge, which names it."""
    fed, peers = lossy
    peers.silent, peers.unheard = {"basket:5"}, "mask"
    assert fed.force_aggregate() is not None
    assert fed.get_global_meta_model().n_baskets == BASKETS - 1
    peers.silent = set()
    assert fresh(fed) == 1
    fed.advance_round()
    for b in range(BASKETS - 1):
        for i in range(3):
            assert fed.submit_update(f"{b}_{i}", np.full(DIMENSION, 0.3))
    assert fed.force_aggregate() is not None
    assert fed.get_global_meta_model().n_baskets == BASKETS
    assert fresh(fed) == 0


def test_an_aggregate_whose_masked_form_was_lost_in_a_session_that_was_given_up_is_used_again(
    lossy: Any,
) -> None:
    fed, peers = lossy
    peers.silent, peers.unheard = {"basket:4", "basket:5"}, "mask"
    assert fed.force_aggregate() is None
    assert fresh(fed) == BASKETS
    peers.silent = set()
    assert fed.force_aggregate() is not None
    assert fed.get_global_meta_model().n_baskets == BASKETS


def test_fresh_baskets_below_min_baskets_release_nothing_though_the_threshold_holds(
    lossy: tuple[HierarchicalFederation, LossyPeers],
) -> None:
    fed, peers = lossy
    assert fed.force_aggregate() is not None
    fed.advance_round()
    for b in (3, 4, 5):
        for i in range(3):
            assert fed.submit_update(f"{b}_{i}", np.full(DIMENSION, 0.3))
    spent = fed.get_stats()["privacy_consumed_epsilon"]
    peers.silent, peers.phase = {"basket:5"}, "share_keys"
    assert fed.force_aggregate() is None
    stats = fed.get_stats()
    assert (stats["n_layer2_aggregations"], stats["n_layer2_aborts"]) == (1, 1)
    assert "2 fresh" in stats["last_layer2_aborts"][0]
    assert stats["privacy_consumed_epsilon"] == spent
    peers.silent = set()
    assert fed.force_aggregate() is not None
    assert fed.get_global_meta_model().n_baskets == 3
