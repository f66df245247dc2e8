"""The comparison runs: the same federated training as plain array arithmetic.

One pure function runs the rounds: local training, attack, clipping, a rule in each basket, a weighted mean,
Gaussian noise on it or on each honest client's row, momentum. It leaves gossip out, and what a basket with
too few updates would keep for the next round.
Its noise comes from a seed, so no privacy claim covers its results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import AggregationMethod, stream
from scarcity_ray.errors import RuleFailed, UsageError
from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input
from scarcity_ray.layers.models import BasketModel
from scarcity_ray.layers.server_model import ServerModel
from scarcity_ray.plan import BasketFacts, FederationPlan, persons_of
from scarcity_ray.robust import clip_vector, row_norms
from scarcity_ray.workloads.attacks import AttackConfig, BasketRule
from scarcity_ray.workloads.scene import NO_ATTACK, Scene


@dataclass(frozen=True)
class Defence:
    """How a simulated run aggregates.

    Attributes:
        plan: Clip norms (the first, where they adapt), rule, f, weights and noise scale; None: the plain mean
            of all updates as they come.
        noisy: Whether the global delta, or each honest row, gets the plan's noise.
    """

    plan: FederationPlan | None
    noisy: bool = True


@dataclass(frozen=True)
class SimulatedRun:
    """What a run beside came to.

    Attributes:
        curve: The headline metric after each round; NaN where the model has none, as once it is not finite.
        metrics: All metrics at the end.
        rule_failures: How often a basket waited because a rule from outside gave no result.
    """

    curve: tuple[float, ...]
    metrics: Mapping[str, float]
    rule_failures: int = 0


def simulate(scene: Scene, attack: AttackConfig, defence: Defence) -> SimulatedRun:
    """Train under an attack and a defence, and evaluate after each round.

    Guarantees:
        The same arguments give the same metrics.
    """
    training, plan = scene.training, defence.plan
    model = ServerModel.begin(scene.start, training.server_optimizer(), training.averaging_decay)
    metrics, failures = dict[str, float](), 0
    curve = [math.nan] * training.rounds
    momenta = np.zeros((len(scene.clients), len(scene.start)), np.float32)
    for number in range(training.rounds):
        places = scene.chosen(number)
        rng = stream(scene.seed, "simulate", attack.name, number)
        rows = scene.trained(model.current, places, number, attack)
        if plan is not None and plan.site_noise is not None and defence.noisy:
            rows = noised_rows(rows, places, scene, plan, stream(scene.seed, "rows", number))
        with np.errstate(over="ignore", invalid="ignore"):
            sent = scene.sent(rows, places, attack, rng, basket_rule(plan))
            clip_norms = None
            if plan is None:
                came = np.isfinite(rows).all(axis=1)
                delta = sent[came].mean(axis=0) if came.any() else np.zeros(model.current.size, np.float32)
            else:
                everyone = np.full((len(scene.clients), sent.shape[1]), np.nan, np.float32)
                everyone[places] = with_momentum(sent, places, momenta, plan)
                made = federated_delta(everyone, scene.baskets, plan.after(number), scene.counts(plan))
                delta, failures = made.delta, failures + made.rule_failures
                if defence.noisy:
                    delta = (delta + made.sigma * rng.standard_normal(delta.size)).astype(np.float32)
                if made.share_below is not None:
                    noise = made.share_sigma * rng.standard_normal() if defence.noisy else 0.0
                    clip_norm = plan.config.layer1.clip_norm
                    clip_norms = clip_norm, plan.next_clip_norm(clip_norm, made.share_below + noise)
                    plan = plan.at(clip_norms[1])
        try:
            model = model.step(delta, clip_norms)
        except UsageError:
            return SimulatedRun(tuple(curve), {}, failures)  # the model is not finite any more
        metrics = scene.evaluate(model.handed_out)
        curve[number] = metrics.get(scene.metric, math.nan)
    return SimulatedRun(tuple(curve), metrics, failures)


def noised_rows(
    rows: NDArray[np.float32],
    places: NDArray[np.int64],
    scene: Scene,
    plan: FederationPlan,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """The rows of a round's clients, noised at the source; those that lie add none.

    Args:
        rows: (n, d), one for each of `places`; one that is not finite stays so.
    """
    noise, counts = plan.site_noise, scene.counts(plan)
    noised = rows.copy()
    for index, place in enumerate(places.tolist()):
        if noise is not None and not scene.byzantine[place]:
            clipped = clip_vector(rows[index], noise.clip_norm)
            noised[index] = clipped + noise.sigma(counts[place]) * rng.standard_normal(len(clipped))
    return noised


def with_momentum(
    sent: NDArray[np.float32], places: NDArray[np.int64], momenta: NDArray[np.float32], plan: FederationPlan
) -> NDArray[np.float32]:
    """What the rules see of rows (n, d): their clients' momenta (clients, d), which are moved in place.

    A row that is not finite is refused, and moves none.
    """
    beta, clip_norm = np.float32(plan.config.layer1.momentum), plan.config.layer1.clip_norm
    if not beta:
        return sent
    seen = sent.copy()
    for index in np.flatnonzero(np.isfinite(sent).all(axis=1)).tolist():
        moved = momenta[places[index]]
        moved *= beta
        moved += (np.float32(1.0) - beta) * clip_vector(sent[index], clip_norm)
        seen[index] = moved
    return seen


def train_alone(scene: Scene) -> SimulatedRun:
    """Every client trains a model of its own, on its own data, for all rounds; the mean over clients."""
    vectors = np.repeat(scene.start[None], len(scene.clients), axis=0)
    for number in range(scene.training.rounds):
        rows = scene.trained(vectors, range(len(scene.clients)), number, NO_ATTACK)
        came = np.isfinite(rows).all(axis=1)
        vectors[came] += rows[came]
    return SimulatedRun((), mean_of_metrics([scene.evaluate(vector) for vector in vectors]))


def mean_of_metrics(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each metric over those that have it."""
    names = dict.fromkeys(name for metrics in found for name in metrics)
    return {name: math.fsum(held := [m[name] for m in found if name in m]) / len(held) for name in names}


