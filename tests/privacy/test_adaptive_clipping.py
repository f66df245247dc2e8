"""Adaptive clipping's arithmetic: the paper's formulas, the size of a step, where it settles, and liars."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.privacy import SeededNoise
from scarcity_ray.privacy.adaptive_clipping import BIT_SHARE, adapted_clip_norm, bit_radius

BASKETS = st.lists(
    st.tuples(st.floats(0.01, 1), st.floats(1e-6, 1e6), st.integers(1, 10**6)), min_size=1, max_size=8
)


def joint(baskets, radius):
    """The sensitivity of the weighted mean with the bits."""
    return max(w * math.hypot(delta, radius / n) for w, delta, n in baskets)


@pytest.mark.parametrize("count", [1, 4, 33])
@pytest.mark.parametrize("mu", [0.05, 1.0, 7.0])
def test_the_joint_noise_is_larger_by_the_papers_factor(count, mu):
    # The paper's units: z of the whole, add-or-remove; sigma_b on the sum of all the clients' bits.
    rows, delta = 13, 0.22
    baskets = [(1 / count, delta, rows)] * count
    radius = bit_radius(baskets)
    sigma = joint(baskets, radius) / mu
    z = 2.0 / mu
    sigma_b = sigma / radius * count * rows
    z_d = 2.0 * sigma / (delta / count)
    assert sigma_b == pytest.approx(2.5 * z, rel=1e-9)
    assert z_d == pytest.approx((z**-2 - (2 * sigma_b) ** -2) ** -0.5, rel=1e-9)
    assert math.hypot(2.0 / z_d, 1.0 / sigma_b) == pytest.approx(mu, rel=1e-9)


@given(baskets=BASKETS)
def test_bits_never_make_the_noise_grow_by_more_and_no_larger_radius_would_do(baskets):
    radius = bit_radius(baskets)
    most = joint(baskets, 0.0) / math.sqrt(1.0 - BIT_SHARE)
    assert joint(baskets, radius) <= most * (1 + 1e-9)
    assert joint(baskets, 1.001 * radius) > most * (1 - 1e-9)


def test_baskets_without_weight_set_no_radius():
    assert bit_radius([(0.0, 5.0, 1), (1.0, 1.0, 9)]) == bit_radius([(1.0, 1.0, 9)]) > 0
    assert bit_radius([]) == bit_radius([(0.0, 1.0, 3)]) == 0.0


def settled(norms, quantile, start, liars=0, lie=0.0, rate=0.2, sigma=5.0):
    """Where C settles when `liars` more clients send the bit `lie`."""
    noise, clip_norm, path = SeededNoise(2), start, []
    for k in range(400):
        bits = np.sum(norms <= clip_norm) + liars * lie + sigma * noise.standard_normal(1, f"bit/{k}")[0]
        share = bits / (norms.size + liars)
        clip_norm = adapted_clip_norm(clip_norm, share, quantile=quantile, learning_rate=rate)
        path.append(clip_norm)
    return float(np.exp(np.mean(np.log(path[-50:]))))


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("start", [0.01, 100.0])
def test_the_clip_norm_finds_the_quantile(quantile, start):
    norms = np.random.default_rng(1).lognormal(0.0, 0.7, 400)
    found = settled(norms, quantile, start)
    assert np.quantile(norms, max(0, quantile - 0.05)) < found < np.quantile(norms, min(1, quantile + 0.05))


@pytest.mark.parametrize("lie", [0.0, 1.0])
def test_liars_shift_the_quantile_by_their_share(lie):
    norms = np.random.default_rng(1).lognormal(0.0, 0.7, 400)
    phi = 0.2
    found = settled(norms, 0.5, 1.0, liars=100, lie=lie)
    expected = (0.5 - phi * lie) / (1 - phi)
    assert np.quantile(norms, expected - 0.05) < found < np.quantile(norms, expected + 0.05)


@given(st.floats(1e-3, 1e3), st.floats(allow_nan=False), st.floats(0.01, 0.99), st.floats(0.01, 1))
def test_a_step_of_the_clip_norm_is_bounded(clip_norm, share, quantile, rate):
    step = adapted_clip_norm(clip_norm, share, quantile=quantile, learning_rate=rate) / clip_norm
    assert math.exp(-rate * (1 - quantile)) * (1 - 1e-12) <= step <= math.exp(rate * quantile) * (1 + 1e-12)


def test_the_step_is_geometric():
    assert adapted_clip_norm(2.0, 0.5) == 2.0
    assert adapted_clip_norm(2.0, 1.0) == pytest.approx(2.0 * math.exp(-0.1))
    assert adapted_clip_norm(2.0, 0.0) == pytest.approx(2.0 * math.exp(0.1))
    assert adapted_clip_norm(2.0, 1e9) == adapted_clip_norm(2.0, 1.0)
    assert adapted_clip_norm(2.0, -math.inf) == adapted_clip_norm(2.0, 0.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: adapted_clip_norm(0.0, 0.5),
        lambda: adapted_clip_norm(1.0, math.nan),
        lambda: adapted_clip_norm(1.0, 0.5, quantile=1.5),
        lambda: adapted_clip_norm(1.0, 0.5, learning_rate=0.0),
    ],
)
def test_values_out_of_range_are_refused(call):
    with pytest.raises(UsageError, match="is not accepted"):
        call()
