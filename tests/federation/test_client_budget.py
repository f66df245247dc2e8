"""One client's own budget: less all releases and its own gossip, and nobody else's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from scarcity_ray import HierarchicalFederation, UsageError
from scarcity_ray.privacy import Ledger
from scarcity_ray.privacy.ledger.replay import export

DIMENSION = 5
CLIENTS = [f"c{i}" for i in range(10)]
SETTINGS = {"vector_dim": DIMENSION, "total_epsilon": 8.0, "runtime": {"baskets_per_actor": 9}}


def play(fed: HierarchicalFederation, value: float, gossip: bool = True) -> None:
    for i, client in enumerate(CLIENTS):
        fed.submit_update(client, np.full(DIMENSION, value + 0.001 * i))
    if gossip:
        fed.run_gossip_round()
    fed.force_aggregate()
    fed.advance_round()


def delta_at(epsilon: float, mu: float) -> float:
    """Dong, Roth and Su (2022), corollary 2.13."""
    high, low = norm.cdf(-epsilon / mu + mu / 2), norm.cdf(-epsilon / mu - mu / 2)
    return float(high - math.exp(epsilon) * low)


def test_a_clients_budget_is_less_all_releases_and_its_own_gossip(open_federation: Any, runtime: str) -> None:
    fed = open_federation(SETTINGS, runtime=runtime)
    fed.register_clients([(client, "a" if i < 5 else "b") for i, client in enumerate(CLIENTS)])
    whole = (fed.config.total_epsilon, fed.config.total_delta)
    assert fed.get_privacy_budget("c0") == fed.get_privacy_budget() == whole
    play(fed, 0.1, gossip=False)
    assert fed.get_privacy_budget("c0") == fed.get_privacy_budget() < whole
    for k in range(3):
        play(fed, 0.2 + 0.1 * k)
    fed.register_client("late", "a")
    squares = dict.fromkeys([*CLIENTS, "late"], 0.0)
    for line in export(Ledger.read(fed.config.ledger_path)):
        for client in {"release": list(squares), "gossip": line.get("clients", [])}.get(line["kind"], []):
            squares[client] += line["body"]["mu"] ** 2
    assert len(set(squares.values())) > 2
    own = {client: fed.get_privacy_budget(client) for client in squares}
    for client, (epsilon, delta) in own.items():
        mu = math.sqrt(squares[client])
        assert delta_at(whole[0] - epsilon, mu) == pytest.approx(whole[1], rel=1e-6)
        assert whole[1] - delta == pytest.approx(delta_at(whole[0], mu), rel=1e-6)
    assert fed.get_privacy_budget() == min(own.values())
    assert own["late"] == max(own.values()) > fed.get_privacy_budget()
    assert fed.get_stats()["privacy_consumed_epsilon"] == pytest.approx(whole[0] - min(own.values())[0])
    worst = min(own, key=lambda client: own[client])
    assert fed.unregister_client(worst)
    assert fed.get_privacy_budget(worst) == own[worst] == fed.get_privacy_budget()


def test_a_client_that_nobody_knows_has_no_budget(open_federation: Any) -> None:
    fed = open_federation(SETTINGS)
    fed.register_client("c0", "a")
    for stranger in ("c1", "", 7, ["c0"]):
        with pytest.raises(UsageError, match="neither is registered nor was ever charged"):
            fed.get_privacy_budget(stranger)
    fed.close()
    with pytest.raises(UsageError, match="closed"):
        fed.get_privacy_budget("c0")


def test_once_spent_it_is_nothing_for_each_client(open_federation: Any) -> None:
    fed = open_federation({**SETTINGS, "total_epsilon": 1.5})
    fed.register_clients([(client, "a" if i < 5 else "b") for i, client in enumerate(CLIENTS)])
    for k in range(40):
        play(fed, 0.1 + 0.01 * k)
    assert fed.get_stats()["read_only"] is True
    assert {fed.get_privacy_budget(client) for client in (*CLIENTS, None)} == {(0.0, 0.0)}
    fed.renew_budget(1.5, 1e-5, operator="the board")
    assert {fed.get_privacy_budget(client) for client in (*CLIENTS, None)} == {(1.5, 1e-5)}


def test_without_a_finite_claim_it_is_infinite(open_federation: Any) -> None:
    fed = open_federation({"vector_dim": DIMENSION, "total_epsilon": math.inf})
    fed.register_clients([(client, "a" if i < 5 else "b") for i, client in enumerate(CLIENTS)])
    play(fed, 0.1)
    assert fed.get_privacy_budget("c0")[0] == math.inf
