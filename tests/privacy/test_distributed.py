"""Noise in shares: the claim against exact convolutions, and the scale against the claim."""

from __future__ import annotations

import functools
import math

import mpmath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.privacy.accounting.zcdp import LEAST_SIGMA, departure, rho_of_shares, share_sigma

mpmath.mp.dps = 60
ORDERS = [mpmath.mpf("1.0001"), mpmath.mpf("1.5"), 2, 3, 8]


def reach_of(sigma):
    """Each share is cut off here; the sum up to here is right to more than 20 digits."""
    return int(30 * sigma) + 20


@functools.cache
def law_of_sum(sigma, num_shares):
    """The sum of shares at -reach..reach, point by point."""
    reach = reach_of(sigma)
    weights = [
        mpmath.exp(-mpmath.mpf(x * x) / (2 * mpmath.mpf(sigma) ** 2)) for x in range(-reach, reach + 1)
    ]
    whole = mpmath.fsum(weights)
    one = [weight / whole for weight in weights]
    law = one
    for _ in range(num_shares - 1):
        out = [mpmath.mpf(0)] * (len(law) + len(one) - 1)
        for i, p in enumerate(law):
            for j, q in enumerate(one):
                out[i + j] += p * q
        law = out
    middle = len(law) // 2
    return law[middle - reach : middle + reach + 1]


def divergence(law, shift, order):
    """Renyi divergence of a law on the integers from itself shifted."""
    pairs = [(law[i], law[i - shift]) for i in range(shift, len(law))]
    return mpmath.log(mpmath.fsum(p**order * q ** (1 - order) for p, q in pairs)) / (order - 1)


@pytest.mark.long
@pytest.mark.parametrize("sigma", [0.5, 0.6, 0.75, 1.0, 1.5])
@pytest.mark.parametrize("num_shares", [1, 2, 3, 5])
def test_the_exact_divergence_is_below_the_claim(sigma, num_shares):
    law = law_of_sum(sigma, num_shares)
    for shift in (1, 2, 3):
        for order in ORDERS:
            exact = divergence(law, shift, order)
            assert exact <= order * rho_of_shares(sigma, num_shares, shift, 1)
            # Many coordinates that change alike: divergences of independent coordinates add up.
            claim = rho_of_shares(sigma, num_shares, shift * math.sqrt(9), 9)
            assert 9 * exact <= order * claim


def test_without_the_departure_the_claim_would_be_false():
    exact = divergence(law_of_sum(0.5, 5), 1, ORDERS[0])
    assert exact > 1.1 * ORDERS[0] * 0.5 / (5 * 0.25)
    assert exact <= ORDERS[0] * rho_of_shares(0.5, 5, 1.0, 1)


@pytest.mark.parametrize("sigma", [0.5, 0.6, 1.0])
@pytest.mark.parametrize("num_shares", [2, 3, 5])
def test_the_sum_is_as_near_to_a_discrete_gaussian_as_is_said(sigma, num_shares):
    law = law_of_sum(sigma, num_shares)
    reach = reach_of(sigma)
    width = 2 * mpmath.mpf(num_shares) * mpmath.mpf(sigma) ** 2
    theta = mpmath.fsum(mpmath.exp(-mpmath.mpf(x * x) / width) for x in range(-9 * reach, 9 * reach + 1))
    ratios = [
        abs(mpmath.log(law[reach + x] * theta) + mpmath.mpf(x * x) / width) for x in range(-reach, reach + 1)
    ]
    worst, bound = max(ratios), departure(sigma, num_shares) / 2
    assert worst <= bound
    assert num_shares > 2 or worst >= bound / 4, "the bound is of the right order"


@given(
    rho=st.floats(1e-9, 50.0),
    num_shares=st.integers(1, 400),
    sensitivity=st.floats(1e-3, 1e9),
    dimension=st.integers(1, 10**8),
)
def test_the_scale_keeps_the_claim(rho, num_shares, sensitivity, dimension):
    sigma = share_sigma(rho, num_shares, sensitivity, dimension)
    assert rho_of_shares(sigma, num_shares, sensitivity, dimension) <= rho
    less = sigma * (1 - 1e-9)
    if num_shares == 1 or less >= LEAST_SIGMA:
        assert rho_of_shares(less, num_shares, sensitivity, dimension) > rho
    # Noise in shares is never below central noise.
    assert sigma * math.sqrt(num_shares) >= sensitivity / math.sqrt(2 * rho)
    if num_shares == 1:
        assert sigma == pytest.approx(sensitivity / math.sqrt(2 * rho), rel=1e-9)


@given(
    sigma=st.floats(0.5, 1e6),
    num_shares=st.integers(1, 60),
    sensitivity=st.just(0.0) | st.floats(1e-100, 1e6),
    dimension=st.integers(1, 10**7),
    more=st.floats(1.001, 10.0),
)
def test_claim_falls_with_sigma_and_rises_with_sensitivity_and_length(
    sigma, num_shares, sensitivity, dimension, more
):
    rho = rho_of_shares(sigma, num_shares, sensitivity, dimension)
    assert rho_of_shares(sigma * more, num_shares, sensitivity, dimension) <= rho
    assert rho_of_shares(sigma, num_shares, sensitivity * more, dimension) >= rho
    assert rho_of_shares(sigma, num_shares, sensitivity, math.ceil(dimension * more)) >= rho
    assert rho >= sensitivity**2 / (2 * num_shares * sigma**2)


def test_one_share_is_the_discrete_gaussian():
    assert departure(0.01, 1) == 0.0
    assert rho_of_shares(0.25, 1, 1.0, 10**6) == pytest.approx(8.0, rel=1e-11)


def test_departure_is_the_published_sum():
    for sigma, num_shares in [(0.5, 2), (0.7, 7), (1.3, 40)]:
        terms = [
            10 * mpmath.exp(-2 * (mpmath.pi * sigma) ** 2 * mpmath.mpf(k) / (k + 1))
            for k in range(1, num_shares)
        ]
        assert departure(sigma, num_shares) == pytest.approx(float(mpmath.fsum(terms)), rel=1e-13)
    assert departure(9.0, 500) < 1e-300


def test_no_claim_needs_no_noise():
    assert share_sigma(math.inf, 3, 1.0, 10) == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: departure(0.4, 2),
        lambda: departure(1.0, 0),
        lambda: departure(math.nan, 2),
        lambda: rho_of_shares(0.0, 1, 1.0, 1),
        lambda: rho_of_shares(1.0, 0, 1.0, 1),
        lambda: rho_of_shares(1.0, 1, -1.0, 1),
        lambda: rho_of_shares(1.0, 1, 1.0, 0),
        lambda: share_sigma(0.0, 1, 1.0, 1),
        lambda: share_sigma(1.0, 0, 1.0, 1),
        lambda: share_sigma(1.0, 1, 0.0, 1),
        lambda: share_sigma(math.nan, 1, 1.0, 1),
    ],
)
def test_what_makes_no_sense_is_refused(call):
    with pytest.raises(UsageError):
        call()
