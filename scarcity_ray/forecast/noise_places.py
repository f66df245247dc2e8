"""For privacy of a person: where to add the noise, and how many rounds, which step, how much momentum.

Three places. *Central*: to each release, by one party. *Shares*: to each release, in parts that no party
sees the sum of. *Site*: to each row, by the client that sends it, so that every rule is post-processing and
costs no sensitivity. With S clients of n persons the noise on their mean is then sqrt(S) times that of
central noise, and a rule's error is at most sqrt(kappa (G^2 + d sigma^2)) (Allouah et al. 2023), with G what
honest rows differ by: attackers hide in the noise. Momentum over a client's noised rows (Karimireddy et al.
2021) brings d sigma^2 down by (1 - beta) / (1 + beta), and takes more rounds, of which each takes more noise.

`remaining` weighs that up for gradient descent on a quadratic loss, where it is exact: the distance to the
optimum is a linear system, moved by a rule's error, which attackers may point anywhere, and by noise. Lengths
are in units of the honest mean at the start; the way to the optimum has length 1. A training without noise is
taken to get to `DONE` of the way in its own rounds; no step is larger than its own.

Guarantees:
    remaining_is_the_error_of_a_simulated_descent: Noise by Monte Carlo, attackers by the worst signs.
    site_noise_on_the_mean_is_the_root_of_the_sites_times_central_noise
    the_chosen_training_has_the_least_error_of_all_that_were_tried
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import (
    AggregationMethod,
    CentralNoise,
    HierarchicalFederationConfig,
    NoisePlace,
    PrivacyUnit,
)
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast.choosing import (
    COMMON,
    DIMENSION,
    LENGTHS,
    RULES,
    SEED,
    Likeness,
    over_baskets,
    with_setting,
)
from scarcity_ray.forecast.feasibility import Forecast, solve_for_rounds
from scarcity_ray.plan import FederationPlan
from scarcity_ray.robust import aggregate
from scarcity_ray.robust.rules.tolerance import TOLERANCE, nnm_kappa

Floats = NDArray[np.float64]

DONE = 0.95
"""Of the way to the optimum, that a training without noise gets in its rounds."""
ROUNDS = (5, 8, 10, 12, 15, 20, 25, 30, 40, 60)
STEPS = np.geomspace(0.1, 1.0, 7)
"""As shares of the step of a training without noise."""
MOMENTA = (0.0, 0.5, 0.7, 0.8, 0.9)
AS_GOOD = 1.1
"""Errors within this factor are alike: the place that guards against more is recommended."""
HIDING = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Standard deviations by which attackers shift every coordinate of the row that they all send (ALIE)."""
TURNING = (1.0, 3.0, 10.0)
"""Lengths of the row that they send against the honest mean, in lengths of a row's noise (IPM)."""


class Place(StrEnum):
    """Where the noise is added, from the one that guards against least to the most."""

    CENTRAL = "central"
    SHARES = "shares"
    SITE = "site"

    @property
    def guards_against(self) -> str:
        """Whoever sees what, in words."""
        return {
            Place.CENTRAL: "readers of releases",
            Place.SHARES: "each party too",
            Place.SITE: "readers of messages too",
        }[self]


@dataclass(frozen=True)
class Disturbance:
    """What reaches the model beside the honest mean, in lengths of that mean at the start.

    Attributes:
        noise: Norm of the noise on what a round releases, for one round within the budget; it grows with the
            root of the rounds.
        row_noise: Likewise of the noise on one row, sigma sqrt(d); 0 where rows are not noised.
        differing: G, root mean square distance of an honest row to the honest mean, without noise.
        root_kappa: sqrt(kappa) of the rule, the mean over the baskets with their attackers.
        pull: What attackers add whatever the rows are like: their share, times the longest row of theirs that
            counts.
    """

    noise: float
    row_noise: float
    differing: float
    root_kappa: float
    pull: float = 0.0


@dataclass(frozen=True)
class Training:
    """One way to train, and what is expected of it.

    Attributes:
        step: The server's, as a share of that without noise.
        momentum: Of each client's noised rows.
        error: Distance to the optimum at the end, of 1 at the start, under the worst attackers (root mean
            square over the noise).
    """

    rounds: int
    step: float
    momentum: float
    error: float


