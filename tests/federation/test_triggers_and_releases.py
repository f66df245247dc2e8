"""When releases are made, and who is given them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation

DIMENSION = 3


def settings(**layer2: Any) -> dict[str, Any]:
    return {
        "vector_dim": DIMENSION,
        "auto_aggregate": False,
        "total_epsilon": math.inf,
        "gossip": {"local_dp_epsilon": math.inf},
        "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
        "layer2": {
            "central_dp_epsilon": math.inf,
            "update_interval_seconds": 30.0,
            "assumed_corrupt_fraction": 0.0,
            **layer2,
        },
    }


def crowd(fed: HierarchicalFederation, domains: str, size: int = 3) -> None:
    fed.register_clients([(f"{domain}{i}", domain) for domain in domains for i in range(size)])


def fill(fed: HierarchicalFederation, domains: str, value: float = 0.1, size: int = 3) -> None:
    for domain in domains:
        for i in range(size):
            assert fed.submit_update(f"{domain}{i}", np.full(DIMENSION, value))


def test_layer2_fires_when_all_active_baskets_are_fresh(open_federation: Any) -> None:
    fed = open_federation(settings())
    crowd(fed, "abc")
    fed.register_client("alone", "forming")
    fill(fed, "ab")
    assert fed.maybe_aggregate() is None
    fill(fed, "c")
    assert fed.maybe_aggregate() is not None


def test_layer2_fires_when_enough_baskets_are_fresh(open_federation: Any) -> None:
    fed = open_federation(settings(min_baskets_trigger=2))
    crowd(fed, "abcd")
    fill(fed, "a")
    assert fed.maybe_aggregate() is None
    fill(fed, "b")
    assert fed.maybe_aggregate() is not None


def test_layer2_fires_after_its_interval_but_never_below_min_baskets(
    open_federation: Any, clock: Any
) -> None:
    fed = open_federation(settings())
    crowd(fed, "abcd")
    fill(fed, "a")
    assert fed.maybe_aggregate() is None
    clock.advance(31.0)
    assert fed.maybe_aggregate() is None
    assert fed.force_aggregate() is None
    fill(fed, "b")
    assert fed.maybe_aggregate() is not None
    fed.advance_round()
    fill(fed, "ab", 0.2)
    assert fed.maybe_aggregate() is None
    clock.advance(29.0)
    assert fed.maybe_aggregate() is None
    clock.advance(1.0)
    assert fed.maybe_aggregate() is not None


def test_a_stale_basket_joins_with_weight_zero(open_federation: Any) -> None:
    fed = open_federation(settings())
    crowd(fed, "ab")
    crowd(fed, "c", size=6)
    fill(fed, "a", 0.1)
    fill(fed, "b", 0.3)
    model = fed.force_aggregate()
    np.testing.assert_allclose(model, np.full(DIMENSION, 0.2), atol=1e-6)
    meta = fed.get_global_meta_model()
    assert (meta.n_baskets, meta.n_clients_total) == (2, 6)


@pytest.mark.parametrize(("by_size", "expected"), [(True, (3 * 0.1 + 6 * 0.4) / 9), (False, 0.25)])
def test_weights_are_by_members_or_uniform(by_size: bool, expected: float, open_federation: Any) -> None:
    fed = open_federation(settings(weight_by_size=by_size))
    crowd(fed, "a")
    crowd(fed, "b", size=6)
    fill(fed, "a", 0.1)
    fill(fed, "b", 0.4, size=3)  # half of its members, all of its weight
    model = fed.force_aggregate()
    np.testing.assert_allclose(model, np.full(DIMENSION, expected), atol=1e-6)


def test_each_global_model_is_given_once_also_those_made_automatically(open_federation: Any) -> None:
    fed = open_federation({**settings(), "auto_aggregate": True})
    crowd(fed, "ab")
    given = []
    for round_id in range(4):
        fill(fed, "ab", 0.1 + 0.1 * round_id)
        if round_id != 1:
            given += [fed.maybe_aggregate(), fed.maybe_aggregate(), fed.force_aggregate()]
        fed.advance_round()
    assert [model is not None for model in given] == [True, False, False] * 3
    np.testing.assert_allclose([model[0] for model in given[::3]], [0.1, 0.3, 0.4], atol=1e-6)
    assert fed.get_stats()["n_layer2_aggregations"] == 4


def test_releases_are_distributed_to_the_baskets_if_configured(open_federation: Any) -> None:
    for wanted in (True, False):
        fed = open_federation(settings(distribute_to_baskets=wanted))
        crowd(fed, "ab")
        fill(fed, "ab")
        model = fed.force_aggregate()
        held = fed._runtime.peers.handle("basket:0").call("abandon_session").result()
        assert (held is not None) is wanted
        if wanted:
            np.testing.assert_array_equal(held.aggregate, model)
