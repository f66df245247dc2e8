"""Above 64 baskets the masks follow a sparse graph, and the sum is the same."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, Layer1Config, Layer2Config
from scarcity_ray.config import BasketConfig


@pytest.mark.long
def test_a_hundred_baskets_release_the_mean_over_a_sparse_graph() -> None:
    config = HierarchicalFederationConfig(
        vector_dim=8,
        total_epsilon=math.inf,
        auto_aggregate=False,
        basket=BasketConfig(min_clients=3, max_clients=3),
        layer1=Layer1Config(aggregation_method="mean"),
        layer2=Layer2Config(
            central_dp_epsilon=math.inf, assumed_corrupt_fraction=0.02, assumed_dropout_fraction=0.02
        ),
    )
    with HierarchicalFederation(config, runtime="local") as federation:
        clients = [f"c{i}" for i in range(300)]
        federation.register_clients([(client, "domain") for client in clients])
        matrix = 0.1 * np.random.default_rng(0).normal(size=(300, 8))
        assert all(federation.submit_updates(clients, matrix))
        degrees = []
        aggregator = federation._runtime.peers.roles["global"]  # type: ignore[attr-defined]
        terms_of = aggregator._terms
        aggregator._terms = lambda *args: degrees.append(terms_of(*args)) or degrees[-1]
        model = federation.force_aggregate()
        assert degrees[0].context.degree < 99
        np.testing.assert_allclose(model, matrix.mean(axis=0), rtol=0, atol=1e-4)