@dataclass(frozen=True)
class PlaceChoice:
    """The best rule and training at one place.

    Attributes:
        clipping_radius: Of centred clipping: the length of an honest row with its noise; None for others.
    """

    place: Place
    rule: str
    training: Training
    disturbance: Disturbance
    clipping_radius: float | None = None


def remaining(rounds: int, step: float, momentum: float, disturbance: Disturbance) -> float:
    """The root mean square distance to the optimum after so many rounds, at worst; it was 1.

    With x the distance, m the momentum and nu the noise of a round, m' = beta m + (1 - beta) (x + nu) and
    x' = x - a (m' + e), |e| at most the rule's error. That is linear, so x ends at most at its own response,
    plus the sum of each error's size times the size of the response to it; noise adds the sum of squares.

    Args:
        step: a, times the curvature of the loss: 1 goes all the way at once.
    """
    return float(_remaining(rounds, np.array([step]), np.array([momentum]), disturbance)[0])


def _remaining(rounds: int, steps: Floats, momenta: Floats, disturbance: Disturbance) -> Floats:
    """`remaining` of trainings side by side."""
    keep, fresh = momenta, 1.0 - momenta

    def following(x: Floats, m: Floats, push: float = 0.0) -> tuple[Floats, Floats]:
        m = keep * m + fresh * (x + push)
        return x - steps * m, m

    zero = np.zeros_like(steps)
    free, error = (zero + 1.0, zero), (steps.astype(np.float64), zero)
    noise = following(zero, zero, 1.0)
    of_errors, of_noise = [], []
    for _ in range(rounds):
        free = following(*free)
        of_errors.append(np.abs(error[0]))
        of_noise.append(noise[0] ** 2)
        error, noise = following(*error), following(*noise)
    ages = np.arange(rounds, 0, -1)[:, None]  # of the momentum when the error is made, the last one first
    averaged = fresh / (1.0 + keep) * (1.0 - keep ** (2 * ages))
    differing = (disturbance.differing * (1.0 - keep**ages)) ** 2
    row_noise = disturbance.row_noise**2 * rounds * averaged
    size = disturbance.root_kappa * np.sqrt(differing + row_noise) + disturbance.pull
    bias = np.abs(free[0]) + (np.array(of_errors) * size).sum(axis=0)
    variance = disturbance.noise**2 * rounds * np.array(of_noise).sum(axis=0)
    made: Floats = np.sqrt(bias**2 + variance)
    return made


def best_training(disturbance: Disturbance, needed: int, most: int | None = None) -> Training:
    """The rounds, step and momentum of least error.

    Args:
        needed: Rounds of a training without noise.
        most: Rounds at most.
    """
    momenta = MOMENTA if disturbance.row_noise else (0.0,)
    whole = -math.expm1(math.log1p(-DONE) / needed)
    shares, kept = (part.ravel() for part in np.meshgrid(STEPS, momenta))
    found = []
    for rounds in sorted({*ROUNDS, needed}):
        if most is None or rounds <= most:
            errors = _remaining(rounds, shares * whole, kept, disturbance)
            best = int(np.argmin(errors))
            found.append(Training(rounds, float(shares[best]), float(kept[best]), float(errors[best])))
    return min(found, key=lambda training: training.error)


def choose_places(
    config: HierarchicalFederationConfig,
    sizes: tuple[int, ...],
    *,
    attackers: int,
    needed: int,
    likeness: Likeness,
    signal: float,
    persons: Sequence[int] = (),
) -> tuple[PlaceChoice, ...]:
    """Each place at its best rule and training, from central noise to noise at the site.

    Args:
        config: Of which the budget, the unit, the clip norms and the dimension are kept.
        sizes: Clients of each basket; attackers among them are spread at random.
        needed: Rounds of a training without noise.
        signal: Norm of the honest mean at the start, in the rows' own units.
        persons: Of each client, where they are known; else all have the fewest that are allowed.

    Raises:
        ConfigError: If no rule fits, or the unit is the client.
    """
    if config.privacy.min_persons is None:
        raise ConfigError("privacy.unit", config.privacy.unit.value, "person or record")
    least = config.privacy.min_persons
    counts = np.maximum(np.array(persons or (least,), np.float64), least)
    # The noise of a mean of rows is made of all of theirs, that of a release of the smallest client's.
    fewer = {Place.SITE: math.sqrt(float(np.mean(counts**-2.0))) * least}
    found = []
    for place in Place:
        quieter = fewer.get(place, least / float(counts.min()))
        tried = [
            PlaceChoice(place, name, best_training(made, needed), made, radius)
            for name, made, radius in _disturbances(
                config, place, sizes, attackers, likeness, signal, quieter
            )
        ]
        if tried:
            found.append(min(tried, key=lambda choice: choice.training.error))
    if not found:
        raise ConfigError("clients", sum(sizes), f"more, or fewer attackers than {attackers}: no rule fits")
    return tuple(found)


