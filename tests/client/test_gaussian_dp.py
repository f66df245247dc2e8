"""The accounting against 100-digit arithmetic, scipy and Google's dp-accounting."""

from __future__ import annotations

import math

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from scarcity_ray.errors import UsageError
from scarcity_ray.privacy import delta_of_mu, epsilon_of_mu, mu_of_gaussian, mu_of_pure
from scarcity_ray_client.accounting import gaussian_dp

mpmath.mp.dps = 110

MU = st.floats(-8, 3).map(lambda x: 10.0**x)
DELTA = st.floats(-300, -0.01).map(lambda x: 10.0**x)
EPSILON = st.floats(-9, 4).map(lambda x: 10.0**x)


def true_delta(mu, epsilon):
    mu, epsilon = mpmath.mpf(mu), mpmath.mpf(epsilon)
    a, b = epsilon / mu - mu / 2, epsilon / mu + mu / 2
    root = mpmath.sqrt(2)
    return (mpmath.erfc(a / root) - mpmath.exp(epsilon) * mpmath.erfc(b / root)) / 2


def root_offset(function, x):
    """How far above `x` the root of `function` lies, by one Newton step in exact arithmetic."""
    x = mpmath.mpf(x)
    h = x * mpmath.mpf(10) ** -14
    slope = (function(x + h) - function(x)) / h
    return float(-function(x) / slope)


@given(EPSILON, DELTA)
def test_calibrated_mu_is_never_above_the_truth(epsilon, delta):
    mu = mu_of_gaussian(epsilon, delta)
    goal = mpmath.log(mpmath.mpf(delta))
    below = root_offset(lambda x: mpmath.log(true_delta(x, epsilon)) - goal, mu) / mu
    assert 1e-12 <= below <= 3e-12
    assert true_delta(mu * math.sqrt(1 + 1e-12), epsilon) <= mpmath.mpf(delta)


@pytest.mark.parametrize("delta", [5e-324, 1e-300, 1e-5, 0.5, 1 - 1e-16])
def test_where_floats_have_no_room_mu_stays_on_the_safe_side(delta):
    greatest = mu_of_gaussian(1.7e308, delta)
    assert mu_of_gaussian(1e299, delta) < greatest == mu_of_gaussian(1e300, delta) < math.inf
    assert delta_of_mu(greatest, 1.7e308) <= delta
    least = mu_of_gaussian(1e-320, delta)
    assert least > 0.0
    assert true_delta(least, 1e-320) <= mpmath.mpf(delta)


def test_a_calibration_asked_for_again_is_not_worked_out_again(monkeypatch):
    mu = mu_of_gaussian(1.2345, 6.789e-6)
    monkeypatch.setattr(gaussian_dp, "monotone_root", pytest.fail)
    assert mu_of_gaussian(1.2345, np.float64(6.789e-6)) == mu
    for epsilon, delta in ((math.nan, 6.789e-6), (1.2345, 0.0), (-1.2345, 6.789e-6)):
        with pytest.raises(UsageError):
            mu_of_gaussian(epsilon, delta)


@given(MU, DELTA, st.floats(-12, 0))
def test_reported_epsilon_is_never_below_the_truth(mu, delta, closeness):
    if delta > delta_of_mu(mu, 0.0):
        # Just below delta(0), where epsilon is small beside mu.
        delta = delta_of_mu(mu, 0.0) * (1 - 10.0**closeness / 2)
    epsilon = epsilon_of_mu(mu, delta)
    if epsilon == 0:
        assert true_delta(mu, 0) <= mpmath.mpf(delta)
        return
    if epsilon > 1e5:
        return  # 110 digits do not hold e^epsilon Phi(-b) against Phi(-a)
    goal = mpmath.log(mpmath.mpf(delta))
    above = -root_offset(lambda x: mpmath.log(true_delta(mu, x)) - goal, epsilon)
    assert above > 0
    assert delta > 0.5 or above <= 1e-11 * max(epsilon, mu)


@given(st.floats(-8, math.log10(30)).map(lambda x: 10.0**x), st.floats(-12, 36))
def test_reported_delta_is_never_below_the_truth(mu, a):
    epsilon = mu * (a + mu / 2)
    if epsilon < 0:
        return
    truth = true_delta(mu, epsilon)
    reported = mpmath.mpf(delta_of_mu(mu, epsilon))
    assert reported >= min(truth, 1 - mpmath.mpf(2) ** -53)
    if truth > 1e-300:
        assert reported <= truth * (1 + mpmath.mpf(2e-12))


@given(st.floats(-30, 3).map(lambda x: 10.0**x))
def test_pure_mu_is_never_below_the_truth(epsilon):
    mu = mu_of_pure(epsilon)
    half = mpmath.mpf(mu) / 2
    tail = mpmath.erfc(half / mpmath.sqrt(2)) / 2
    excess = -mpmath.log(tail) - mpmath.log(1 + mpmath.exp(mpmath.mpf(epsilon)))
    mills = tail * mpmath.sqrt(2 * mpmath.pi) * mpmath.exp(half * half / 2)
    assert 0 < float(excess * mills / half) <= 1e-13


def test_agrees_with_scipys_normal_distribution():
    for mu in (0.01, 0.3, 1.0, 3.0):
        for epsilon in (0.0, 0.1, 1.0, 5.0):
            a, b = epsilon / mu - mu / 2, epsilon / mu + mu / 2
            assert delta_of_mu(mu, epsilon) == pytest.approx(
                norm.sf(a) - math.exp(epsilon) * norm.sf(b), rel=1e-9, abs=1e-15
            )
    for epsilon in (0.1, 1.0, 10.0):
        assert mu_of_pure(epsilon) == pytest.approx(-2 * norm.ppf(1 / (1 + math.exp(epsilon))), rel=1e-12)


