"""Small federations to kill parts of."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.privacy.sampling.noise import SeededNoise

DIM = 8
SETTINGS: dict[str, Any] = {
    "vector_dim": DIM,
    "auto_aggregate": False,
    "total_epsilon": 50.0,
    "total_delta": 1e-5,
    "basket": {"min_clients": 3, "max_clients": 3},
    "layer1": {"aggregation_method": "mean", "min_updates": 3},
    "layer2": {"central_dp_epsilon": 1.0},
    "gossip": {"local_dp_epsilon": 0.5},
    "runtime": {"baskets_per_actor": 1, "cpus_per_actor": 0.01},
}


def settings(ledger: Path, **changes: Any) -> HierarchicalFederationConfig:
    return load(HierarchicalFederationConfig, {**SETTINGS, "ledger_path": str(ledger), **changes})


@dataclass
class Harness:
    """A federation of four baskets of three, each in an actor of its own, and means to kill its roles."""

    fed: HierarchicalFederation
    runtime: str
    ledger: Path

    clients = tuple((f"c{i:02d}", f"domain{i // 3 % 4}") for i in range(12))

    def register(self) -> None:
        self.fed.register_clients(self.clients)

    def submit(self, seed: int) -> list[bool]:
        rows = np.random.default_rng(seed).normal(size=(12, DIM)).astype(np.float32)
        return [r.accepted for r in self.fed.submit_updates([c for c, _ in self.clients], rows)]

    def kill(self, *names: str) -> None:
        """SIGKILL the roles' processes, or drop them where they have none."""
        place = self.fed._runtime
        if self.runtime == "local":
            for name in names:
                place.kill(name)
            return
        pids = [self.pid(name) for name in names]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def pid(self, name: str) -> int:
        """The process of a role on Ray."""
        return pid_of(self.fed._runtime, name)

    def basket_role(self, basket_id: str) -> str:
        where = self.fed._driver.operations.routing_table()
        return next(f"basket:{p.slot}" for p in where.places if p.basket_id == basket_id)


def pid_of(place: Any, name: str) -> int:
    """The process of a role on Ray."""
    import ray

    from scarcity_ray.runtime.ray_runtime import find_actor

    actor = find_actor(place._namespace, name)
    return int(ray.get(actor.__ray_call__.remote(lambda self: os.getpid())))


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def harness(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    """One federation a module and runtime: what died in one test has come back for the next."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    ledger = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    with HierarchicalFederation(settings(ledger), runtime=request.param, noise=SeededNoise(7)) as fed:
        made = Harness(fed, request.param, ledger)
        made.register()
        yield made


@pytest.fixture
def open_harness(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """``open_harness(runtime, **settings)``: a federation of the test's own, its clients registered."""
    yield from _opener(request, tmp_path)


@pytest.fixture(scope="module")
def open_harnesses(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Harness]]:
    """The same for a module."""
    yield from _opener(request, tmp_path_factory.mktemp("ledgers"))


def _opener(request: pytest.FixtureRequest, folder: Path) -> Iterator[Callable[..., Harness]]:
    opened: list[HierarchicalFederation] = []

    def open_one(runtime: Literal["ray", "local"], /, **changes: Any) -> Harness:
        if runtime == "ray":
            request.getfixturevalue("ray_cluster")
        ledger = folder / f"ledger_{len(opened)}.sqlite"
        config = settings(ledger, **changes)
        opened.append(HierarchicalFederation(config, runtime=runtime, noise=SeededNoise(7)))
        made = Harness(opened[-1], runtime, ledger)
        made.register()
        return made

    yield open_one
    for federation in opened:
        federation.close()


@pytest.fixture
def open_config(tmp_path: Path) -> Callable[..., HierarchicalFederationConfig]:
    """``open_config(**settings)`` with a ledger of the test's own."""
    return lambda **changes: settings(tmp_path / "ledger.sqlite", **changes)
