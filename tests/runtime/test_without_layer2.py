"""`layer2.enabled: false`: baskets train by gossip alone, and the whole budget is gossip's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.errors import ConfigError, LedgerError, UsageError
from scarcity_ray.plan import make_plan
from scarcity_ray.privacy.accounting.gaussian_dp import epsilon_of_mu

DIM = 8
SETTINGS: dict[str, Any] = {
    "vector_dim": DIM,
    "total_epsilon": 50.0,
    "total_delta": 1e-5,
    "basket": {"min_clients": 3, "max_clients": 3},
    "layer1": {"aggregation_method": "mean", "min_updates": 3},
}
ALONE: dict[str, Any] = {"layer2": {"enabled": False}}
CLEAR: dict[str, Any] = {
    **ALONE,
    "total_epsilon": math.inf,
    "gossip": {"local_dp_epsilon": math.inf, "push_drift_threshold": 0.0},
    "layer1": {"aggregation_method": "mean", "min_updates": 3, "byzantine_fraction": 0.0},
}
ROLES = ("basket:0", "directory", "accountant")


def config(**changes: Any) -> HierarchicalFederationConfig:
    return load(HierarchicalFederationConfig, {**SETTINGS, **changes})


def spread(states: dict[str, np.ndarray]) -> float:
    rows = np.stack([states[c] for c in sorted(states)]).reshape(4, 3, DIM)
    return float(np.square(rows - rows.mean(axis=1, keepdims=True)).sum())


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def alone(request: pytest.FixtureRequest, open_harnesses: Callable[..., Any]) -> Any:
    """One federation a runtime, with gossip's noise."""
    return open_harnesses(request.param, **ALONE)


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def clear(request: pytest.FixtureRequest, open_harnesses: Callable[..., Any]) -> Any:
    """One federation a runtime, without noise."""
    return open_harnesses(request.param, **CLEAR)


def test_nothing_is_released_and_only_gossip_is_charged(alone: Any) -> None:
    h = alone
    delivered = 0
    for round_id in range(2):
        assert all(h.submit(round_id))
        delivered += sum(h.fed.run_gossip_round().values())
        assert h.fed.maybe_aggregate() is None
        assert h.fed.get_basket_meta_model("domain2").round_id == round_id
        h.fed.advance_round()
    assert delivered > 0
    assert h.fed.get_global_model() is None
    stats, plan = h.fed.get_stats(), h.fed.plan
    assert (stats["n_layer1_aggregations"], stats["n_layer2_aggregations"]) == (8, 0)
    assert (stats["n_layer2_aborts"], stats["read_only"]) == (0, False)
    most = epsilon_of_mu(math.sqrt(2.0) * math.hypot(plan.gossip.mu_drift, plan.gossip.mu_vector), 1e-5)
    least = epsilon_of_mu(math.sqrt(2.0) * plan.gossip.mu_drift, 1e-5)
    assert least < stats["privacy_consumed_epsilon"] <= most * (1 + 1e-9)


def test_clients_train_on_from_states_that_come_together(clear: Any) -> None:
    h = clear
    clients = [c for c, _ in h.clients]
    assert h.fed.get_local_states(clients) == {}
    rows = np.random.default_rng(3).normal(size=(12, DIM)).astype(np.float32)
    rows *= 0.9 / np.linalg.norm(rows, axis=1, keepdims=True)
    h.fed.submit_updates(clients, rows)
    before = h.fed.get_local_states([*clients, "stranger"])
    assert sorted(before) == clients
    np.testing.assert_array_equal(np.stack([before[c] for c in clients]), rows)
    h.fed.run_gossip_round()
    after = h.fed.get_local_states(clients)
    assert spread(after) < 0.2 * spread(before)
    assert h.fed.force_aggregate() is None
    h.fed.advance_round()
    again = h.fed.get_local_states(clients)
    assert all((again[c] == after[c]).all() for c in clients), "a state outlives its round"


def test_there_is_no_global_aggregator(alone: Any, open_harness: Callable[..., Any]) -> None:
    h = alone
    assert "global" not in h.fed._runtime.names()
    assert {"accountant", "directory", "basket:0"} <= set(h.fed._runtime.names())
    with_layer2 = open_harness("local").fed.get_stats()
    stats = h.fed.get_stats()
    assert stats.keys() == with_layer2.keys()
    layer2 = [key for key in stats if "layer2" in key]
    assert {key: stats[key] for key in layer2} == {key: with_layer2[key] for key in layer2}
    assert h.fed.get_global_meta_model() is None
    assert h.fed.get_meta_params() == {}
    h.fed.renew_budget(60.0, 1e-5, operator="test")
    h.fed.advance_round()
    h.kill("directory", "basket:0")
    h.register()
    h.fed.split_basket("domain0")
    assert h.fed.get_stats()["n_baskets"] == 5
    assert "global" not in h.fed._runtime.names()


