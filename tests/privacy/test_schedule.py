"""A budget spent unevenly: against sums added up by hand, the accountant, and a numerical search."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.schedule import NoiseSchedule, Step

DECAYS = st.floats(0.01, 0.999)
MUS = st.floats(1e-3, 10.0)


def spend_all(accountant: PrivacyAccountant, schedule: NoiseSchedule) -> list[float]:
    """Charge releases until one is refused; what each was charged."""
    charged = []
    while accountant.spend_release(mu := schedule.mu(accountant.step)):
        charged.append(mu)
        assert len(charged) < 10_000
    return charged


@given(DECAYS, st.integers(1, 60), st.floats(0.0, 0.9), MUS, st.floats(0.1, 20.0))
def test_the_steps_add_up_to_the_cap(
    decay: float, planned: int, share: float, mu: float, epsilon: float
) -> None:
    accountant = PrivacyAccountant(epsilon, 1e-5, gossip_share=share, delta_reserve=0.0)
    cap = accountant.step.cap
    schedule = NoiseSchedule(math.sqrt(cap / planned), decay)
    charged = spend_all(accountant, schedule)
    assert len(charged) == planned == schedule.num_releases(cap)
    assert math.fsum(m * m for m in charged) == pytest.approx(cap, rel=1e-11)
    assert all(a < b for a, b in itertools.pairwise(charged))
    if planned > 1:
        assert charged[0] / charged[-1] == pytest.approx(decay, rel=1e-9), "sigma is inverse to mu"
        ratios = np.diff(np.log(charged))
        assert np.allclose(ratios, ratios[0], rtol=1e-6, atol=1e-9)
    for number, m in enumerate(charged):
        assert schedule.mu(schedule.step_of(cap, number)) == pytest.approx(m, rel=1e-9)
    for rounds in (1, planned):
        energy = math.fsum((charged[0] / m) ** 2 for m in charged[:rounds])
        assert schedule.noise_energy(cap, float(rounds)) == pytest.approx(energy, rel=1e-9)
    # A renewal begins it anew, with the new period's cap.
    accountant.renew(2.0 * epsilon, 1e-5)
    again = accountant.step
    assert (again.number, again.left) == (0, again.cap)
    assert schedule.num_releases(again.cap) > planned
    whole = spend_all(accountant, schedule)
    assert math.fsum(m * m for m in whole) == pytest.approx(again.cap, rel=1e-11)


@given(DECAYS, st.integers(1, 30), st.lists(st.floats(0.0, 0.3), max_size=40))
def test_what_is_left_buys_the_steps_that_are_counted(
    decay: float, planned: int, foreign: list[float]
) -> None:
    """Also after charges of another configuration; and `no_step_is_charged_less_than_the_first`."""
    accountant = PrivacyAccountant(3.0, 1e-6, delta_reserve=0.0)
    cap = accountant.step.cap
    schedule = NoiseSchedule(math.sqrt(cap / planned), decay)
    first = schedule.mu(accountant.step)
    for share in foreign:
        accountant.spend_release(math.sqrt(cap) * share)
    left = schedule.num_left(accountant.step)
    charged = spend_all(accountant, schedule)
    assert len(charged) == left if not foreign else len(charged) >= left
    assert all(mu >= first * (1.0 - 1e-9) for mu in charged)


test_no_step_is_charged_less_than_the_first = test_what_is_left_buys_the_steps_that_are_counted


def test_a_release_that_was_charged_and_lost_has_used_its_step() -> None:
    schedule = NoiseSchedule(0.1, 0.3)
    step = Step(0, 0.1, 0.1)
    kept, lost = [], 4
    for number in range(10):
        mu = schedule.mu(step)
        if number != lost:
            kept.append(mu)
        step = Step(number + 1, 0.1, max(0.0, step.left - mu * mu))
    assert schedule.num_left(step) == 0.0
    steps = [schedule.mu(schedule.step_of(0.1, k)) for k in range(10)]
    assert kept == pytest.approx(steps[:lost] + steps[lost + 1 :])


@pytest.mark.parametrize(("contraction", "rounds"), [(0.8, 8), (0.95, 30)])
def test_the_geometric_schedule_is_optimal_for_a_contraction(contraction: float, rounds: int) -> None:
    weights = contraction ** (2.0 * np.arange(rounds)[::-1])

    def noise(log_mu_squared: np.ndarray) -> float:
        mu_squared = np.exp(log_mu_squared)
        return float(np.sum(weights / (mu_squared / mu_squared.sum())))

    found = minimize(noise, np.zeros(rounds), method="BFGS").fun
    decay = contraction ** ((rounds - 1) / 2.0)
    schedule = NoiseSchedule(1.0, decay)
    mus = np.array([schedule.mu(schedule.step_of(float(rounds), k)) for k in range(rounds)])
    assert noise(np.log(mus**2)) == pytest.approx(found, rel=1e-4)
    assert noise(np.zeros(rounds)) > 1.1 * found


@given(MUS, st.integers(0, 50))
def test_without_decay_every_release_is_charged_the_same(mu: float, number: int) -> None:
    schedule = NoiseSchedule(mu)
    step = Step(number, 3.0, 1.0)
    assert schedule.mu(step) == mu
    assert schedule.num_left(step) == math.floor(1.0 / mu**2 * (1 + 1e-12))
    assert schedule.accepts(mu / 3.0, None), "whether it fits is the accountant's to say"
    assert not schedule.accepts(mu, step)


def test_a_malformed_step_is_no_step() -> None:
    schedule = NoiseSchedule(0.1, 0.5)
    good = Step(3, 1.0, 0.5)
    assert schedule.accepts(schedule.mu(good), good)
    assert not schedule.accepts(1.001 * schedule.mu(good), good)
    assert not schedule.accepts(0.1, None)
    for bad in (
        Step(-1, 1.0, 0.5),
        Step(True, 1.0, 0.5),
        Step(3, 1.0, 1.5),
        Step(3, math.inf, 0.5),
        Step(3, 1.0, math.nan),
        Step("3", 1.0, 0.5),  # type: ignore[arg-type]
    ):
        assert not bad.is_formed
        assert not schedule.accepts(0.1, bad)
