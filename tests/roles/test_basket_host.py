"""One basket's refusal in a session holds up no other of its actor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, Layer1Config, Layer2Config
from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.roles.basket_host import BasketHost
from scarcity_ray.roles.global_aggregator import GlobalAggregator
from scarcity_ray.roles.sessions import SessionTerms
from scarcity_ray.secagg import Advert


@pytest.mark.parametrize("masked", [True, False])
def test_a_stale_basket_is_left_out_and_its_neighbours_take_part(masked: bool) -> None:
    config = HierarchicalFederationConfig(
        vector_dim=4,
        auto_aggregate=False,
        layer1=Layer1Config(aggregation_method="mean"),
        layer2=Layer2Config(use_secure_aggregation=masked),
    )
    with HierarchicalFederation(config, runtime="local") as federation:
        clients = [(f"{domain}{i}", domain) for domain in "abc" for i in range(3)]
        federation.register_clients(clients)
        federation.submit_updates([client for client, _ in clients], np.ones((9, 4)))
        federation._session.run_layer1(None, force=True)
        host, aggregator = _roles(federation)
        places = sorted(federation._session.whereabouts().places, key=lambda place: place.basket_id)
        facts = {basket: report.facts for basket, report in host.reports(0.0).items()}
        stale = "b_basket_0"
        facts[stale] = replace(facts[stale], num_rows=2)
        release = federation.plan.release(list(facts.values()))
        terms: SessionTerms = aggregator._terms(places, release, facts, 0)
        opened: dict[str, Any] = (host.session_open if masked else host.session_plain)(terms, tuple(facts))
        assert isinstance(opened.pop(stale), ProtocolViolation)
        assert set(opened) == {"a_basket_0", "c_basket_0"}
        assert all(isinstance(answer, Advert if masked else tuple) for answer in opened.values())


def _roles(federation: HierarchicalFederation) -> tuple[BasketHost, GlobalAggregator]:
    roles = federation._runtime.peers.roles  # type: ignore[attr-defined]
    return roles["basket:0"], roles["global"]


def test_many_updates_carry_their_meta_parameters() -> None:
    config = HierarchicalFederationConfig(
        vector_dim=2,
        total_epsilon=float("inf"),
        layer1=Layer1Config(aggregation_method="mean"),
        layer2=Layer2Config(central_dp_epsilon=float("inf")),
        meta_parameters={"rate": (0.0, 1.0)},
    )
    with HierarchicalFederation(config, runtime="local") as federation:
        clients = [(f"{domain}{i}", domain) for domain in "ab" for i in range(3)]
        federation.register_clients(clients)
        receipts = federation.submit_updates(
            [client for client, _ in clients], np.ones((6, 2)), meta=[{"rate": 0.25}] * 6
        )
        assert all(receipts)
        assert federation.get_meta_params() == pytest.approx({"rate": 0.25}, abs=1e-5)
