"""zCDP's conversions against 60-digit arithmetic, dp-accounting, Gaussian DP and published relations."""

from __future__ import annotations

import math

import dp_accounting
import mpmath
import numpy as np
import pytest
from dp_accounting.rdp import RdpAccountant
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from scarcity_ray.errors import UsageError
from scarcity_ray_client.accounting.gaussian_dp import delta_of_mu, epsilon_of_mu, mu_of_gaussian
from scarcity_ray_client.accounting.modes import Accounting, mu_of_rho, rho_of_mu
from scarcity_ray_client.accounting.zcdp import delta_of_rho, epsilon_of_rho, rho_of_claim, rho_of_pure

DELTA = st.floats(-100, -0.001).map(lambda x: 10.0**x)
EPSILON = st.floats(-9, 4).map(lambda x: 10.0**x)
RHO = st.floats(-12, math.log10(500)).map(lambda x: 10.0**x)
NEIGHBOURS = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE


def best_order(derivative):
    """Where a rising function of log(alpha - 1) is zero, by bisection in 60 digits."""
    low, high = mpmath.mpf(-3000), mpmath.mpf(3000)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if derivative(middle) > 0 else (middle, high)
    return mpmath.exp(low)


def bound_on_epsilon(rho, delta):
    rho, goal = mpmath.mpf(rho), -mpmath.log(mpmath.mpf(delta))
    u = best_order(lambda t: rho * mpmath.exp(2 * t) + mpmath.log1p(mpmath.exp(t)) - goal)
    return (1 + u) * rho - mpmath.log1p(1 / u) + (goal - mpmath.log1p(u)) / u


def log_bound_on_delta(rho, epsilon):
    rho, epsilon = mpmath.mpf(rho), mpmath.mpf(epsilon)
    u = best_order(lambda t: (2 * mpmath.exp(t) + 1) * rho - epsilon - mpmath.log1p(mpmath.exp(-t)))
    return u * ((1 + u) * rho - epsilon) - u * mpmath.log1p(1 / u) - mpmath.log1p(u)


@given(EPSILON, DELTA)
def test_planned_rho_is_never_above_the_bound(epsilon, delta):
    with mpmath.workdps(60):
        rho = mpmath.mpf(rho_of_claim(epsilon, delta))
        here, step = bound_on_epsilon(rho, delta), rho * mpmath.mpf(10) ** -20
        slope = (bound_on_epsilon(rho + step, delta) - here) / step
        below = float((mpmath.mpf(epsilon) - here) / slope / rho)
        assert 4e-12 <= below <= 6e-12
        assert bound_on_epsilon(rho * (1 + mpmath.mpf(1e-12)), delta) <= epsilon


@given(RHO, DELTA)
def test_concentrated_epsilon_is_never_below_the_bound(rho, delta):
    with mpmath.workdps(60):
        bound = max(mpmath.mpf(0), bound_on_epsilon(rho, delta))
        reported = epsilon_of_rho(rho, delta)
        assert reported >= bound
        room = reported + 1 + rho + math.sqrt(-rho * math.log(delta))
        assert reported - bound <= 1e-12 * room


@given(RHO, st.floats(-1, 30))
@example(rho=100.0, deviations=-1.0)
def test_concentrated_delta_is_never_below_the_bound(rho, deviations):
    epsilon = rho + deviations * math.sqrt(2 * rho)
    assume(epsilon >= 0)
    with mpmath.workdps(60):
        bound = mpmath.exp(log_bound_on_delta(rho, epsilon))
        reported = mpmath.mpf(delta_of_rho(rho, epsilon))
        assert reported >= min(bound, 1 - mpmath.mpf(2) ** -53)
        if bound > 1e-300:
            assert reported <= bound * (1 + mpmath.mpf(1e-10))


@given(RHO, st.floats(-30, -0.01).map(lambda x: 10.0**x))
def test_no_order_gives_a_better_epsilon(rho, delta):
    # The formula as Canonne, Kamath and Steinke print it, over alpha, by scipy's minimiser.
    def at(log_u):
        alpha = 1 + math.exp(log_u)
        return alpha * rho + (math.log(1 / (alpha * delta)) + (alpha - 1) * math.log1p(-1 / alpha)) / (
            alpha - 1
        )

    found = minimize_scalar(at, bounds=(-12, 40), method="bounded", options={"xatol": 1e-9}).fun
    assert epsilon_of_rho(rho, delta) <= max(0.0, found) * (1 + 1e-9) + 1e-12


