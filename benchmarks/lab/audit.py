"""Audits: lower bounds on the privacy that a mechanism really gives, from what can be seen of it.

An audit plays the adversary that the claim is against. It never proves a claim; with probability at least
`confidence` its bound lies below the truth, so a bound above the claim proves that the claim is false.

*Many runs*: two neighbouring inputs, released many times each, and a score of each release; for Gaussian
noise its projection on the difference of the two noiseless results is best. `many_run_audit` turns the scores
into a bound on mu (Nasr, Hayes, Steinke, Balle, Tramèr, Jagielski, Carlini, Terzis 2023, section 4) and one
on epsilon that supposes nothing about the noise (Jagielski, Ullman, Oprea 2020). Where releases follow each
other, it audits one step at a time: `beyond` takes out of a release what the earlier ones tell of its noise.
`audit_power` is the probability that a mechanism that breaks its claim is found out, and `runs_for` the runs
that make it large enough.

*One run*: many canaries at once, of which a fair coin each has chosen one of two values, and guesses which;
`one_run_epsilon` bounds epsilon by how many guesses are right (Steinke, Nasr, Jagielski 2023, theorem 5.2).

Guarantees:
    audits_of_an_honest_mechanism_stay_below_the_claim: Layer 2 and gossip, many runs and one; so
        does the code that releases (tests/federation/test_audited_releases.py).
    the_many_run_audit_exposes_a_broken_mechanism: Noise scale halved, clip skipped, the mean's sensitivity
        claimed for Krum.
    an_audit_has_the_power_that_is_stated: Counted over many audits.
    noise_that_was_seen_before_is_taken_out
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import betaincinv

from scarcity_ray.errors import UsageError

Floats: TypeAlias = NDArray[np.float64]

_LIMITS = 6
"""Limits that an audit may be wrong in: four at the threshold of mu, on both sides, and two at epsilon's."""


@dataclass(frozen=True)
class ManyRunAudit:
    """Lower bounds from many runs; together they hold with the audit's confidence.

    Attributes:
        mu: The mechanism is not m-GDP for any m below this.
        mu_at_most: What this test would show of a mechanism that is Gaussian is no more than this; a claim
            above it has too much noise, or neighbours that are not the worst.
        epsilon: It is not (e, delta)-DP for any e below this.
    """

    mu: float
    epsilon: float
    mu_at_most: float = math.inf


def many_run_audit(
    left: ArrayLike, right: ArrayLike, *, delta: float, confidence: float = 0.95
) -> ManyRunAudit:
    """Bound privacy from below by how well scores tell two neighbouring inputs apart.

    Half of the scores choose thresholds, the other half judge them, with exact binomial confidence limits
    (Clopper, Pearson 1934).

    Args:
        left: Scores of releases of one input, shape (n,); n >= 20.
        right: Scores of releases of its neighbour, shape (n',); tending to be greater.
        delta: At which epsilon is bounded, in [0, 1).
        confidence: Probability with which all bounds hold, in (0, 1).

    Returns:
        Bounds, 0 where nothing can be told.
    """
    scores = [np.asarray(side, dtype=np.float64).ravel() for side in (left, right)]
    if min(side.size for side in scores) < 20 or not all(np.isfinite(side).all() for side in scores):
        raise UsageError("left, right: at least 20 finite scores each are needed")
    _check_shares(delta=delta, confidence=confidence)
    choosing, judging = [side[::2] for side in scores], [side[1::2] for side in scores]
    alarm = (1.0 - confidence) / _LIMITS
    by_mu = _best_threshold(choosing, alarm, _mu_between)
    by_epsilon = _best_threshold(choosing, alarm, lambda false, true: _epsilon_between(false, true, delta))
    least, most = _limits(judging, by_mu, alarm)
    return ManyRunAudit(
        mu=max(0.0, _mu_between(*least)),
        epsilon=max(0.0, _epsilon_between(*_limits(judging, by_epsilon, alarm)[0], delta)),
        mu_at_most=max(0.0, _mu_between(*most)) if most[0] > 0.0 and most[1] < 1.0 else math.inf,
    )


