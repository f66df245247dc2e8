"""Random operations of two drivers, stopped anywhere, while the directory dies: everything adds up."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scarcity_ray import HierarchicalFederation, Rejection, UsageError
from scarcity_ray.actors.names import DIRECTORY
from tests.operations.stopping import IDS, ROWS, Scene, Stopper

Act = Callable[[HierarchicalFederation, int], Any]


def basket_of(fed: HierarchicalFederation, k: int) -> str:
    places = fed._driver.operations.routing_table().places
    return places[k % len(places)].basket_id


ACTS: dict[str, Act] = {
    "join": lambda f, k: f.register_client(IDS[k], IDS[k][0]),
    "leave": lambda f, k: f.unregister_client(IDS[k]),
    "split": lambda f, k: f.split_basket(basket_of(f, k)),
    "disband": lambda f, k: f.disband_basket(basket_of(f, k)),
    "send": lambda f, k: f.submit_update(IDS[k], ROWS[k]),
    "send all": lambda f, k: f.submit_updates(IDS, ROWS),
    "gossip": lambda f, k: f.run_gossip_round(),
    "round": lambda f, k: f.advance_round(),
}
steps = st.lists(
    st.tuples(
        st.sampled_from(sorted(ACTS)),
        st.integers(0, len(IDS) - 1),
        st.one_of(st.none(), st.integers(0, 24)),
        st.sampled_from(["lives", "lives", "lives", "dies"]),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.filterwarnings("ignore::scarcity_ray.FaultWarning")
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(steps)
def test_random_operations_with_stops_and_deaths(
    scene_of: Callable[..., Scene], steps: list[tuple[str, int, int | None, str]]
) -> None:
    scene = scene_of()
    drivers = [scene.fed, scene.another_driver()]
    stoppers = [Stopper(driver) for driver in drivers]
    for turn, (name, k, at, directory) in enumerate(steps):
        driver, stopper = drivers[turn % 2], stoppers[turn % 2]
        with suppress(UsageError) if name == "split" else nullcontext():  # of a basket of one
            stopper.run(lambda d=driver, n=name, k=k: ACTS[n](d, k), math.inf if at is None else at)
        if directory == "dies":
            scene.kill(DIRECTORY)
    last = scene.another_driver()
    stats = last.get_stats()
    scene.check_places()
    scene.check_gossip()
    # What is accepted now is accepted once, wherever its client has been, and it is buffered.
    here = [client for client in IDS if last.get_client(client) is not None]
    receipts = last.submit_updates(IDS, ROWS)
    assert {c for c, r in zip(IDS, receipts, strict=True) if r.reason is Rejection.UNKNOWN_CLIENT} == set(
        IDS
    ) - set(here)
    assert {r.reason for r in receipts} <= {None, Rejection.REPLAYED, Rejection.UNKNOWN_CLIENT}
    buffered = last.get_stats()["n_updates_buffered"]
    assert buffered == stats["n_updates_buffered"] + sum(map(bool, receipts))
    by_client: dict[tuple[str, int], int] = {}
    for members in scene.hosts():
        for basket in scene.role(members)._baskets.values():
            for update in basket._buffer.updates():
                assert update.client_id in basket.members
                key = update.client_id, update.round_id
                by_client[key] = by_client.get(key, 0) + 1
    assert set(by_client.values()) <= {1}
    assert sum(by_client.values()) == buffered
    np.testing.assert_array_less(scene.released(), 1.0)
