"""A spent budget blocks, a strict one raises, and the ledger goes on where it stopped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import (
    HierarchicalFederation,
    LedgerError,
    PrivacyBudgetExhausted,
    Rejection,
    UsageError,
)

DIMENSION = 5


def settings(**more: Any) -> dict[str, Any]:
    """A budget of exactly two releases, and no gossip."""
    return {
        "vector_dim": DIMENSION,
        "total_epsilon": 2.0,
        "total_delta": 1e-4,
        "gossip_budget_share": 0.0,
        "layer2": {"central_dp_epsilon": 1.0, "central_dp_delta": 1e-5},
        "runtime": {"baskets_per_actor": 9},
        **more,
    }


def play(fed: HierarchicalFederation, value: float) -> np.ndarray[Any, Any] | None:
    """One round in which everybody sends; the new model."""
    clients = [f"c{i}" for i in range(10)]
    fed.register_clients([(client, "a" if i < 5 else "b") for i, client in enumerate(clients)])
    fed.submit_updates(clients, [np.full(DIMENSION, value + 0.001 * i) for i in range(10)])
    model = fed.maybe_aggregate()
    fed.advance_round()
    return model


def releases(fed: HierarchicalFederation) -> int:
    count = 0
    while count < 50 and play(fed, 0.1 + 0.01 * count) is not None:
        count += 1
    return count


def test_as_many_releases_as_planned_and_then_read_only(open_federation: Any) -> None:
    fed = open_federation(settings())
    before = fed.get_privacy_budget()
    count = releases(fed)
    assert count == fed.plan.num_releases >= 2
    assert before == (2.0, 1e-4)
    assert fed.get_privacy_budget() == (0.0, 0.0)
    assert fed.run_gossip_round() == {"a": 0, "b": 0}
    assert fed.offer_update("c0", np.zeros(DIMENSION)).reason is Rejection.READ_ONLY
    assert fed.maybe_aggregate() is None
    assert fed.force_aggregate() is None
    stats = fed.get_stats()
    assert stats["read_only"] is True
    assert 1.0 < stats["privacy_consumed_epsilon"] <= 2.0
    fed.renew_budget(2.0, 1e-4, operator="the board")
    assert fed.get_privacy_budget() == (2.0, 1e-4)
    assert releases(fed) == count
    after = fed.get_stats()
    assert after["privacy_lifetime_epsilon"] > stats["privacy_lifetime_epsilon"]
    assert after["privacy_lifetime_epsilon"] > 2.0 >= after["privacy_consumed_epsilon"]


def test_a_strict_federation_raises_once_spent(open_federation: Any) -> None:
    fed = open_federation(settings(strict=True))
    for i in range(10):
        fed.register_client(f"c{i}", "a" if i < 5 else "b")
    planned = int(fed.plan.num_releases)
    for round_id in range(planned):
        for i in range(10):
            fed.submit_update(f"c{i}", np.full(DIMENSION, 0.1 + 0.01 * round_id + 0.001 * i))
        if round_id < planned - 1:
            assert fed.maybe_aggregate() is not None
        fed.advance_round()
    # The last release, made automatically, spent the rest; this driver is still given it.
    assert fed.maybe_aggregate() is not None
    assert fed.get_privacy_budget() == (0.0, 0.0)
    for call in (
        lambda: fed.submit_update("c0", np.zeros(DIMENSION)),
        fed.maybe_aggregate,
        fed.force_aggregate,
        fed.run_gossip_round,
    ):
        with pytest.raises(PrivacyBudgetExhausted):
            call()
    assert fed.get_global_model() is not None
    assert fed.get_stats()["read_only"] is True


def test_a_federation_made_again_continues_its_ledger(
    runtime: str, open_federation: Any, tmp_path: Path
) -> None:
    path = str(tmp_path / "kept.sqlite")
    fed = open_federation(settings(ledger_path=path), runtime=runtime)
    total = int(fed.plan.num_releases)
    assert play(fed, 0.1) is not None
    stats = fed.get_stats()
    fed.close()
    again = open_federation(settings(ledger_path=path), runtime=runtime)
    assert again.get_stats()["privacy_consumed_epsilon"] == stats["privacy_consumed_epsilon"]
    assert again.get_stats()["ledger_path"] == path
    assert releases(again) == total - 1


def test_a_ledger_refuses_another_total(open_federation: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "kept.sqlite")
    open_federation(settings(ledger_path=path)).close()
    for other in ({"total_epsilon": 3.0}, {"total_delta": 2e-4}, {"gossip_budget_share": 0.01}):
        with pytest.raises(LedgerError, match="the ledger states"):
            open_federation(settings(ledger_path=path, gossip={"local_dp_epsilon": 0.1}, **other))
    open_federation(settings(ledger_path=path))


def test_a_federation_made_again_on_a_spent_ledger_is_read_only(open_federation: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "kept.sqlite")
    fed = open_federation(settings(ledger_path=path))
    releases(fed)
    fed.close()
    spent = open_federation(settings(ledger_path=path))
    assert spent.get_privacy_budget() == (0.0, 0.0)
    assert spent.get_stats()["read_only"] is True
    spent.register_client("c0", "a")
    assert spent.offer_update("c0", np.zeros(DIMENSION)).reason is Rejection.READ_ONLY


def test_gossip_is_charged_once_a_round_whatever_the_peers(open_federation: Any) -> None:
    spent = []
    for peers in (1, 4):
        fed = open_federation(
            {"vector_dim": DIMENSION, "auto_aggregate": False, "gossip": {"peers_per_round": peers}}
        )
        fed.register_clients([(f"c{i}", "a") for i in range(5)])
        for i in range(5):
            fed.submit_update(f"c{i}", np.full(DIMENSION, 0.3))
        for _ in range(3):
            fed.run_gossip_round()
        spent.append(fed.get_stats()["privacy_consumed_epsilon"])
    assert spent[0] == spent[1]
    assert 0.1 < spent[0] <= 0.5


def test_a_client_that_spent_its_gossip_share_never_starves_the_releases(open_federation: Any) -> None:
    fed = open_federation({"vector_dim": DIMENSION, "total_epsilon": 4.0, "gossip_budget_share": 0.1})
    fed.register_clients([(f"c{i}", "a" if i < 5 else "b") for i in range(10)])
    for round_id in range(30):
        for i in range(10):
            fed.submit_update(f"c{i}", np.full(DIMENSION, 0.1 + 0.01 * round_id + 0.001 * i))
        fed.run_gossip_round()
        fed.advance_round()
    stats = fed.get_stats()
    assert stats["n_layer2_aggregations"] == fed.plan.num_releases
    assert stats["n_gossip_messages"] > 0
    assert stats["privacy_consumed_epsilon"] <= 4.0


def test_without_a_finite_budget_nothing_is_ever_spent(open_federation: Any) -> None:
    fed = open_federation(
        settings(
            total_epsilon=math.inf,
            layer2={"central_dp_epsilon": math.inf},
        )
    )
    for k in range(3):
        assert play(fed, 0.1 * k) is not None
    assert fed.get_privacy_budget()[0] == math.inf
    assert fed.get_stats()["read_only"] is False


def test_a_closed_federation_says_so(open_federation: Any) -> None:
    fed = open_federation(settings())
    fed.close()
    fed.close()
    with pytest.raises(UsageError, match="closed"):
        fed.get_stats()


def test_a_spent_budget_leaves_buffered_updates_where_they_are(open_federation: Any) -> None:
    fed = open_federation(
        settings(
            total_epsilon=1.2,
            total_delta=1e-5,
            layer1={"aggregation_method": "mean", "byzantine_fraction": 0.0},
            layer2={"central_dp_epsilon": 1.0, "min_baskets_trigger": 2, "assumed_corrupt_fraction": 0.0},
        )
    )
    fed.register_clients([(f"{domain}{i}", domain) for domain in "abc" for i in range(5)])
    for client in ("c0", "c1", "c2", *(f"{domain}{i}" for domain in "ab" for i in range(5))):
        assert fed.submit_update(client, np.full(DIMENSION, 0.1))
    assert fed.get_privacy_budget() == (0.0, 0.0)
    before = fed.get_stats()
    assert (before["n_updates_buffered"], before["n_layer1_aggregations"]) == (3, 2)
    fed.maybe_aggregate()
    assert fed.force_aggregate() is None
    after = fed.get_stats()
    assert (after["n_updates_buffered"], after["n_layer1_aggregations"]) == (3, 2)
    fed.renew_budget(2.0, 1e-4, operator="the board")
    fed.force_aggregate()
    assert fed.get_stats()["n_layer1_aggregations"] == 3
