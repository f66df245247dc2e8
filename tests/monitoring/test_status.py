"""The status document, of a real federation in this process and of what may be in one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import (
    BasketConfig,
    HierarchicalFederation,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
)
from scarcity_ray.monitoring.history import RoundHistory
from scarcity_ray.monitoring.metrics import METRICS, samples_of
from scarcity_ray.monitoring.status import (
    Enrolment,
    Observed,
    SiteState,
    State,
    federation_status,
    observe,
    outliers_of,
)
from scarcity_ray.privacy.ledger.answers import CeilingStanding

NOW = 1_764_540_000.0
DAY = 86_400.0


def config_of(tmp_path: Any, **changes: Any) -> HierarchicalFederationConfig:
    settings: dict[str, Any] = {
        "vector_dim": 8,
        "basket": BasketConfig(min_clients=3, max_clients=5, stale_threshold=3600.0),
        "layer1": Layer1Config(aggregation_method="trimmed_mean"),
        "layer2": Layer2Config(central_dp_epsilon=1.0, min_baskets=3),
        "gossip_budget_share": 0.0,
        "auto_aggregate": False,
        "ledger_path": str(tmp_path / "ledger.sqlite"),
    }
    return HierarchicalFederationConfig(**(settings | changes))


@pytest.fixture
def watched(tmp_path: Any) -> Any:
    """A federation of 3 domains of 5 sites after two rounds and half of a third, and its history."""
    rng, clock, history = np.random.default_rng(3), [NOW], RoundHistory()
    clients = [(f"ward-{domain}-{number}", f"region-{domain}") for domain in range(3) for number in range(5)]
    with HierarchicalFederation(config_of(tmp_path), runtime="local", clock=lambda: clock[0]) as fed:
        fed.register_clients(clients)
        for round_id in range(3):
            for place, (client_id, _) in enumerate(clients):
                if round_id == 2 and place >= 9:
                    break
                row = rng.standard_normal(8) / 3
                receipt = fed.offer_update(client_id, row)
                history.note_outcome(client_id, round_id, receipt.reason)
            again = fed.offer_update(clients[0][0], rng.standard_normal(9))
            history.note_outcome("nobody", round_id, str(again.reason))
            if round_id < 2:
                fed.force_aggregate()
                history.note_round(
                    round_id,
                    released=True,
                    seconds=0.5,
                    phases={"training": 0.3, "aggregation": 0.2},
                    num_bytes=15 * 32,
                    validation={"region-0": {"auc": 0.8 + round_id / 100}},
                    outliers=outliers_of(fed.get_stats()) | {"ward-0-1"},
                )
                fed.advance_round()
                clock[0] += 60.0
        yield fed, history, clock[0]


def seen_of(watched: Any, **more: Any) -> Observed:
    fed, history, now = watched
    return observe(fed, now, rounds=history.rounds(), totals=dict(history.totals), **more)


def test_a_status_is_json(watched: Any) -> None:
    told = federation_status(seen_of(watched))
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["state"] == "open"
    assert told["round"]["headline"] == "0 of 3 baskets; waiting for ward-2-0, ward-2-1, ward-2-2 and 3 more"
    assert told["sites"]["by_state"]["up"] == told["sites"]["registered"] == 15
    by_id = {site["id"]: site for site in told["sites"]["list"]}
    assert by_id["ward-0-0"]["strip"] == "+++"
    assert by_id["ward-2-4"]["strip"] == "++."
    assert by_id["ward-0-1"]["strip"] == "oo+"
    assert told["refusals"] == {"wrong_shape": 3}
    assert told["validation"]["domains"]["region-0"]["auc"]["values"] == [0.8, 0.81]
    assert told["work"]["forecast"]["update_bytes"] == told["work"]["last_round"]["update_bytes"] == 480
    assert told["work"]["last_round"]["own_seconds"] == pytest.approx(0.2)


def test_the_next_releases_cost_is_what_it_then_costs(watched: Any) -> None:
    fed, _, _ = watched
    before = federation_status(seen_of(watched))["budget"]
    rng = np.random.default_rng(4)
    for site in fed.get_clients():
        fed.offer_update(site.client_id, rng.standard_normal(8) / 3, sequence=9)
    assert fed.force_aggregate() is not None
    after = federation_status(seen_of(watched))["budget"]
    rise = after["epsilon_spent"] - before["epsilon_spent"]
    assert before["next_release_epsilon"] == pytest.approx(rise, rel=1e-6)
    assert after["rounds_left"] == before["rounds_left"] - 1


def test_outliers_are_told_only_with_exposed_models(watched: Any) -> None:
    seen = seen_of(watched)
    told = federation_status(seen)
    assert told["outliers"]["sites"][0]["id"] == "ward-0-1"
    config = replace(seen.plan.config, expose_basket_models=False)
    from scarcity_ray.plan import make_plan

    private = federation_status(replace(seen, plan=make_plan(config)))
    assert private["outliers"] is None
    assert "o" not in {mark for site in private["sites"]["list"] for mark in site["strip"]}


def test_a_sites_state_says_what_is_the_matter(watched: Any) -> None:
    now = watched[2]
    enrolments = {
        "ward-0-0": Enrolment(now + 20.5 * DAY),
        "ward-0-1": Enrolment(now + DAY, revoked=True),
        "newcomer": Enrolment(now - DAY),
    }
    ceilings = {"ward-0-2": CeilingStanding(2.0, 1e-5, 1.99, True)}
    seen = replace(seen_of(watched, enrolments=enrolments), ceilings=ceilings)
    told = federation_status(seen)["sites"]
    states = {site["id"]: site["state"] for site in told["list"]}
    assert [states[name] for name in ("ward-0-0", "ward-0-1", "ward-0-2", "newcomer")] == [
        SiteState.UP,
        SiteState.REVOKED,
        SiteState.LEFT_OUT,
        SiteState.NEVER,
    ]
    assert told["list"][0]["id"] == "ward-0-1"
    assert told["first_certificate_days_left"] == -1
    later = federation_status(replace(seen, at=now + 2 * DAY, last_seen={"ward-2-2": now + 2 * DAY - 9}))
    assert later["sites"]["by_state"]["stale"] == 12
    assert {s["id"]: s["state"] for s in later["sites"]["list"]}["ward-2-2"] == SiteState.UP


def test_no_more_sites_than_asked_are_listed_and_all_are_counted(
    watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scarcity_ray.monitoring.status.MOST_SITES", 4)
    told = federation_status(seen_of(watched))["sites"]
    assert (len(told["list"]), told["listed"], told["unlisted"], told["registered"]) == (4, 4, 11, 15)


def test_no_federation_yet_a_spent_budget_and_a_stop(watched: Any, tmp_path: Any) -> None:
    (tmp_path / "other").mkdir()
    with HierarchicalFederation(config_of(tmp_path / "other"), runtime="local") as empty:
        told = federation_status(observe(empty, NOW))
        assert (told["state"], told["sites"]["list"], told["work"]["forecast"]) == ("no_sites", [], None)
        assert told["sentence"] == "No site is registered yet."
    seen = seen_of(watched)
    stats = {**seen.stats, "read_only": True}
    spent = federation_status(replace(seen, stats=stats))
    assert spent["state"] == "budget_spent"
    assert spent["budget"]["rounds_left"] == 0
    paused = federation_status(replace(seen, state=State.PAUSED, sentence="Ann has paused the rounds."))
    assert (paused["state"], paused["sentence"]) == ("paused", "Ann has paused the rounds.")


def test_a_status_without_a_finite_budget_has_nulls(tmp_path: Any) -> None:
    config = config_of(tmp_path, total_epsilon=math.inf, layer2=Layer2Config(central_dp_epsilon=math.inf))
    with HierarchicalFederation(config, runtime="local") as fed:
        told = federation_status(observe(fed, NOW))
        json.dumps(told, allow_nan=False)
        assert (told["budget"]["epsilon_total"], told["budget"]["next_release_epsilon"]) == (None, None)
        assert "scarcity_ray_epsilon_left" not in {sample.metric.name for sample in samples_of(told)}


def test_no_label_holds_a_clients_id(watched: Any) -> None:
    enrolments = {"ward-0-0": Enrolment(watched[2] + DAY)}
    counts = {"open_requests": 2, "bytes_received": 480, "bytes_sent": 9, "answers": {"201": 3}}
    told = federation_status(seen_of(watched, enrolments=enrolments, gateway=counts))
    samples = samples_of(told)
    values = {value for sample in samples for value in sample.labels.values()}
    assert not {value for value in values if "ward" in value}
    assert all(tuple(sample.labels) == sample.metric.labels for sample in samples)
    assert {sample.metric for sample in samples} == set(METRICS)
