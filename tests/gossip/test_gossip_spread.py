"""What released vectors say about the spread of the states, and what liars can make them say."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from scarcity_ray.gossip import estimate_spread
from scarcity_ray.gossip.mixing import DEPENDENCE, successive_differences
from scarcity_ray.plan import GossipPlan


def random(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64DXSM(seed))


def plan(sigma: float, dimension: int, clip_norm: float = 1.0) -> GossipPlan:
    return GossipPlan(1.0, 1.0, 0.0, sigma, clip_norm, dimension)


def released(m: int, d: int, spread: float, sigma: float, seed: int) -> list[np.ndarray]:
    rng = random(seed)
    states = math.sqrt(spread / d) * rng.standard_normal((m, d)) + 0.1
    return list((states + sigma * rng.standard_normal((m, d))).astype(np.float32))


@given(st.integers(0, 12), st.integers(1, 500), st.integers(0, 2**32))
def test_successive_differences_are_those_of_the_definition(m: int, d: int, seed: int) -> None:
    vectors = random(seed).standard_normal((m, d)).astype(np.float32)
    scales = random(seed + 1).random(m)
    found = successive_differences(list(vectors), scales, 2.0)
    scaled = vectors * scales[:, None] / 2.0
    expected = ((scaled - np.roll(scaled, 1, axis=0)) ** 2).sum(axis=1)[: m if m > 2 else max(0, m - 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("m", "d"), [(2, 64), (10, 16), (50, 64), (100, 200)])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_without_spread_the_lower_bound_is_0_but_for_one_time_in_a_hundred(
    m: int, d: int, share: float
) -> None:
    # 14 or more of 300 at a probability of 1 % happen with probability below 1e-6
    f, numbers, ones = int(share * m / 2), plan(5.0, d), np.ones(m)
    found = [estimate_spread(released(m, d, 0.0, 5.0, s), ones, numbers, f).lower for s in range(300)]
    assert np.count_nonzero(found) <= 13


@pytest.mark.parametrize(("sigma", "spread"), [(0.0, 0.25), (0.02, 0.25), (0.1, 0.5)])
def test_a_spread_above_the_noise_is_found(sigma: float, spread: float) -> None:
    m, d = 200, 64
    numbers = plan(sigma, d)
    found = estimate_spread(released(m, d, spread, sigma, 1), np.ones(m), numbers, 0)
    error = DEPENDENCE * (spread + numbers.noise_energy) * math.sqrt(2 / (d * m))
    assert abs(found.lower - spread) <= 8 * error
    assert found.typical == pytest.approx(2 * spread + numbers.noise_energy, rel=0.1)


@given(st.integers(8, 40), st.floats(0, 2), st.sampled_from(["far", "same", "own"]), st.integers(0, 2**32))
def test_liars_cannot_lift_the_lower_bound_above_the_honest_median(
    m: int, sigma: float, lie: str, seed: int
) -> None:
    d, f = 32, m // 5
    numbers, rng = plan(sigma, d), random(seed)
    vectors = released(m, d, 0.3, sigma, seed)
    honest = np.sort(successive_differences(vectors, np.ones(m), 1.0)) / 2
    bad = rng.permutation(m)[:f].tolist()
    for place in bad:
        vectors[place] = {
            "far": 100.0 * rng.standard_normal(d).astype(np.float32),
            "same": vectors[bad[0]],
            "own": np.zeros(d, np.float32),
        }[lie]
    told = estimate_spread(vectors, np.ones(m), numbers, f)
    spoiled = {p for place in bad for p in (place, (place + 1) % m)}
    left = np.sort(successive_differences(vectors, np.ones(m), 1.0)[sorted(set(range(m)) - spoiled)]) / 2
    assert told.lower <= max(0.0, left[len(left) // 2] - 0.8 * numbers.noise_energy) + 1e-9
    assert told.lower <= numbers.clip_norm**2
    assert len(honest) == m


def test_too_few_vectors_say_nothing() -> None:
    vectors = released(4, 8, 0.5, 0.0, 0)
    for few, f in ((vectors[:0], 0), (vectors[:1], 0), (vectors[:2], 1), (vectors, 2)):
        found = estimate_spread(few, np.ones(len(few)), plan(0.0, 8), f)
        assert (found.lower, found.typical) == (0.0, 0.0)