def recommended_place(choices: tuple[PlaceChoice, ...]) -> PlaceChoice:
    """The one that guards against most among those of about the least error."""
    least = min(choice.training.error for choice in choices)
    return [choice for choice in choices if choice.training.error <= AS_GOOD * least][-1]


def with_site_noise(config: HierarchicalFederationConfig, rounds: int) -> HierarchicalFederationConfig:
    """The config with noise at the site whose budget buys so many rows, and clip norms that leave them be.

    Noise in shares becomes Gaussian noise; what is refused beside it is off.
    """
    layer2, privacy = config.layer2, config.privacy
    if layer2.noise is CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN:
        layer2 = replace(layer2, noise=CentralNoise.GAUSSIAN)
    contribution = privacy.person_clip_norm or config.layer1.clip_norm
    own = replace(
        privacy,
        noise=NoisePlace.SITE,
        person_clip_norm=contribution,
        row_epsilon=config.total_epsilon,
        row_delta=privacy.row_delta or config.total_delta,
    )
    made = solve_for_rounds(replace(config, privacy=own, layer2=layer2), rounds)
    noise = FederationPlan(made).site_noise
    least = contribution if noise is None else noise.least_clip_norm
    longest = max(config.layer1.clip_norm, float(f"{1.005 * least:.3g}"))
    return replace(made, layer1=replace(made.layer1, clip_norm=longest))


def with_central_noise(config: HierarchicalFederationConfig) -> HierarchicalFederationConfig:
    """The config with noise on releases, and none of what noised rows alone may have, or need."""
    if config.privacy.noise is NoisePlace.CENTRAL:
        return config
    privacy = replace(config.privacy, noise=NoisePlace.CENTRAL, row_epsilon=None, row_delta=None)
    share = 0.0 if privacy.unit is not PrivacyUnit.CLIENT else config.gossip_budget_share
    longest = privacy.person_clip_norm or config.layer1.clip_norm  # a liar may send no longer a row
    layer1 = replace(config.layer1, momentum=0.0, clip_norm=longest)
    return replace(config, privacy=privacy, layer1=layer1, gossip_budget_share=share)


def site_sigma(config: HierarchicalFederationConfig, rounds: int) -> float:
    """Standard deviation of each coordinate of a row of the fewest persons, if so many rounds are noised."""
    noise = FederationPlan(with_site_noise(config, rounds)).site_noise
    return 0.0 if noise is None else noise.sigma(noise.min_persons)


def proven_kappa(config: HierarchicalFederationConfig, size: int) -> float | None:
    """The rule's kappa in a basket of this size, as proved; None where none is."""
    layer1 = config.layer1
    f, tolerance = layer1.byzantine_among(size), TOLERANCE.get(str(layer1.aggregation_method))
    if tolerance is None or tolerance.kappa is None or size < tolerance.least_rows(f):
        return None
    kappa = tolerance.kappa(size, f)
    return nnm_kappa(size, f, kappa) if "nnm" in layer1.pre else kappa


