"""Audits: below the claim for an honest mechanism, above it for a broken one (wrong at most once in 1e6)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.lab.audit import (
    audit_power,
    beyond,
    confidence_limits,
    guess_coins,
    many_run_audit,
    one_run_epsilon,
    runs_for,
)
from scarcity_ray.config import HierarchicalFederationConfig, Layer2Config
from scarcity_ray.errors import UsageError
from scarcity_ray.plan import BasketFacts, make_plan
from scarcity_ray.privacy import (
    CentralDPMechanism,
    LocalDPMechanism,
    SystemNoise,
    rule_sensitivity,
)
from scarcity_ray.privacy.sampling.discrete_gaussian import discrete_gaussian

SURE = 1 - 1e-6
DELTA = 1e-5
C = 1.0
# Few runs see a broken mechanism whose epsilon is large, many also one whose epsilon is small.
AUDITED = pytest.mark.parametrize(
    ("epsilon", "runs"),
    [(2.0, 30_000), (8.0, 30_000), *(pytest.param(e, 100_000, marks=pytest.mark.slow) for e in (0.5, 8.0))],
)


def clip(rows):
    return rows * np.minimum(1.0, C / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-300))


def mean(rows):
    return rows.mean(axis=0)


def krum(rows, f=1):
    squared = ((rows[:, None, :] - rows[None, :, :]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    return rows[np.argmin(np.sort(squared, axis=1)[:, : len(rows) - f - 2].sum(axis=1))]


def neighbours(n=7, d=3, size=1.0):
    """Two camps of rows, and row 0 that joins the one or the other."""
    left = np.zeros((n, d))
    left[:, 0] = np.where(np.arange(n) <= n // 2, C, -C)
    right = left.copy()
    left[0, 0], right[0, 0] = -size * C, size * C
    return left, right


def audit(rows, rule, sigma, runs, clipped=True):
    """Many releases of a rule's result on both of two neighbours, scored along what tells them apart."""
    noiseless = [clip(rule(clip(side))) if clipped else rule(side) for side in rows]
    direction = noiseless[1] - noiseless[0]
    scores = [
        (result + sigma * SystemNoise().standard_normal((runs, result.size))) @ direction
        for result in noiseless
    ]
    return many_run_audit(*scores, delta=DELTA, confidence=SURE)


@AUDITED
def test_audits_of_an_honest_mechanism_stay_below_the_claim(epsilon, runs):
    sensitivity = rule_sensitivity("mean", num_rows=7, num_byzantine=1, clip_norm=C)
    mechanism = CentralDPMechanism(epsilon, DELTA, sensitivity)
    bound = audit(neighbours(), mean, mechanism.sigma, runs)
    assert 0.6 * mechanism.mu - 0.08 < bound.mu < mechanism.mu
    assert 0.0 <= bound.epsilon < epsilon


def test_audits_of_an_honest_mechanism_stay_below_the_claim_for_krum_and_rows_beyond_the_clip():
    mechanism = CentralDPMechanism(
        2.0, DELTA, rule_sensitivity("krum", num_rows=7, num_byzantine=1, clip_norm=C)
    )
    for size in (1.0, 50.0):
        assert audit(neighbours(size=size), krum, mechanism.sigma, 30_000).mu < mechanism.mu


@AUDITED
def test_the_many_run_audit_exposes_a_broken_mechanism(epsilon, runs):
    sensitivity = rule_sensitivity("mean", num_rows=7, num_byzantine=1, clip_norm=C)
    mechanism = CentralDPMechanism(epsilon, DELTA, sensitivity)
    halved = audit(neighbours(), mean, mechanism.sigma / 2, runs)
    assert halved.mu > mechanism.mu
    unclipped = audit(neighbours(size=10.0), mean, mechanism.sigma, runs, clipped=False)
    assert unclipped.mu > mechanism.mu
    assert unclipped.epsilon > epsilon or epsilon > 4
    for_krum = audit(neighbours(), krum, mechanism.sigma, runs)
    assert for_krum.mu > mechanism.mu


def audit_of_integers(release, factor, runs):
    """Many releases of one coordinate that a client moved by the whole sensitivity, as Layer 2 draws them."""
    moved = math.floor(release.grid_sensitivity(["a", "b"]))
    sigma = factor * release.grid_sigma(["a", "b"])
    sides = (np.zeros(runs, np.int64), np.full(runs, moved))
    scores = [discrete_gaussian(side, sigma, SystemNoise(), "") for side in sides]
    return many_run_audit(*scores, delta=DELTA, confidence=SURE)


