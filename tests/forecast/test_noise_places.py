"""Where the noise for a person is added, and how to train under it: against simulated descents."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from scarcity_ray.config import HierarchicalFederationConfig, Layer2Config, PrivacyConfig, PrivacyUnit
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast import Forecast, solve_for_rounds
from scarcity_ray.forecast.choosing import Likeness
from scarcity_ray.forecast.noise_places import (
    MOMENTA,
    STEPS,
    Disturbance,
    Place,
    best_training,
    choose_places,
    measured_kappa,
    proven_kappa,
    recommended_place,
    remaining,
    site_sigma,
    with_central_noise,
    with_site_noise,
)
from scarcity_ray.plan import make_plan
from scarcity_ray.robust.rules.tolerance import TOLERANCE, least_kappa


def federation(persons=500, epsilon=3.0, dimension=30, **layer1):
    made = HierarchicalFederationConfig(
        vector_dim=dimension,
        total_epsilon=epsilon,
        total_delta=1e-6,
        gossip_budget_share=0.0,
        layer2=Layer2Config(central_dp_epsilon=epsilon, central_dp_delta=1e-6),
        privacy=PrivacyConfig(unit=PrivacyUnit.PERSON, min_persons=persons),
    )
    return replace(made, layer1=replace(made.layer1, **layer1))


def chosen(config=None, attackers=4, **given):
    asked = {"needed": 8, "likeness": Likeness.ALIKE, "signal": 0.1} | given
    return choose_places(config or federation(), (5,) * 4, attackers=attackers, **asked)


@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_remaining_is_the_error_of_a_simulated_descent(momentum):
    """Noise drawn for many trainings at once; errors by all signs that attackers may choose."""
    rounds, step, d, drawn = 6, 0.4, 30, 4000
    noisy = Disturbance(0.08, 0.5, 0.3, 0.0)
    rng = np.random.default_rng(0)
    sigma = noisy.noise * math.sqrt(rounds / d)
    x, m = np.zeros((drawn, d)), np.zeros((drawn, d))
    x[:, 0] = 1.0
    for _ in range(rounds):
        m = momentum * m + (1.0 - momentum) * (x + sigma * rng.standard_normal(x.shape))
        x = x - step * m
    found = math.sqrt((x**2).sum(axis=1).mean())
    assert found == pytest.approx(remaining(rounds, step, momentum, noisy), rel=0.01)

    attacked = Disturbance(0.0, 0.5, 0.3, 0.6, pull=0.05)
    worst = 0.0
    for signs in itertools.product((-1.0, 1.0), repeat=rounds):
        x, m, kept = 1.0, 0.0, np.zeros(0)
        for sign in signs:
            kept = np.append(momentum * kept, 1.0 - momentum)  # weights of the rows in the momentum
            m = momentum * m + (1.0 - momentum) * x
            spread = (0.3 * kept.sum()) ** 2 + 0.5**2 * rounds * (kept**2).sum()
            x -= step * (m + sign * (0.6 * math.sqrt(spread) + 0.05))
        worst = max(worst, abs(x))
    assert worst == pytest.approx(remaining(rounds, step, momentum, attacked), rel=1e-9)


def test_site_noise_on_the_mean_is_the_root_of_the_sites_times_central_noise():
    """In one way to account, zCDP; what rounding to the ring's grid adds to central noise is small."""
    config = federation(aggregation_method="mean", num_byzantine=0)
    config = replace(config, layer2=replace(config.layer2, noise="discrete_gaussian"))
    central = Forecast(solve_for_rounds(config, 10), (5,) * 4, 10)
    at_site = site_sigma(config, 10) * math.sqrt(30 / 20)
    assert at_site / central.noise_norm == pytest.approx(math.sqrt(20), rel=0.01)
    assert make_plan(config).person_clip_norm == 1.0


def test_the_chosen_training_has_the_least_error_of_all_that_were_tried():
    disturbance = Disturbance(0.1, 0.8, 0.5, 0.3)
    best, whole = best_training(disturbance, needed=8), 1.0 - 0.05 ** (1 / 8)
    again = remaining(best.rounds, best.step * whole, best.momentum, disturbance)
    assert best.error == pytest.approx(again, rel=1e-12)
    for rounds, step, momentum in itertools.product((8, 15, 30), STEPS, MOMENTA):
        assert best.error <= remaining(rounds, step * whole, momentum, disturbance) + 1e-12


def test_momentum_is_worth_it_where_attackers_hide_in_noise_and_not_without_noise_on_rows():
    hidden = best_training(Disturbance(0.1, 1.0, 0.2, 0.4), needed=8)
    assert hidden.momentum >= 0.7
    assert best_training(Disturbance(0.1, 0.0, 0.2, 0.4), needed=8).momentum == 0.0


@pytest.mark.parametrize(("rule", "size", "f"), [("trimmed_mean", 10, 2), ("median", 9, 2), ("krum", 10, 2)])
def test_a_measured_kappa_lies_between_nothing_and_what_is_proved(rule, size, f):
    kappa, width = measured_kappa(rule, (), size, f, f)
    assert 0.0 < kappa <= TOLERANCE[rule].kappa(size, f)
    assert least_kappa(size, f) <= TOLERANCE[rule].kappa(size, f)
    assert 0.9 < width < size
    assert measured_kappa(rule, (), size, f, 0)[0] == 0.0


def test_the_proven_kappa_is_that_of_the_rule_as_it_is_configured():
    config = federation(aggregation_method="trimmed_mean", num_byzantine=1)
    assert proven_kappa(config, 5) == pytest.approx(6 / 3 * (4 / 3))
    mixed = replace(config, layer1=replace(config.layer1, pre=("nnm",)))
    assert proven_kappa(mixed, 5) == pytest.approx(8 / 4 * (8 / 3 + 1))
    assert proven_kappa(federation(aggregation_method="centered_clipping"), 5) is None


@pytest.mark.long
def test_central_noise_is_for_rules_with_a_constant_and_site_noise_for_all():
    central, shares, site = chosen()
    assert [choice.place for choice in (central, shares, site)] == list(Place)
    assert {central.rule, shares.rule} <= {"centered_clipping", "trimmed_mean", "median"}
    assert site.training.momentum > 0.0 == central.training.momentum
    assert central.training.error < site.training.error
    assert 5 <= site.training.rounds <= 30
    plain = chosen(attackers=0)
    assert {choice.rule for choice in plain} == {"mean"}


def test_what_guards_against_most_is_recommended_where_it_costs_little():
    assert recommended_place(chosen(federation(persons=100_000))).place is Place.SITE
    assert recommended_place(chosen(federation(persons=300), attackers=0)).place is not Place.SITE


def test_a_client_as_the_unit_is_refused():
    config = replace(federation(), privacy=PrivacyConfig())
    with pytest.raises(ConfigError, match="person or record"):
        chosen(config)


def test_the_way_back_from_noise_at_the_site_is_open():
    noised = with_site_noise(federation(momentum=0.0), 20)
    back = with_central_noise(replace(noised, layer1=replace(noised.layer1, momentum=0.9)))
    assert make_plan(back).num_releases >= 1
    assert back.layer1.clip_norm == noised.privacy.person_clip_norm < noised.layer1.clip_norm
    assert with_central_noise(federation()) == federation()