@pytest.mark.parametrize("role", ROLES)
def test_a_role_that_dies_comes_back(clear: Any, role: str) -> None:
    h = clear
    clients = [c for c, _ in h.clients]
    round_id = h.fed.get_stats()["current_round"]
    h.submit(1)
    h.fed.run_gossip_round()
    h.kill(role)
    known = set(h.fed.get_local_states(clients))
    lost = set(clients) - known
    assert len(lost) == (3 if role.startswith("basket") else 0)
    assert h.submit(1) == [c in lost for c in clients]
    assert h.fed.advance_round() == round_id + 1
    assert all(h.submit(2))
    assert sum(h.fed.run_gossip_round().values()) > 0
    assert h.fed.force_aggregate() is None
    assert h.fed.get_basket_model("domain0") is not None
    assert h.fed.get_stats()["n_layer2_aggregations"] == 0
    assert set(h.fed.get_local_states(clients)) == set(clients)
    h.fed.advance_round()


def test_the_whole_budget_buys_gossip_and_its_end_stops_messages_alone(
    open_harness: Callable[..., Any],
) -> None:
    changes = {
        **ALONE,
        "total_epsilon": 5.0,
        "gossip": {"local_dp_epsilon": 3.0, "push_drift_threshold": 0.0},
    }
    h = open_harness("local", **changes)
    assert h.fed.plan.num_gossip_rounds == 2
    with pytest.raises(ConfigError, match=r"gossip\.local_dp_epsilon"):
        make_plan(config(**{**changes, "layer2": {}}))
    sent = []
    for round_id in range(7):
        assert all(h.submit(round_id))
        sent.append(sum(h.fed.run_gossip_round().values()))
        assert h.fed.force_aggregate() is None
        h.fed.advance_round()
    stats = h.fed.get_stats()
    assert sent[0] > 0
    assert sent[-1] == 0
    assert stats["n_layer1_aggregations"] == 4 * 7
    assert not stats["read_only"]
    assert 4.0 < stats["privacy_consumed_epsilon"] <= 5.0
    assert 0.0 <= h.fed.get_privacy_budget()[0] < 1.0
    h.fed.renew_budget(5.0, 1e-5, operator="test")
    h.submit(99)
    assert sum(h.fed.run_gossip_round().values()) > 0


def test_a_later_update_takes_the_place_of_the_earlier_and_none_ages(
    open_harness: Callable[..., Any],
) -> None:
    h = open_harness("local", **CLEAR)
    first, second = np.full(DIM, 0.1, np.float32), np.full(DIM, -0.2, np.float32)
    h.fed.submit_update("c00", first)
    h.fed.submit_update("c00", second)
    assert (h.fed.get_local_states(["c00"])["c00"] == second).all()
    assert h.fed.force_aggregate() is None, "one of three members: Layer 1 waits"
    h.fed.advance_round()
    assert (h.fed.get_local_states(["c00"])["c00"] == second).all()


def test_auto_aggregation_makes_basket_models(open_harness: Callable[..., Any]) -> None:
    h = open_harness("local", **ALONE, auto_aggregate=True)
    assert all(h.submit(1))
    h.fed.run_gossip_round()
    assert h.fed.get_basket_model("domain3") is not None
    assert h.fed.maybe_aggregate() is None


def test_local_states_are_refused_with_layer_2(open_harness: Callable[..., Any]) -> None:
    with pytest.raises(UsageError, match=r"layer2\.enabled"):
        open_harness("local").fed.get_local_states(["c00"])


def test_a_ledger_of_releases_is_not_continued(tmp_path: Path) -> None:
    ledger = {"ledger_path": str(tmp_path / "ledger.sqlite")}
    HierarchicalFederation(config(**ledger), runtime="local").close()
    with pytest.raises(LedgerError, match="gossip_budget_share"):
        HierarchicalFederation(config(**ALONE, **ledger), runtime="local").get_stats()


def test_the_plan_gives_gossip_everything_or_nothing() -> None:
    plan = make_plan(config(**ALONE))
    assert (plan.gossip_share, plan.num_releases, plan.reserved.mu_release) == (1.0, 0.0, 0.0)
    assert (plan.gossip_mu_cap, plan.central_mu_cap) == (plan.mu_total, 0.0)
    assert plan.gossip.own_states
    off = make_plan(config(**ALONE, gossip_budget_share=0.0))
    assert (off.gossip_share, off.num_gossip_rounds) == (0.0, 0.0)
    boundless = make_plan(config(**CLEAR))
    assert (boundless.num_gossip_rounds, boundless.num_releases) == (math.inf, 0.0)
    with pytest.raises(ConfigError, match="meta_parameters"):
        make_plan(config(**ALONE, meta_parameters={"rate": [0.0, 1.0]}))
    with pytest.raises(ConfigError, match=r"gossip\.local_dp_epsilon"):
        make_plan(config(**ALONE, total_epsilon=0.1))
    make_plan(config(layer2={"enabled": False, "central_dp_epsilon": 1e3}))
    with pytest.raises(ConfigError, match="adaptive_clipping"):
        make_plan(config(layer2={"enabled": False, "adaptive_clipping": True}))
    other = config(layer2={"enabled": False, "noise": "discrete_gaussian"})
    assert make_plan(other).accounting is make_plan(config()).accounting, "gossip's noise is Gaussian"
