from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from scarcity_ray.config import GossipConfig
from scarcity_ray.gossip import GossipOutcome, GossipProtocol
from scarcity_ray.plan import GossipPlan
from scarcity_ray.privacy.sampling.noise import NoiseSource, SeededNoise


class CountingNoise:
    """Seeded noise that remembers how often each stream was drawn from."""

    def __init__(self, seed: int = 0) -> None:
        self.drawn: Counter[str] = Counter()
        self._source = SeededNoise(seed)

    def standard_normal(self, shape: int | Sequence[int], stream: str) -> np.ndarray:
        self.drawn[stream] += 1
        return self._source.standard_normal(shape, stream)


Make = Callable[..., GossipProtocol]


@pytest.fixture
def noise() -> CountingNoise:
    return CountingNoise()


@pytest.fixture
def make(noise: CountingNoise) -> Make:
    def build(
        dimension: int = 4,
        sigma_drift: float = 0.0,
        sigma_vector: float = 0.0,
        source: NoiseSource = noise,
        basket_id: str = "d_basket_0",
        **config: object,
    ) -> GossipProtocol:
        settings = GossipConfig(**{"push_drift_threshold": 0.0, **config})
        plan = GossipPlan(
            mu_drift=1.0,
            mu_vector=1.0,
            sigma_drift=sigma_drift,
            sigma_vector=sigma_vector,
            clip_norm=settings.clip_norm,
            dimension=dimension,
        )
        return GossipProtocol(settings, plan, basket_id, source)

    return build


@pytest.fixture
def gossip() -> Callable[..., GossipOutcome]:
    """Run one gossip round in which every charge is allowed."""

    def run(
        protocol: GossipProtocol,
        states: dict[str, np.ndarray],
        round_id: int = 0,
        now: float = 0.0,
        members: Sequence[str] | None = None,
    ) -> GossipOutcome:
        ids = sorted(states)
        members = ids if members is None else members
        rows = [np.asarray(states[i], dtype=np.float32) for i in ids]
        matrix = np.stack(rows) if rows else np.empty((0, protocol.plan.dimension), np.float32)
        to_test = protocol.begin(ids, matrix, round_id, now, num_members=len(members))
        return protocol.exchange(protocol.test_drift(to_test), members, now)

    return run
