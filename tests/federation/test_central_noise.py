"""The noise on a release has the planned scale, and the plan's scale is the claim's.

Two-sided chi-square test on all coordinates of one release at a false-alarm rate of 1e-6; a scale off by 3/2
(either way) is rejected with near certainty at this many coordinates.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from scarcity_ray import HierarchicalFederation
from scarcity_ray.privacy.sampling.noise import SeededNoise, SystemNoise

DIMENSION = 8000
EPSILON, DELTA = 1.0, 1e-5
FALSE_ALARM = 1e-6
CLIP = 1.0
SIZES = {"a": 6, "b": 9, "c": 12}
BYZANTINE = 2


class ScaledNoise:
    """Noise whose scale is wrong by a factor."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.source = SeededNoise(11)

    def standard_normal(self, shape: Any, stream: str) -> Any:
        return self.factor * self.source.standard_normal(shape, stream)

    def uniform_words(self, stream: str) -> Any:
        return self.source.uniform_words(stream)


def gaussian_delta(mu: float) -> float:
    """Delta at EPSILON of a Gaussian mechanism (Balle, Wang 2018, theorem 5), by scipy."""
    above = stats.norm.cdf(mu / 2.0 - EPSILON / mu)
    return float(above - math.exp(EPSILON) * stats.norm.cdf(-mu / 2.0 - EPSILON / mu))


def claimed_sigma(method: str) -> float:
    """Sensitivity over mu, from the definitions alone."""
    mu = optimize.brentq(lambda m: gaussian_delta(m) - DELTA, 1e-6, 10.0, xtol=1e-14)
    rule = {
        "mean": lambda n: 2.0 * CLIP / n,
        "trimmed_mean": lambda n: 2.0 * CLIP / (n - 2 * BYZANTINE),
        "krum": lambda n: 2.0 * CLIP,
    }[method]
    members = sum(SIZES.values())
    return max(size / members * rule(size) for size in SIZES.values()) / mu


def released(method: str, noise: Any, open_federation: Any) -> tuple[HierarchicalFederation, Any]:
    """A release, and how far it is from the same without noise."""
    fed: HierarchicalFederation = open_federation(
        {
            "vector_dim": DIMENSION,
            "auto_aggregate": False,
            "gossip_budget_share": 0.0,
            "basket": {"min_clients": 6 if method == "trimmed_mean" else 7},
            "layer1": {
                "aggregation_method": method,
                "num_byzantine": 0 if method == "mean" else BYZANTINE,
                "clip_norm": CLIP,
            },
            "layer2": {"central_dp_epsilon": EPSILON, "central_dp_delta": DELTA, "clip_norm": CLIP},
        },
        noise=noise,
    )
    rng = np.random.default_rng(4)
    for domain, size in SIZES.items():
        for i in range(size):
            fed.register_client(f"{domain}{i}", domain)
            assert fed.submit_update(f"{domain}{i}", rng.normal(size=DIMENSION) / 100.0)
    model = fed.force_aggregate()
    assert model is not None
    members = sum(SIZES.values())
    plain = sum(
        size / members * np.asarray(fed.get_basket_model(domain), np.float64)
        for domain, size in SIZES.items()
    )
    return fed, model.astype(np.float64) - plain


def passes(residual: Any, sigma: float) -> bool:
    """Whether the residual's sum of squares is what Gaussian noise of scale `sigma` has."""
    statistic = float(np.sum((residual / sigma) ** 2))
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], DIMENSION)
    return bool(low <= statistic <= high)


@pytest.mark.parametrize("method", ["mean", "trimmed_mean"])
def test_the_central_noise_has_the_claimed_scale(method: str, open_federation: Any) -> None:
    fed, residual = released(method, SystemNoise(), open_federation)
    sigma = claimed_sigma(method)
    planned = fed.get_global_meta_model().noise_sigma
    # The grid may add a step a coordinate to the sensitivity: sqrt(d) steps of 2^-22.
    assert sigma <= planned <= sigma * 1.01
    assert passes(residual, planned)
    assert passes(residual, sigma)
    # Noise of the right size at every coordinate, none correlated with its neighbour.
    assert abs(float(np.corrcoef(residual[:-1], residual[1:])[0, 1])) < 5.0 / math.sqrt(DIMENSION)
    assert stats.kstest(residual / planned, "norm").pvalue > FALSE_ALARM


@pytest.mark.parametrize("factor", [1.5, 1 / 1.5])
def test_the_test_rejects_a_scale_off_by_three_halves(factor: float, open_federation: Any) -> None:
    _, right = released("mean", ScaledNoise(1.0), open_federation)
    _, wrong = released("mean", ScaledNoise(factor), open_federation)
    assert passes(right, claimed_sigma("mean"))
    assert not passes(wrong, claimed_sigma("mean"))


def test_two_releases_have_independent_noise(open_federation: Any) -> None:
    _, first = released("mean", SystemNoise(), open_federation)
    _, second = released("mean", SystemNoise(), open_federation)
    assert abs(float(np.corrcoef(first, second)[0, 1])) < 5.0 / math.sqrt(DIMENSION)
