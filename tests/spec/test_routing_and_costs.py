"""What both documents say of parts that work together: who is where, what it costs, whom a rule believes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.privacy.sampling.noise import SeededNoise

DIMENSION = 4
QUIET: dict[str, Any] = {
    "total_epsilon": math.inf,
    "gossip": {"local_dp_epsilon": math.inf, "peers_per_round": 9},
    "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
    "layer2": {"central_dp_epsilon": math.inf},
}
Open = Callable[[dict[str, Any]], HierarchicalFederation]


@pytest.fixture
def opened(tmp_path: Path, clock: Any) -> Iterator[Open]:
    """Open a federation on the local runtime that aggregates only when it is asked to."""
    federations: list[HierarchicalFederation] = []

    def open_one(settings: dict[str, Any]) -> HierarchicalFederation:
        given = {"vector_dim": DIMENSION, "auto_aggregate": False, **settings}
        config = load(HierarchicalFederationConfig, {"ledger_path": str(tmp_path / "ledger.sqlite"), **given})
        federations.append(HierarchicalFederation(config, runtime="local", clock=clock, noise=SeededNoise(7)))
        return federations[-1]

    yield open_one
    for federation in federations:
        federation.close()


def members(fed: HierarchicalFederation, domain: str, *values: float) -> None:
    """Register a client a value; each sends a vector of its value."""
    fed.register_clients([(f"{domain}{i}", domain) for i in range(len(values))])
    for i, value in enumerate(values):
        assert fed.submit_update(f"{domain}{i}", np.full(DIMENSION, value))


def test_a_submitted_update_marks_its_client_active(opened: Open, clock: Any) -> None:
    fed = opened(QUIET)
    fed.register_clients([("hospital", "healthcare"), ("clinic", "healthcare")])
    joined = clock.now
    clock.advance(100.0)
    assert fed.submit_update("hospital", np.full(DIMENSION, 0.1))
    sender, other = fed.get_client("hospital"), fed.get_client("clinic")
    assert sender is not None
    assert other is not None
    assert (sender.n_updates, sender.last_active) == (1, joined + 100.0)
    assert (other.n_updates, other.last_active) == (0, joined)


def test_gossip_and_layer_1_stay_within_a_basket(opened: Open) -> None:
    fed = opened({**QUIET, "basket": {"max_clients": 3}})
    members(fed, "a", 0.1, 0.1, 0.1, 0.4, 0.4, 0.4)
    assert fed.get_basket("a_basket_1").clients == {"a3", "a4", "a5"}  # type: ignore[union-attr]
    assert fed.run_gossip_round() == {"a": 12}  # each of six sends to its two fellows
    fed.force_aggregate()
    for basket, value in (("a_basket_0", 0.1), ("a_basket_1", 0.4)):
        np.testing.assert_allclose(fed.get_basket_model(basket), np.full(DIMENSION, value), atol=1e-6)


@pytest.mark.parametrize(("rule", "honest"), [("krum", 4), ("bulyan", 6)])
def test_layer_1_believes_no_liar(opened: Open, rule: str, honest: int) -> None:
    fed = opened(
        {
            **QUIET,
            "basket": {"min_clients": honest + 1},
            "layer1": {"aggregation_method": rule, "num_byzantine": 1},
        }
    )
    values = [0.1 + 0.01 * i for i in range(honest)]
    members(fed, "a", *values, -0.5)
    fed.force_aggregate()
    model = fed.get_basket_model("a")
    assert model is not None
    assert min(values) - 1e-6 <= float(model.min()) <= float(model.max()) <= max(values) + 1e-6


def test_a_gossip_message_costs_half_an_epsilon_whoever_receives_it(opened: Open) -> None:
    fed = opened({})
    members(fed, "a", *[0.4] * 20)
    assert fed.run_gossip_round()["a"] > 0
    cost = math.hypot(fed.plan.gossip.mu_drift, fed.plan.gossip.mu_vector)
    assert fed.plan.accounting.epsilon_of(cost, fed.config.gossip.local_dp_delta) == pytest.approx(0.5)
    # What was consumed is stated at the budget's own delta, for the client that spent most.
    consumed = fed.get_stats()["privacy_consumed_epsilon"]
    assert consumed == pytest.approx(fed.plan.accounting.epsilon_of(cost, fed.config.total_delta))
    assert 0.4 < consumed < 0.5