def beyond(scores: ArrayLike, noises: ArrayLike) -> Floats:
    """Scores of a step less what the noise of an earlier one, which the auditor knows, tells of their noise.

    The multiple that is subtracted is the regression's: about 0 where noise is fresh at each step.

    Args:
        scores: Of releases of one input, shape (n,).
        noises: The earlier step's noise on the same axis, shape (n,).
    """
    own, earlier = np.asarray(scores, np.float64), np.asarray(noises, np.float64)
    centred = earlier - earlier.mean()
    spread = float(centred @ centred)
    left: Floats = own - (float(centred @ own) / spread if spread else 0.0) * centred
    return left


def audit_power(claimed: float, true: float, runs: int, *, confidence: float = 0.95) -> float:
    """The probability that `many_run_audit` bounds a Gaussian mechanism of mu `true` above what is claimed.

    At the best of some thresholds for that mechanism, near which the audit's own choice lies.

    Args:
        runs: Of each of the two neighbours.

    >>> audit_power(0.5, 1.0, 4000, confidence=1 - 1e-6) > 0.95
    True
    """
    alarm, judged = (1.0 - confidence) / _LIMITS, runs // 2
    thresholds = np.linspace(-0.5, 1.0 + true, 16)
    return max(_power_at(t, claimed, true, judged, alarm) for t in thresholds.tolist())


def runs_for(claimed: float, true: float, *, power: float = 0.95, confidence: float = 0.95) -> int:
    """The least power of two of runs with which an audit has the power."""
    runs = 32
    while audit_power(claimed, true, runs, confidence=confidence) < power:
        runs *= 2
    return runs


def _power_at(threshold: float, claimed: float, true: float, judged: int, alarm: float) -> float:
    """For each likely count of false alarms, the chance of true ones enough to refute the claim."""
    false_rate, true_rate = stats.norm.sf([threshold, threshold - true])
    likely = np.unique(stats.binom.ppf(np.linspace(1e-4, 1 - 1e-4, 50), judged, false_rate))
    falls = np.diff(stats.binom.cdf(likely, judged, false_rate), prepend=0.0)
    few = likely < judged
    likely, falls = likely[few], falls[few]
    upper = stats.beta.isf(alarm, likely + 1, judged - likely)
    needed = stats.norm.cdf(claimed + stats.norm.ppf(upper))
    # The lower limit of y successes passes p if p makes y or more of them less likely than the alarm.
    counts = np.where(needed < 1.0, stats.binom.isf(alarm, judged, needed) + 1, judged + 1)
    return float(np.sum(falls * stats.binom.sf(counts - 1, judged, true_rate)))


def one_run_epsilon(
    num_canaries: int, num_guesses: int, num_correct: int, *, delta: float, confidence: float = 0.95
) -> float:
    """Bound epsilon from below by how many canaries' coins were guessed.

    Each canary, another client's row, took one of two values by a fair coin of its own. Under
    (epsilon, delta)-DP the number of right guesses among r is stochastically below a binomial one with
    chance e^epsilon / (1 + e^epsilon), but for a term in delta.

    Args:
        num_canaries: m, coins tossed.
        num_guesses: r <= m, guesses made; the others were abstained from.
        num_correct: Right guesses.
        delta: At which epsilon is bounded, in [0, 1).
        confidence: Probability with which the bound holds, in (0, 1).

    Returns:
        The bound; 0 where nothing can be told.

    >>> round(one_run_epsilon(1000, 100, 90, delta=1e-5), 2)
    1.63
    """
    if not 0 <= num_correct <= num_guesses <= num_canaries:
        raise UsageError("num_correct, num_guesses, num_canaries: must not decrease in this order, from 0 on")
    _check_shares(delta=delta, confidence=confidence)
    alarm = 1.0 - confidence
    low, high = 0.0, 1.0
    while _one_run_chance(num_canaries, num_guesses, num_correct, high, delta) < alarm and high < 700.0:
        low, high = high, 2.0 * high
    if _one_run_chance(num_canaries, num_guesses, num_correct, low, delta) >= alarm:
        return 0.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        if _one_run_chance(num_canaries, num_guesses, num_correct, middle, delta) < alarm:
            low = middle
        else:
            high = middle
    return low