@dataclass(frozen=True)
class SimulatedRelease:
    """A round's release before its noise.

    Attributes:
        delta: (d,) float32, zero if every basket waits.
        sigma: Standard deviation of the noise that it needs.
        share_below: With adaptive clipping, the weighted share of norms up to the clip norm, if any came.
        share_sigma: Standard deviation of the noise on that share.
        rule_failures: Baskets that wait because a rule from outside gave no result.
    """

    delta: NDArray[np.float32]
    sigma: float
    share_below: float | None = None
    share_sigma: float = 0.0
    rule_failures: int = 0


def federated_delta(
    rows: NDArray[np.float32],
    baskets: NDArray[np.int64],
    plan: FederationPlan,
    num_examples: Sequence[int] | None = None,
) -> SimulatedRelease:
    """The noiseless global delta of a round, and the noise that it needs.

    Rows that are not finite are left out, as a federation refuses them; a basket that then has fewer rows
    than its rule needs waits.

    Args:
        rows: (clients, d) float32, as sent; NaN of clients that sent nothing.
        baskets: (clients,) the basket of each client.
        num_examples: Of each client, for the rule ``weighted``, and its persons (records) where they are the
            unit of privacy; None: alike, with ``min_persons``.
    """
    layer1 = plan.config.layer1
    aggregator = Layer1Aggregator(layer1)
    weights = None
    if layer1.aggregation_method is AggregationMethod.WEIGHTED:
        weights = np.array([plan.row_weight(count) for count in num_examples or [1] * len(rows)])
    facts, models, failures = [], {}, 0
    for basket in np.unique(baskets):
        here = baskets == basket
        inside, own = rows[here], None if weights is None else weights[here]
        members, name = len(inside), str(basket)
        try:
            present, model = basket_model(inside, plan, aggregator, own)
        except RuleFailed:
            present, model, failures = 0, None, failures + 1
        if model is None:
            facts.append(BasketFacts(name, "", members))
            continue
        models[name] = model
        finite = np.isfinite(inside).all(axis=1)
        came = None if own is None else own[finite]
        share = None if came is None else float(came.max() / came.sum())
        persons = None
        if plan.person_clip_norm is not None and num_examples is not None:
            persons = persons_of(np.asarray(num_examples)[here][finite].tolist(), came)
        f = plan.num_byzantine(members)
        facts.append(BasketFacts(name, "", members, present, f, share, num_persons=persons))
    if not models:
        return SimulatedRelease(np.zeros(rows.shape[1], np.float32), 0.0, rule_failures=failures)
    release = plan.release(facts)
    total = np.zeros(rows.shape[1], dtype=np.float64)
    bit = 0.0
    for name, model in models.items():
        total += release.weights[name] * clipped_vector(model, plan).astype(np.float64)
        bit += release.weights[name] * model.bit
    sigma = release.grid_sigma(list(release.weights)) / release.scale
    if not plan.config.layer2.adaptive_clipping:
        return SimulatedRelease(total.astype(np.float32), sigma, rule_failures=failures)
    share_sigma = sigma / release.bit_radius
    return SimulatedRelease(total.astype(np.float32), sigma, bit + 0.5, share_sigma, failures)


def basket_model(
    rows: NDArray[np.float32],
    plan: FederationPlan,
    aggregator: Layer1Aggregator,
    weights: NDArray[np.float64] | None = None,
) -> tuple[int, BasketModel | None]:
    """How many of a basket's rows are finite, and what the rule makes of them; None if it waits for more.

    Raises:
        RuleFailed: If a rule from outside gives no result.
    """
    finite = np.isfinite(rows).all(axis=1)
    present = int(finite.sum())
    if present < plan.least_rows(len(rows)):
        return present, None
    given = Layer1Input(
        rows[finite],
        weights=None if weights is None else weights[finite],
        num_members=len(rows),
        raw_norms=row_norms(rows[finite]) if plan.config.layer2.adaptive_clipping else None,
    )
    return present, aggregator.aggregate_basket(given)


def clipped_vector(model: BasketModel, plan: FederationPlan) -> NDArray[np.float32]:
    """A basket's vector as it goes into the sum, before its weight."""
    return clip_vector(model.aggregate, plan.config.layer2.clip_norm)


def basket_rule(plan: FederationPlan | None) -> BasketRule:
    """The rule of a basket as attackers know it: without noise, zero where it waits; None: the plain mean."""
    aggregator = None if plan is None else Layer1Aggregator(plan.config.layer1)

    def rule(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        if plan is None or aggregator is None:
            mean: NDArray[np.float32] = rows.mean(axis=0)
            return mean
        try:
            _, model = basket_model(rows, plan, aggregator)
        except RuleFailed:
            model = None
        return np.zeros(rows.shape[1], dtype=np.float32) if model is None else clipped_vector(model, plan)

    return rule