@pytest.mark.parametrize("seed", range(6))
def test_it_is_dp_accountings_rdp_epsilon_of_the_same_zcdp_events(seed):
    rng = np.random.default_rng(seed)
    rhos = np.exp(rng.uniform(np.log(1e-4), np.log(0.05), size=5))
    counts = rng.integers(1, 30, size=rhos.size)
    delta = 10 ** rng.uniform(-9, -3)
    # Orders as fine as ours are free: on its own coarse grid it may only be higher.
    orders = 1 + np.exp(np.linspace(math.log(0.05), math.log(3000), 3000))
    coarse, fine = RdpAccountant(), RdpAccountant(orders=orders.tolist())
    for rho, count in zip(rhos, counts, strict=True):
        for accountant in (coarse, fine):
            accountant.compose(dp_accounting.ZCDpEvent(float(rho)), int(count))
    ours = epsilon_of_rho(float(np.sum(rhos * counts)), delta)
    assert ours <= coarse.get_epsilon(delta) * (1 + 1e-9)
    assert ours == pytest.approx(fine.get_epsilon(delta), rel=1e-4)
    assert ours <= fine.get_epsilon(delta) * (1 + 1e-9)


@given(st.floats(-6, 2.5).map(lambda x: 10.0**x), st.floats(-60, -0.1).map(lambda x: 10.0**x), EPSILON)
def test_concentrated_claims_buy_less_than_gaussian_ones(mu, delta, epsilon):
    # Every Gaussian is both, and Gaussian DP is exact for it, so zCDP must say no better of it.
    assert epsilon_of_rho(rho_of_mu(mu), delta) >= epsilon_of_mu(mu, delta) * (1 - 1e-9) - 1e-9
    assert delta_of_rho(rho_of_mu(mu), epsilon) >= delta_of_mu(mu, epsilon) * (1 - 1e-9)
    assert Accounting.ZCDP.mu_of_claim(epsilon, delta) <= mu_of_gaussian(epsilon, delta)


@given(EPSILON, st.floats(-60, -0.1).map(lambda x: 10.0**x))
def test_both_modes_plan_below_and_report_above(epsilon, delta):
    for mode in Accounting:
        mu = mode.mu_of_claim(epsilon, delta)
        assert mode.epsilon_of(mu, delta) <= epsilon + 1e-9 * max(epsilon, mu)
        assert mode.delta_of(mu, epsilon) <= delta
        assert mode.epsilon_of(mu * 1.001, delta) > epsilon
        assert mode.delta_of(mu * 1.001, epsilon) > delta


def test_an_epsilon_dp_mechanism_is_covered_by_its_rho():
    # Randomised response, whose Renyi divergence of any order is a sum of two terms.
    for epsilon in (0.01, 0.3, 1.0, 4.0):
        p = math.exp(epsilon) / (1 + math.exp(epsilon))
        for alpha in (1.0001, 1.5, 2.0, 8.0, 64.0):
            moments = p**alpha * (1 - p) ** (1 - alpha) + (1 - p) ** alpha * p ** (1 - alpha)
            assert math.log(moments) / (alpha - 1) <= rho_of_pure(epsilon) * alpha * (1 + 1e-9)
    assert Accounting.ZCDP.mu_of_pure(0.7) == pytest.approx(0.7, rel=1e-12)
    assert rho_of_mu(Accounting.ZCDP.mu_of_pure(0.7)) >= rho_of_pure(0.7)
    assert rho_of_mu(mu_of_rho(0.3)) >= 0.3


@pytest.mark.parametrize(
    ("function", "arguments", "value"),
    [
        (delta_of_rho, (0.0, 1.0), 0.0),
        (delta_of_rho, (math.inf, 1.0), 1.0),
        (delta_of_rho, (1.0, math.inf), 0.0),
        (delta_of_rho, (1e-300, 1.0), 0.0),
        (delta_of_rho, (1e300, 1.0), 1.0),
        (epsilon_of_rho, (0.0, 1e-5), 0.0),
        (epsilon_of_rho, (math.inf, 1e-5), math.inf),
        (epsilon_of_rho, (1.0, 0.0), math.inf),
        (epsilon_of_rho, (1.0, 1.0), 0.0),
        (epsilon_of_rho, (1e-4, 0.5), 0.0),
        (rho_of_claim, (math.inf, 1e-5), math.inf),
        (rho_of_pure, (0.0,), 0.0),
        (rho_of_pure, (math.inf,), math.inf),
    ],
)
def test_extremes(function, arguments, value):
    assert function(*arguments) == value


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (delta_of_rho, (-1.0, 1.0)),
        (delta_of_rho, (math.nan, 1.0)),
        (delta_of_rho, (1.0, -0.1)),
        (epsilon_of_rho, (1.0, 1.5)),
        (epsilon_of_rho, (-1.0, 0.5)),
        (rho_of_claim, (1.0, 0.0)),
        (rho_of_claim, (1.0, 1.0)),
        (rho_of_claim, (math.nan, 1e-5)),
        (rho_of_pure, (-1.0,)),
    ],
)
def test_values_out_of_range_are_refused(function, arguments):
    with pytest.raises(UsageError, match="is not accepted"):
        function(*arguments)