def test_balle_and_wangs_calibration_is_reproduced():
    # sigma = 3.7306 for epsilon = 1, delta = 1e-5, sensitivity 1; the classic formula gives 4.8448.
    assert 1 / mu_of_gaussian(1.0, 1e-5) == pytest.approx(3.730632, abs=1e-6)


def test_the_figures_in_the_field_notes():
    message = mu_of_gaussian(0.5, 1e-6)
    assert epsilon_of_mu(message * math.sqrt(100), 1e-5) == pytest.approx(5.6, abs=0.05)
    assert epsilon_of_mu(message * math.sqrt(400), 1e-5) == pytest.approx(13.1, abs=0.05)
    hundred = math.sqrt(100) / 5
    assert epsilon_of_mu(hundred, 1e-5) == pytest.approx(9.9973, abs=1e-4)
    both = mu_of_gaussian(0.5, 1e-6) ** 2 + mu_of_gaussian(1.0, 1e-6) ** 2
    assert int(mu_of_gaussian(10.0, 1e-5) ** 2 / both) == 56


@pytest.mark.long
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(s, marks=pytest.mark.slow) for s in range(4, 40))]
)
def test_never_below_dp_accountings_pld_and_never_one_percent_above(seed):
    # Its replace-one figure is the add/remove one; with the sensitivity in mu, add/remove is what is meant.
    rng = np.random.default_rng(seed)
    sigmas = np.exp(rng.uniform(np.log(2), np.log(60), size=rng.integers(1, 6)))
    counts = rng.integers(1, 20, size=sigmas.size)
    delta = 10 ** rng.uniform(-9, -3)
    pld = PLDAccountant(
        dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4
    )
    for sigma, count in zip(sigmas, counts, strict=True):
        pld.compose(dp_accounting.GaussianDpEvent(float(sigma)), int(count))
    theirs = pld.get_epsilon(delta)
    ours = epsilon_of_mu(math.sqrt(float(np.sum(counts / sigmas**2))), delta)
    # PLD rounds each loss up to its grid: it may lie above the truth by half a step a composition.
    assert ours >= theirs - 1e-4 * counts.sum()
    assert ours <= theirs * 1.01 + 1e-9


def test_an_epsilon_dp_mechanism_is_covered_by_its_mu():
    # Randomised response composed k times against the Gaussian bound, exactly (binomial sums).
    epsilon, k = 0.7, 8
    p = math.exp(epsilon) / (1 + math.exp(epsilon))
    mu = math.sqrt(k) * mu_of_pure(epsilon)
    for target in (0.0, 0.5, 1.0, 2.0, 4.0):
        exact = sum(
            math.comb(k, j)
            * max(0.0, p**j * (1 - p) ** (k - j) - math.exp(target) * p ** (k - j) * (1 - p) ** j)
            for j in range(k + 1)
        )
        assert delta_of_mu(mu, target) >= exact - 1e-15


@pytest.mark.parametrize(
    ("function", "arguments", "value"),
    [
        (delta_of_mu, (0.0, 1.0), 0.0),
        (delta_of_mu, (math.inf, 1.0), 1.0),
        (delta_of_mu, (1.0, math.inf), 0.0),
        (delta_of_mu, (1e-300, 1.0), 0.0),
        (delta_of_mu, (1e200, 1.0), 1.0),
        (epsilon_of_mu, (0.0, 1e-5), 0.0),
        (epsilon_of_mu, (math.inf, 1e-5), math.inf),
        (epsilon_of_mu, (1.0, 0.0), math.inf),
        (epsilon_of_mu, (1.0, 1.0), 0.0),
        (epsilon_of_mu, (0.1, 0.5), 0.0),
        (epsilon_of_mu, (1e200, 1e-5), math.inf),
        (mu_of_gaussian, (math.inf, 1e-5), math.inf),
        (mu_of_pure, (0.0,), 0.0),
        (mu_of_pure, (math.inf,), math.inf),
    ],
)
def test_extremes(function, arguments, value):
    assert function(*arguments) == value


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (delta_of_mu, (-1.0, 1.0)),
        (delta_of_mu, (math.nan, 1.0)),
        (delta_of_mu, (1.0, -0.1)),
        (epsilon_of_mu, (1.0, 1.5)),
        (epsilon_of_mu, (1.0, math.nan)),
        (mu_of_gaussian, (1.0, 0.0)),
        (mu_of_gaussian, (1.0, 1.0)),
        (mu_of_gaussian, (math.nan, 1e-5)),
        (mu_of_pure, (-1.0,)),
    ],
)
def test_values_out_of_range_are_refused(function, arguments):
    with pytest.raises(UsageError, match="is not accepted"):
        function(*arguments)


def test_all_three_are_monotone():
    mus = np.logspace(-3, 2, 60)
    assert np.all(np.diff([epsilon_of_mu(mu, 1e-6) for mu in mus]) >= 0)
    assert np.all(np.diff([delta_of_mu(mu, 1.0) for mu in mus]) >= 0)
    assert np.all(np.diff([mu_of_gaussian(epsilon, 1e-6) for epsilon in np.logspace(-4, 3, 60)]) > 0)
