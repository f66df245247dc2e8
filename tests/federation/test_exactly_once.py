"""An accepted update is in exactly one Layer 1 aggregate, unless its client leaves first."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

DIMENSION = 400
STEPS = 120


@pytest.mark.long
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 20))]
)
def test_an_accepted_update_is_in_exactly_one_aggregate(seed: int, open_federation: Any, clock: Any) -> None:
    """Every update has a coordinate of its own, so that a mean shows which updates are in it."""
    fed = open_federation(
        {
            "vector_dim": DIMENSION,
            "total_epsilon": math.inf,
            "gossip_budget_share": 0.0 if seed % 4 < 2 else 0.3,
            "gossip": {"local_dp_epsilon": 0.5},
            "auto_aggregate": seed % 2 == 0,
            "basket": {"min_clients": 2, "max_clients": 8},
            "buffer": {"max_staleness": 2, "participation_cap": 2, "time_trigger_seconds": 20.0},
            "layer1": {
                "aggregation_method": "mean",
                "byzantine_fraction": 0.0,
                "min_updates": 2,
                "clip_norm": 1e6,
            },
            "layer2": {"central_dp_epsilon": math.inf, "clip_norm": 1e6},
        }
    )
    rng = np.random.default_rng(seed)
    members = [f"c{i}" for i in range(9)]
    fed.register_clients([(client, "a" if i % 3 else "b") for i, client in enumerate(members)])
    sender: dict[int, str] = {}
    waiting: dict[str, set[int]] = {client: set() for client in members}
    left: set[int] = set()
    found: dict[int, int] = {}
    read: set[tuple[str, float]] = set()
    attempts = current_round = 0

    def baskets() -> list[str]:
        return [b for entry in fed.get_stats()["basket_stats"].values() for b in entry["baskets"]]

    def read_new_models() -> None:
        for basket in baskets():
            model = fed.get_basket_meta_model(basket)
            if model is None or (basket, model.timestamp) in read:
                continue
            read.add((basket, model.timestamp))
            inside = np.flatnonzero(model.aggregate).tolist()
            assert len({sender[update] for update in inside}) == model.n_contributors
            for update in inside:
                found[update] = found.get(update, 0) + 1
                waiting[sender[update]].discard(update)

    for _ in range(STEPS):
        clock.advance(float(rng.uniform(0.5, 4.0)))
        action = rng.choice(
            ["send"] * 12 + ["round", "maybe", "force", "leave", "join", "split", "disband", "gossip"]
        )
        if action == "send":
            client = str(rng.choice(members))
            vector = np.zeros(DIMENSION)
            vector[attempts] = 1.0
            sender[attempts] = client
            round_id = current_round - int(rng.integers(0, 4))
            if fed.submit_update(client, vector, round_id):
                waiting[client].add(attempts)
            attempts += 1
        elif action == "round":
            current_round = fed.advance_round()
        elif action == "maybe":
            fed.maybe_aggregate()
        elif action == "gossip":
            fed.run_gossip_round()
        elif action == "force":
            fed.force_aggregate()
        elif action == "leave":
            client = str(rng.choice(members))
            if fed.unregister_client(client):
                left |= waiting[client]
                waiting[client] = set()
        elif action == "join":
            client = str(rng.choice(members))
            if fed.get_client(client) is None:
                fed.register_client(client, "a" if members.index(client) % 3 else "b")
        elif action == "split":
            basket = str(rng.choice(baskets()))
            info = fed.get_basket(basket)
            if info is not None and len(info.clients) >= 2:
                fed.split_basket(basket)
        else:
            fed.disband_basket(str(rng.choice(baskets())))
        read_new_models()

    stats = fed.get_stats()
    assert found
    assert set(found.values()) == {1}
    assert stats["n_updates_buffered"] == sum(map(len, waiting.values()))
    assert stats["n_updates_withdrawn"] == len(left)
    assert stats["n_layer1_aggregations"] == len(read)
    accepted = len(found) + len(left) + stats["n_updates_buffered"]
    assert accepted == attempts - stats["n_updates_rejected"]