@AUDITED
def test_the_discrete_release_is_below_its_claim_and_exposed_with_half_the_noise(epsilon, runs):
    layer2 = Layer2Config(noise="discrete_gaussian", central_dp_epsilon=epsilon, central_dp_delta=DELTA)
    plan = make_plan(HierarchicalFederationConfig(layer2=layer2, total_epsilon=100.0))
    release = plan.release([BasketFacts(b, "", 7, 7, 1) for b in "ab"])
    honest = audit_of_integers(release, 1.0, runs)
    assert 0.6 * release.mu - 0.08 < honest.mu < release.mu
    assert 0.0 <= honest.epsilon < epsilon
    # At sigma of a million its trade-off is the Gaussian's, so the audit's mu says more than its epsilon.
    assert audit_of_integers(release, 0.5, runs).mu > release.mu
    assert audit_of_integers(release, 0.25 if epsilon < 4 else 0.125, runs).epsilon > min(epsilon, 6.0)


@pytest.mark.parametrize(
    ("epsilon", "runs"), [(4.0, 20_000), pytest.param(1.0, 100_000, marks=pytest.mark.slow)]
)
def test_gossip_is_audited_too(epsilon, runs):
    mechanism = LocalDPMechanism(epsilon, DELTA, sensitivity=2 * C)
    states = np.array([[-30.0, 0.0, 0.0]]), np.array([[30.0, 0.0, 0.0]])

    def scores(release):
        return [release(np.repeat(side, runs, axis=0))[:, 0] for side in states]

    honest = many_run_audit(
        *scores(lambda rows: mechanism.clip_and_noise(rows, C)), delta=DELTA, confidence=SURE
    )
    assert 0.5 * mechanism.mu < honest.mu < mechanism.mu
    assert honest.epsilon < epsilon
    skipped = many_run_audit(*scores(mechanism.add_noise), delta=DELTA, confidence=SURE)
    assert skipped.mu > mechanism.mu
    assert skipped.epsilon > epsilon


def test_colluding_peers_learn_what_the_composition_says():
    mechanism = LocalDPMechanism(0.5, 1e-6, sensitivity=2 * C)
    rounds, peers, runs = 25, 4, 10_000
    ends = [np.array([-C, 0.0]), np.array([C, 0.0])]

    def pooled(messages):
        return [
            sum(mechanism.clip_and_noise(np.tile(end, (runs, 1)), C)[:, 0] for _ in range(messages))
            for end in ends
        ]

    charged = mechanism.mu * math.sqrt(rounds)
    one_vector = many_run_audit(*pooled(rounds), delta=DELTA, confidence=SURE)
    assert 0.4 * charged < one_vector.mu < charged
    afresh = many_run_audit(*pooled(rounds * peers), delta=DELTA, confidence=SURE)
    assert charged < afresh.mu < mechanism.mu * math.sqrt(rounds * peers)


