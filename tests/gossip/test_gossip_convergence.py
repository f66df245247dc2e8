"""Noise-free gossip reaches consensus at the rate of its graph."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray.gossip import PeerSampler

N = 24


def mixing_matrix(round_id: int, k: int) -> np.ndarray:
    """W of one gossip round of plain averages: row i gives client i's new state."""
    ids = [f"c{i:02}" for i in range(N)]
    sampler = PeerSampler(10, seed=0, basket_id="d_basket_0")
    for _ in range(round_id):
        sampler.advance_round()
    matrix = np.eye(N)
    for sender, row in enumerate(sampler.sample_all(ids, k)):
        matrix[row, sender] = 1.0
    return matrix / (k + 1)


def rate(matrix: np.ndarray) -> tuple[float, np.ndarray]:
    """Greatest contraction factor away from consensus, and the disagreement that shrinks the least."""
    _, singular, right = np.linalg.svd(matrix - 1.0 / N)
    return float(singular[0]), right[0]


def distance(states: np.ndarray) -> float:
    return float(np.linalg.norm(states - states.mean(axis=0)))


@pytest.mark.parametrize("mixing", ["noise_aware", "average", "clipped_gossip"])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_consensus_distance_falls_by_the_graphs_spectral_rate(make, gossip, mixing: str, k: int) -> None:
    protocol = make(dimension=8, peers_per_round=k, clip_norm=100.0, mixing=mixing)
    rng = np.random.Generator(np.random.PCG64DXSM(4))
    states = rng.standard_normal((N, 8)).astype(np.float32)
    for round_id in range(6):
        matrix = mixing_matrix(round_id, k)
        expected = matrix @ states.astype(float)
        before = distance(states)
        by_name = dict(zip([f"c{i:02}" for i in range(N)], states, strict=True))
        states = gossip(protocol, by_name, round_id=round_id, now=10.0 * round_id).states
        np.testing.assert_allclose(states, expected, atol=1e-5)
        assert distance(states) <= rate(matrix)[0] * before * (1 + 1e-5)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_the_slowest_disagreement_falls_by_exactly_that_rate(make, gossip, k: int) -> None:
    factor, slowest = rate(mixing_matrix(0, k))
    states = np.outer(slowest, np.ones(4)).astype(np.float32)
    by_name = dict(zip([f"c{i:02}" for i in range(N)], states, strict=True))
    after = gossip(make(peers_per_round=k, clip_norm=100.0, mixing="noise_aware"), by_name).states
    assert distance(after) == pytest.approx(factor * distance(states), rel=1e-5)
    assert k == 1 or factor < 1.0


def test_a_random_disagreement_falls_by_the_mean_of_the_squared_rates(make, gossip) -> None:
    k, d = 5, 4000
    matrix = mixing_matrix(0, k)
    squares = np.linalg.svd(matrix - 1.0 / N)[1] ** 2
    states = np.random.Generator(np.random.PCG64DXSM(6)).standard_normal((N, d)).astype(np.float32)
    by_name = dict(zip([f"c{i:02}" for i in range(N)], states, strict=True))
    after = gossip(make(dimension=d, peers_per_round=k, clip_norm=1e3, mixing="noise_aware"), by_name).states
    # the ratio of two chi-squared sums with 23 x 4000 degrees of freedom: 5 standard errors are 3 %
    assert (distance(after) / distance(states)) ** 2 == pytest.approx(squares.sum() / (N - 1), rel=0.03)
