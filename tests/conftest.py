"""What many tests share: a manual clock, and one Ray cluster for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


class ManualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One cluster on this machine; `HierarchicalFederation` finds the connection that exists."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def runtime(request: pytest.FixtureRequest) -> str:
    """Each runtime in turn, for tests that must hold on both."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    return str(request.param)
