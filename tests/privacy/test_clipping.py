"""Adaptive clipping's arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.privacy import SeededNoise
from scarcity_ray.privacy.clipping import adapted_clip_norm, update_mu


@given(st.floats(1e-3, 10), st.floats(1.0001, 1e3))
def test_update_and_bit_compose_to_the_whole(mu, factor):
    bit_sigma = factor / mu
    rest = update_mu(mu, bit_sigma)
    assert 0 < rest < mu or (rest == mu and factor > 1e7)
    assert math.hypot(rest, 1 / bit_sigma) == pytest.approx(mu, rel=1e-12)


def test_the_papers_formula_in_its_own_units():
    # z = 2 / mu in add-or-remove units: z_D = (z^-2 - (2 sigma_b)^-2)^-1/2, and sigma_b = 2.5 z takes 4 %.
    mu, bit_sigma = 0.5, 10.0
    z = 2 / mu
    assert 2 / update_mu(mu, bit_sigma) == pytest.approx((z**-2 - (2 * bit_sigma) ** -2) ** -0.5)
    assert 1 - (update_mu(mu, 2.5 * z) / mu) ** 2 == pytest.approx(0.04)


def test_no_claim_leaves_no_claim():
    assert update_mu(math.inf, 5.0) == math.inf


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_clip_norm_finds_the_quantile(quantile, start):
    norms = np.sort(np.random.default_rng(1).lognormal(0.0, 0.7, 400))
    noise, clip_norm, path = SeededNoise(2), start, []
    for k in range(300):
        bits = np.sum(norms <= clip_norm) + 5.0 * noise.standard_normal(1, f"bit/{k}")[0]
        clip_norm = adapted_clip_norm(clip_norm, bits / norms.size, quantile=quantile)
        path.append(clip_norm)
    settled = np.exp(np.mean(np.log(path[-50:])))
    assert np.quantile(norms, max(0, quantile - 0.05)) < settled < np.quantile(norms, min(1, quantile + 0.05))


def test_the_step_is_geometric_and_bounded():
    assert adapted_clip_norm(2.0, 0.5) == 2.0
    assert adapted_clip_norm(2.0, 1.0) == pytest.approx(2.0 * math.exp(-0.1))
    assert adapted_clip_norm(2.0, 0.0) == pytest.approx(2.0 * math.exp(0.1))
    assert adapted_clip_norm(2.0, 1e9) == adapted_clip_norm(2.0, 1.0)
    assert adapted_clip_norm(2.0, -math.inf) == adapted_clip_norm(2.0, 0.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: update_mu(0.0, 1.0),
        lambda: update_mu(1.0, 1.0),
        lambda: update_mu(1.0, math.nan),
        lambda: adapted_clip_norm(0.0, 0.5),
        lambda: adapted_clip_norm(1.0, math.nan),
        lambda: adapted_clip_norm(1.0, 0.5, quantile=1.5),
        lambda: adapted_clip_norm(1.0, 0.5, learning_rate=0.0),
    ],
)
def test_values_out_of_range_are_refused(call):
    with pytest.raises(UsageError, match="is not accepted"):
        call()
