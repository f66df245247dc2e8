"""Where gossip has a share of the budget, what all have sent is aggregated after they have gossiped."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation

ROUNDS = 4


def settings(**changes: Any) -> dict[str, Any]:
    """The specification's example without noise, so that gossip moves the states."""
    return {
        "total_epsilon": math.inf,
        "gossip": {"local_dp_epsilon": math.inf},
        "layer2": {"central_dp_epsilon": math.inf},
        **changes,
    }


def crowd(fed: HierarchicalFederation) -> None:
    for i in range(10):
        fed.register_client(f"client_{i}", "healthcare" if i < 5 else "finance")


def send(fed: HierarchicalFederation, number: int) -> None:
    for i in range(10):
        update = 0.1 * np.random.default_rng([number, i]).normal(size=64)
        assert fed.submit_update(f"client_{i}", update, round_id=number)


def models_of(fed: HierarchicalFederation, with_gossip: bool) -> list[bytes]:
    """The specification's loop; the bytes of each round's model."""
    crowd(fed)
    models = []
    for number in range(ROUNDS):
        send(fed, number)
        if with_gossip:
            assert fed.run_gossip_round() == {"healthcare": 20, "finance": 20}
        model = fed.maybe_aggregate()
        assert model is not None
        models.append(model.tobytes())
        fed.advance_round()
    stats = fed.get_stats()
    assert stats["n_updates_buffered"] == 0
    assert stats["n_layer1_aggregations"] == 2 * ROUNDS
    return models


def test_gossip_changes_every_model_of_the_specifications_loop(open_federation: Any) -> None:
    mixed = models_of(open_federation(settings()), with_gossip=True)
    alone = models_of(open_federation(settings()), with_gossip=False)
    assert [one == other for one, other in zip(mixed, alone, strict=True)] == [False] * ROUNDS
    by_hand = models_of(open_federation(settings(auto_aggregate=False)), with_gossip=True)
    assert mixed == by_hand


@pytest.mark.parametrize(
    "call",
    [
        HierarchicalFederation.run_gossip_round,
        HierarchicalFederation.maybe_aggregate,
        HierarchicalFederation.force_aggregate,
        HierarchicalFederation.advance_round,
    ],
)
def test_what_all_have_sent_is_aggregated_by_whichever_comes_first(
    call: Callable[[HierarchicalFederation], Any], open_federation: Any
) -> None:
    fed = open_federation(settings())
    crowd(fed)
    send(fed, 0)
    assert fed.get_global_model() is None
    call(fed)
    assert fed.get_global_model() is not None
    assert fed.get_global_meta_model().round_id == 0


def test_without_a_share_for_gossip_nothing_waits_for_it(open_federation: Any) -> None:
    fed = open_federation(settings(gossip_budget_share=0.0))
    crowd(fed)
    send(fed, 0)
    assert fed.get_global_model() is not None


def test_counts_and_times_fire_at_the_submission(open_federation: Any, clock: Any) -> None:
    counted = open_federation(settings(buffer={"min_updates_trigger": 5}))
    crowd(counted)
    send(counted, 0)
    assert counted.get_global_model() is not None
    timed = open_federation(settings(buffer={"time_trigger_seconds": 1.0}))
    crowd(timed)
    for i in range(10):
        clock.advance(0.4)
        timed.submit_update(f"client_{i}", np.full(64, 0.01 * i))
    assert timed.get_stats()["n_layer1_aggregations"] >= 2


def test_without_auto_aggregate_gossip_and_rounds_aggregate_nothing(open_federation: Any) -> None:
    fed = open_federation(settings(auto_aggregate=False))
    crowd(fed)
    send(fed, 0)
    fed.run_gossip_round()
    fed.advance_round()
    assert fed.get_stats()["n_layer1_aggregations"] == 0


def test_without_layer_2_baskets_aggregate_after_their_gossip(open_federation: Any) -> None:
    fed = open_federation(settings(layer2={"enabled": False}))
    crowd(fed)
    send(fed, 0)
    assert fed.get_basket_model("healthcare") is None
    fed.run_gossip_round()
    assert fed.get_basket_model("healthcare") is not None
