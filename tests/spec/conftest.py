"""What the checklist shares: federations that several promises look at, on each runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.privacy.sampling.noise import SeededNoise

Open = Callable[..., HierarchicalFederation]


class StandingClock:
    """A clock for a whole module; it stands still until it is told to move."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def runtime(request: pytest.FixtureRequest) -> str:
    """As in tests/conftest.py, once a module: the promises of one story share its federation."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)


@pytest.fixture(scope="module")
def clock() -> StandingClock:
    return StandingClock()


@pytest.fixture(scope="module")
def open_federation(
    runtime: str, clock: StandingClock, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Open]:
    """Open federations from plain settings; all are closed with the module."""
    opened: list[HierarchicalFederation] = []

    def open_one(settings: dict[str, Any], **arguments: Any) -> HierarchicalFederation:
        ledger = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
        config = load(HierarchicalFederationConfig, {"ledger_path": str(ledger), **settings})
        given: dict[str, Any] = {"runtime": runtime, "clock": clock, "noise": SeededNoise(7), **arguments}
        opened.append(HierarchicalFederation(config, **given))
        return opened[-1]

    yield open_one
    for federation in opened:
        federation.close()
