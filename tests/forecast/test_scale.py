"""A round on a cluster: how its seconds and memory grow, and what they are made of. No clock is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.errors import UsageError
from scarcity_ray.forecast import MEASURED, CallRates, Forecast, Scale, round_seconds, scale_of
from scarcity_ray.forecast.scale import SHARE_OF_AGGREGATOR, SHARE_OF_BASKETS, calls_at


def config(d: int = 100, **more: Any) -> HierarchicalFederationConfig:
    return load(HierarchicalFederationConfig, {"vector_dim": d, "total_epsilon": 1e4, **more})


def roles(scale: Scale) -> tuple[float, ...]:
    return (
        *(scale.driver_seconds, scale.singles_seconds, scale.baskets_seconds, scale.seconds),
        *(scale.driver_bytes, scale.directory_bytes, scale.aggregator_bytes, scale.actor_bytes),
    )


@given(
    baskets=st.integers(3, 32),
    nodes=st.integers(1, 50),
    cores=st.integers(1, 8),
    d=st.sampled_from([10, 10**4]),
)
def test_more_clients_never_take_less_and_more_cores_never_more(
    baskets: int, nodes: int, cores: int, d: int
) -> None:
    few = scale_of(config(d), 100 * baskets, nodes, cores_per_node=cores, actors=16)
    more = scale_of(config(d), 200 * baskets, nodes, cores_per_node=cores, actors=16)
    assert all(one <= other for one, other in zip(roles(few), roles(more), strict=True))
    wider = scale_of(config(d), 100 * baskets, nodes, cores_per_node=2 * cores, actors=16)
    assert wider.seconds <= few.seconds
    assert roles(wider)[:3] == roles(few)[:3]


@given(baskets=st.integers(3, 40), nodes=st.sampled_from([1, 100]), d=st.sampled_from([10, 10**5]))
def test_what_bounds_a_round_is_the_role_that_takes_longest(baskets: int, nodes: int, d: int) -> None:
    found = scale_of(config(d), 100 * baskets, nodes, cores_per_node=2)
    parts = {
        "driver": found.driver_seconds,
        "single roles": found.singles_seconds,
        "baskets": found.shared_seconds,
    }
    assert parts[found.bound] == max(parts.values())
    assert found.seconds == pytest.approx(sum(parts.values()) + found.waits_seconds)


def test_without_calls_it_is_the_cost_models_work_shared_out() -> None:
    free = CallRates(**dict.fromkeys(vars(CallRates()), 0.0))
    work = round_seconds(Forecast(config(), (100,) * 5, 1))
    found = scale_of(config(), 500, 1, cores_per_node=1, calls=free)
    shares = SHARE_OF_AGGREGATOR + SHARE_OF_BASKETS
    assert found.seconds == pytest.approx(work.on_one_core - (1 - shares) * work.secure_sum)


def test_a_slower_machine_makes_slower_calls_and_no_greater_processes() -> None:
    slow = calls_at(replace(MEASURED, update=2 * MEASURED.update))
    assert slow.round == 2 * CallRates().round
    assert slow.update_element == CallRates().update_element
    assert slow.actor_bytes == CallRates().actor_bytes
    assert calls_at(MEASURED) == CallRates()


def test_what_cannot_be_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match="2 clients are too few"):
        scale_of(config(), 2, 1, cores_per_node=1)
    with pytest.raises(UsageError, match=r"10001 baskets.* raise basket.max_clients to 101"):
        scale_of(config(), 1_000_100, 1, cores_per_node=1)
    assert scale_of(config(runtime={"baskets_per_actor": 2}), 1000, 9, cores_per_node=4).actors == 5