@pytest.mark.parametrize(("factor", "exposed"), [(1.0, False), (16.0, True)])
def test_one_run_with_a_canary_a_client(factor, exposed):
    # Each of m clients puts its coin's sign on an axis of its own; the mean is released once.
    m, epsilon, delta = 2000, 2.0, 1e-9
    mechanism = CentralDPMechanism(
        epsilon, delta, rule_sensitivity("mean", num_rows=m, num_byzantine=0, clip_norm=C)
    )
    coins = np.where(np.unpackbits(np.frombuffer(np.random.default_rng(8).bytes(m // 8), np.uint8)), 1, -1)
    released = coins * C / m + mechanism.sigma / factor * SystemNoise().standard_normal(m)
    guesses = guess_coins(released, m // 10)
    assert np.sum(guesses != 0) == m // 10
    bound = one_run_epsilon(m, m // 10, int(np.sum(guesses == coins)), delta=delta, confidence=SURE)
    assert (bound > epsilon) == exposed


def their_p_value(m, r, v, eps, delta):
    """Transcribed from Steinke, Nasr, Jagielski (2023), appendix D, with scipy."""
    q = 1 / (1 + math.exp(-eps))
    beta = stats.binom.sf(v - 1, r, q)
    alpha = total = 0.0
    for i in range(1, v + 1):
        total += stats.binom.pmf(v - i, r, q)
        alpha = max(alpha, total / i)
    return min(1.0, beta + alpha * delta * 2 * m)


@pytest.mark.parametrize(
    ("m", "r", "v", "delta"),
    [(1000, 100, 90, 1e-5), (5000, 5000, 2700, 0.0), (100, 50, 50, 1e-4), (10, 5, 1, 0)],
)
def test_one_run_agrees_with_the_papers_code(m, r, v, delta):
    ours = one_run_epsilon(m, r, v, delta=delta, confidence=0.95)
    if ours == 0:
        assert their_p_value(m, r, v, 0.0, delta) >= 0.05
    else:
        assert their_p_value(m, r, v, ours, delta) == pytest.approx(0.05, rel=1e-6)


def test_one_run_can_tell_nothing_from_coins():
    assert one_run_epsilon(1000, 500, 250, delta=1e-5) == 0.0
    assert one_run_epsilon(1000, 0, 0, delta=1e-5) == 0.0


@pytest.mark.parametrize(("k", "n"), [(0, 30), (30, 30), (3, 40), (500, 1000), (19_000, 20_000)])
@pytest.mark.parametrize("alarm", [0.05, 1e-6])
def test_confidence_limits_are_clopper_and_pearsons(k, n, alarm):
    lower, upper = confidence_limits(k, n, alarm)
    if k:
        assert stats.binom.sf(k - 1, n, lower) == pytest.approx(alarm, rel=1e-6)
    if k < n:
        assert stats.binom.cdf(k, n, upper) == pytest.approx(alarm, rel=1e-6)
    assert (lower == 0.0) == (k == 0)
    assert (upper == 1.0) == (k == n)


def test_identical_sides_tell_nothing():
    scores = np.random.default_rng(0).standard_normal((2, 2000))
    assert many_run_audit(*scores, delta=DELTA, confidence=SURE).mu == 0.0
    constant = many_run_audit(np.zeros(50), np.zeros(50), delta=DELTA)
    assert (constant.mu, constant.epsilon) == (0.0, 0.0)


def test_a_release_without_noise_is_exposed():
    bound = many_run_audit(np.zeros(20_000), np.ones(20_000), delta=DELTA, confidence=SURE)
    assert bound.epsilon > 6


@pytest.mark.parametrize(
    "call",
    [
        lambda: many_run_audit(np.zeros(19), np.zeros(30), delta=DELTA),
        lambda: many_run_audit(np.full(30, np.nan), np.zeros(30), delta=DELTA),
        lambda: many_run_audit(np.zeros(30), np.zeros(30), delta=1.0),
        lambda: many_run_audit(np.zeros(30), np.zeros(30), delta=DELTA, confidence=1.0),
        lambda: one_run_epsilon(10, 11, 5, delta=DELTA),
        lambda: one_run_epsilon(10, 5, 6, delta=DELTA),
        lambda: one_run_epsilon(10, 5, 5, delta=-1.0),
    ],
)
def test_values_out_of_range_are_refused(call):
    with pytest.raises(UsageError):
        call()


def test_an_audit_has_the_power_that_is_stated():
    claimed, true, runs, audits = 0.5, 1.0, 1024, 24
    power = audit_power(claimed, true, runs, confidence=SURE)
    noise = np.random.default_rng(1)
    found = sum(
        many_run_audit(
            noise.standard_normal(runs), true + noise.standard_normal(runs), delta=DELTA, confidence=SURE
        ).mu
        > claimed
        for _ in range(audits)
    )
    # The audit chooses its threshold by chance, which costs a tenth of these at most.
    low, high = stats.binom.ppf([1e-4, 1 - 1e-4], audits, [max(0.0, power - 0.15), power])
    assert low <= found <= high
    assert audit_power(claimed, true, 4 * runs, confidence=SURE) > power
    assert audit_power(claimed, claimed, runs, confidence=SURE) < 1e-6


def test_runs_are_enough_and_no_more_than_twice_as_many():
    runs = runs_for(1.0, 2.0, confidence=SURE)
    enough, fewer = (audit_power(1.0, 2.0, count, confidence=SURE) for count in (runs, runs // 2))
    assert enough >= 0.95 > fewer


def test_noise_that_was_seen_before_is_taken_out():
    earlier, fresh = np.random.default_rng(2).standard_normal((2, 4000))
    again = beyond(3.0 + 2.0 * earlier + 0.01 * fresh, earlier)
    assert again.mean() == pytest.approx(3.0, abs=0.05)
    assert again.std() < 0.02
    kept = beyond(3.0 + fresh, earlier)
    assert np.abs(kept - 3.0 - fresh).max() < 0.3