def _disturbances(
    config: HierarchicalFederationConfig,
    place: Place,
    sizes: tuple[int, ...],
    attackers: int,
    likeness: Likeness,
    signal: float,
    quieter: float = 1.0,
) -> list[tuple[str, Disturbance, float | None]]:
    """Of each rule that fits: its name, what it lets through, and centred clipping's radius.

    Args:
        quieter: Of the noise for the fewest persons, what there is of it.
    """
    clients, size = sum(sizes), min(sizes)
    differing = math.sqrt(LENGTHS[likeness] ** -2 - 1.0)
    spread_out = over_baskets(size, clients, attackers)
    share = sum(weight * liars / size for liars, weight in spread_out)
    f = math.ceil(attackers / len(sizes) - 1e-9)
    row_noise = 0.0
    if place is Place.SITE:
        row_noise = quieter * site_sigma(config, 1) * math.sqrt(config.vector_dim) / signal
    config = with_central_noise(config)
    centred = (AggregationMethod.CENTERED_CLIPPING, ())
    found = []
    for rule, pre in (*RULES, centred):
        is_centred = rule is AggregationMethod.CENTERED_CLIPPING
        made = with_setting(config, rule, pre, 0 if is_centred else f, sizes)
        plan = FederationPlan(made)
        if any(each < plan.least_rows(each) for each in sizes):
            continue
        name = " + ".join((*pre, rule.value))
        bounded = is_centred or rule is AggregationMethod.MEAN
        if bounded:
            root_kappa, wide = share, 1.0
        else:
            parts = [
                (weight, measured_kappa(rule.value, pre, size, f, liars)) for liars, weight in spread_out
            ]
            root_kappa = sum(weight * math.sqrt(kappa) for weight, (kappa, _) in parts)
            wide = sum(weight * width for weight, (_, width) in parts)
        noise = row_noise * math.sqrt(wide / clients)
        if place is not Place.SITE:
            kind = (
                CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN if place is Place.SHARES else CentralNoise.GAUSSIAN
            )
            layer2 = replace(config.layer2, noise=kind)
            noise = (
                quieter
                * Forecast(solve_for_rounds(replace(made, layer2=layer2), 1), sizes, 1).noise_norm
                / signal
            )
        pull = 0.0
        radius = None
        if rule is AggregationMethod.MEAN:
            root_kappa, pull = 0.0, share * config.layer1.clip_norm / signal
        elif bounded:
            pull, radius = share, signal * math.sqrt(1.0 + differing**2 + row_noise**2)
        found.append((name, Disturbance(noise, row_noise, differing, root_kappa, pull), radius))
    return found


@lru_cache(maxsize=1024)
def measured_kappa(rule: str, pre: tuple[str, ...], size: int, f: int, liars: int) -> tuple[float, float]:
    """What a rule makes of Gaussian rows, of whom `liars` hide or turn: kappa, and its noise's width.

    Returns:
        The greatest squared distance of the result to the honest mean along the direction of attack, over the
        honest rows' mean squared distance to it. And the squared norm of what it makes of pure noise from
        everybody, times the rows, over that of one row: 1 for the mean.
    """
    rng, draws = np.random.default_rng([SEED, size, liars]), 4

    def made_of(rows: Floats) -> Floats:
        vector = aggregate(rows.astype(np.float32), method=rule, num_byzantine=f, pre=pre).vector
        return np.asarray(vector, np.float64)

    direction = np.append(COMMON[:-1], COMMON[0]).astype(np.float64)
    direction /= np.linalg.norm(direction)
    pulls: dict[int, list[float]] = {}
    widths = []
    for _ in range(draws):
        rows = rng.standard_normal((size, DIMENSION))
        widths.append(size * float(np.sum(made_of(rows) ** 2)) / DIMENSION)
        if not liars:
            continue
        honest = rows[liars:]
        mean, deviation = honest.mean(axis=0), honest.std(axis=0)
        hidden = [mean - z * deviation * np.sign(direction) for z in HIDING]
        turned = [mean - length * math.sqrt(DIMENSION) * direction for length in TURNING]
        for place, row in enumerate((*hidden, *turned)):
            rows[:liars] = row
            pulls.setdefault(place, []).append(float((mean - made_of(rows)) @ direction))
    worst = max((float(np.mean(values)) for values in pulls.values()), default=0.0)
    return max(0.0, worst) ** 2 / DIMENSION, float(np.mean(widths))


__all__ = [
    "Disturbance",
    "Place",
    "PlaceChoice",
    "Training",
    "best_training",
    "choose_places",
    "measured_kappa",
    "proven_kappa",
    "recommended_place",
    "remaining",
    "site_sigma",
    "with_central_noise",
    "with_site_noise",
]
