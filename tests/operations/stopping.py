"""Drivers that stop in mid-operation: before or after any call of theirs, and what the next one finds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from scarcity_ray import HierarchicalFederation
from scarcity_ray.actors.global_aggregator import GlobalAggregator
from scarcity_ray.actors.names import DIRECTORY, GLOBAL, basket_actor
from scarcity_ray.forecast import Told
from scarcity_ray.layers.models import GlobalMetaModel

CLIENTS = tuple((f"{domain}{i}", domain) for domain, n in (("c", 5), ("e", 3)) for i in range(n))
IDS = tuple(client for client, _ in CLIENTS)
DIMENSION = 16
ROWS = np.eye(len(IDS), DIMENSION, dtype=np.float32)
"""Each client's update has a coordinate of its own, so that a sum shows who is in it, and how often."""


class Stopped(BaseException):
    """The driver is gone: nothing of this package may catch it."""


def stop() -> None:
    raise Stopped


@dataclass
class Silence:
    """Noise that is zero, and is counted as it is drawn."""

    drawn: Counter[str] = field(default_factory=Counter)

    def standard_normal(self, shape: Any, stream: str) -> Any:
        self.drawn[stream] += 1
        return np.zeros(shape)

    def uniform_words(self, stream: str) -> Any:
        return lambda count: np.zeros(count, np.uint64)


class Stopper:
    """Stops a driver at the n-th point, or lets something else happen there.

    Each of its calls has a point before it and one after it.
    """

    def __init__(self, fed: HierarchicalFederation) -> None:
        self.at: float = math.inf
        self.passed = 0
        self.happens: Callable[[], Any] = stop
        supervisor = fed._driver.supervisor
        supervisor.peers = _WatchedPeers(supervisor.peers, self)
        supervisor.runtime = _WatchedPlace(supervisor.runtime, self)

    def point(self) -> None:
        self.passed += 1
        if self.passed == self.at + 1:
            self.at = math.inf
            self.happens()

    def run(self, act: Callable[[], Any], at: float, happens: Callable[[], Any] = stop) -> bool:
        """Whether `act` was stopped."""
        self.at, self.passed, self.happens = at, 0, happens
        try:
            act()
        except Stopped:
            return True
        finally:
            self.at = math.inf
        return False


@dataclass
class _Watched:
    handle: Any
    stopper: Stopper

    def call(self, method: str, *args: object) -> Any:
        self.stopper.point()
        answer = self.handle.call(method, *args)
        self.stopper.point()
        return answer


@dataclass
class _WatchedPeers:
    peers: Any
    stopper: Stopper

    def handle(self, name: str) -> _Watched:
        return _Watched(self.peers.handle(name), self.stopper)


@dataclass
class _WatchedPlace:
    place: Any
    stopper: Stopper

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.place, name)
        if name not in ("start", "kill", "withdraw"):
            return value

        def watched(*args: Any, **more: Any) -> Any:
            self.stopper.point()
            answer = value(*args, **more)
            self.stopper.point()
            return answer

        return watched


@dataclass
class Scene:
    """A federation, its drivers, and everything that must be true of it.

    Attributes:
        fed: The first driver.
        noise: What was drawn.
        charges: Gossip's charges: (kind, charge id) to the clients that it covers.
    """

    fed: HierarchicalFederation
    noise: Silence
    clock: Any
    charges: dict[tuple[str, str], tuple[str, ...]]

    def another_driver(self) -> HierarchicalFederation:
        """One that has just attached."""
        first, other = self.fed, HierarchicalFederation.__new__(HierarchicalFederation)
        identity = first._driver.supervisor.identity
        other._begin(first._runtime, identity, first.plan, self.clock, Told(), owner=False)
        return other

    def role(self, name: str) -> Any:
        return self.fed._runtime.peers.roles[name]

    def kill(self, *names: str) -> None:
        for name in names:
            self.fed._runtime.kill(name)

    def hosts(self) -> dict[str, dict[str, set[str]]]:
        """Members by basket, as each basket actor has them."""
        slots = len(self.role(DIRECTORY)._loads)
        hosts = {name: self.role(name) for name in map(basket_actor, range(slots))}
        return {
            name: {b: set(basket.members) for b, basket in h._baskets.items()} for name, h in hosts.items()
        }

    def check_places(self) -> None:
        """The directory and the basket actors agree on who is where, and everyone is in one place."""
        where = self.role(DIRECTORY).routing_table()
        assert where.news.pending is None
        decided: dict[str, dict[str, set[str]]] = {name: {} for name in self.hosts()}
        members: list[str] = []
        for place in where.places:
            clients = self.role(DIRECTORY)._manager.get_basket_clients(place.basket_id)
            decided[basket_actor(place.slot)][place.basket_id] = set(clients)
            members += clients
        assert decided == self.hosts()
        assert len(members) == len(set(members))
        rounds = {self.role(name)._round_id for name in decided}
        assert rounds <= {where.round_id}

    def check_gossip(self) -> None:
        """One drawing a client, kind and round, and a charge for each."""
        drawn = {name: n for name, n in self.noise.drawn.items() if name.startswith("gossip/")}
        assert set(drawn.values()) <= {1}, drawn
        for kind in ("drift", "vector"):
            covered = Counter(c for (k, _), ids in self.charges.items() if k == kind for c in ids)
            counted = Counter(name.split("/")[2] for name in drawn if name.split("/")[1] == kind)
            assert not counted - covered, (counted, covered)

    def released(self) -> np.ndarray:
        """The sum of all releases; an update that entered once has its weight in it, 1/n."""
        return np.sum([m.aggregate for m in releases_of(self.role(GLOBAL))], axis=0, initial=0.0)


def releases_of(role: GlobalAggregator) -> list[GlobalMetaModel]:
    """What a global aggregator began with and has released since, where `scene_of` notes it."""
    began = [] if role.latest() is None else [role.latest()]
    noted: list[GlobalMetaModel] = vars(role).setdefault("noted", began)
    return noted


SETTINGS: dict[str, Any] = {
    "vector_dim": DIMENSION,
    "auto_aggregate": False,
    "total_epsilon": 50.0,
    "total_delta": 1e-5,
    "basket": {"min_clients": 2, "max_clients": 5},
    "buffer": {"participation_cap": 1},
    "gossip": {"push_drift_threshold": 0.0, "mixing": "average"},
    "layer1": {"aggregation_method": "mean", "min_updates": 2, "byzantine_fraction": 0.0},
    "layer2": {"central_dp_epsilon": 5.0, "use_secure_aggregation": False},
    "runtime": {"baskets_per_actor": 1},
}
"""The signal is above the noise: hundreds of drivers have no remedies to look for."""