def guess_coins(scores: ArrayLike, num_guesses: int) -> NDArray[np.int64]:
    """Guess the coins that the scores speak of most clearly, and abstain from the others.

    Args:
        scores: A score a canary, shape (m,), positive where it speaks for heads.
        num_guesses: How many to guess.

    Returns:
        int64 array, shape (m,): 1 heads, -1 tails, 0 abstained.

    >>> guess_coins([0.1, -3.0, 2.0], 2)
    array([ 0, -1,  1])
    """
    values = np.asarray(scores, dtype=np.float64)
    guesses = np.zeros(values.size, dtype=np.int64)
    clearest = np.argsort(-np.abs(values), kind="stable")[:num_guesses]
    guesses[clearest] = np.where(values[clearest] > 0.0, 1, -1)
    return guesses


def confidence_limits(successes: int, trials: int, alarm: float) -> tuple[float, float]:
    """Exact limits of a chance, each wrong with probability at most `alarm` (Clopper, Pearson 1934)."""
    missed = trials - successes
    lower = float(betaincinv(successes, missed + 1, alarm)) if successes else 0.0
    upper = 1.0 - float(betaincinv(missed, successes + 1, alarm)) if missed else 1.0
    return lower, upper


def _one_run_chance(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """The most probable that `correct` or more right guesses can be under (epsilon, delta)-DP."""
    law = stats.binom.pmf(np.arange(guesses + 1), guesses, 1.0 / (1.0 + math.exp(-epsilon)))
    chance = float(np.sum(law[correct:]))
    if correct > 0:
        below = np.cumsum(law[:correct][::-1])
        chance += 2.0 * canaries * delta * float(np.max(below / np.arange(1, correct + 1)))
    return min(1.0, chance)


def _mu_between(false: float, true: float) -> float:
    """The mu at which a test may accept wrongly and rightly with these chances."""
    if not (0.0 < false < 1.0 and 0.0 < true < 1.0):
        return -math.inf
    normal = NormalDist()
    return normal.inv_cdf(true) - normal.inv_cdf(false)


def _epsilon_between(false: float, true: float, delta: float) -> float:
    """The epsilon that these chances need, by the test or by its complement."""
    pairs = ((true - delta, false), (1.0 - false - delta, 1.0 - true))
    return max((math.log(a / b) for a, b in pairs if a > 0.0 and b > 0.0), default=-math.inf)


def _limits(
    scores: list[Floats], threshold: float, alarm: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """The chances to pass the threshold on the left and on the right: by their worst limits, and the best."""
    (low, high), (least, most) = (
        confidence_limits(int(np.sum(side > threshold)), side.size, alarm) for side in scores
    )
    return (high, least), (low, most)


def _best_threshold(
    scores: list[NDArray[np.float64]], alarm: float, value: Callable[[float, float], float]
) -> float:
    """The threshold whose value is greatest when both chances are as much worse as their limits will be.

    Wilson's limits (1927) stand for the exact ones: out in the tails, where a normal approximation promises
    most, they keep close to them.
    """
    strictness = -NormalDist().inv_cdf(alarm)
    candidates = np.quantile(np.concatenate(scores), np.linspace(0.002, 0.998, 250))
    best, found = float(candidates[0]), -math.inf
    for threshold in candidates.tolist():
        false, true = (float(np.mean(side > threshold)) for side in scores)
        upper = _wilson_limit(false, scores[0].size, strictness)
        lower = _wilson_limit(true, scores[1].size, -strictness)
        worth = value(upper, lower)
        if worth > found:
            best, found = threshold, worth
    return best


def _wilson_limit(share: float, count: int, deviations: float) -> float:
    """The limit of a chance of which `share` of `count` trials came true, so many deviations above it."""
    spread = deviations * math.sqrt(share * (1.0 - share) / count + deviations**2 / (4.0 * count**2))
    limit = (share + deviations**2 / (2.0 * count) + spread) / (1.0 + deviations**2 / count)
    return min(1.0, max(0.0, limit))


def _check_shares(*, delta: float, confidence: float) -> None:
    if not 0.0 <= delta < 1.0:
        raise UsageError(f"delta: {delta!r} is not accepted; at least 0 and below 1")
    if not 0.0 < confidence < 1.0:
        raise UsageError(f"confidence: {confidence!r} is not accepted; above 0 and below 1")
