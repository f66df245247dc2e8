"""The same federated training as plain array arithmetic: what the comparison runs are made of.

One pure function runs the rounds: local training, attack, clipping, a rule in each basket, a weighted mean,
Gaussian noise. It leaves gossip out, and its noise comes from a seed: no privacy claim covers its results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import AggregationMethod, stream
from scarcity_ray.layers.layer1 import Layer1Aggregator
from scarcity_ray.plan import BasketFacts, FederationPlan
from scarcity_ray.robust import clip_vector, row_norms
from scarcity_ray.workloads.attacks import AttackConfig, BasketRule, craft
from scarcity_ray.workloads.averaging import RunningModel
from scarcity_ray.workloads.scene import Scene
from scarcity_ray.workloads.softmax import accuracy, train_clients


@dataclass(frozen=True)
class Defence:
    """How a simulated run aggregates.

    Attributes:
        plan: Clip norms, rule, f, weights and noise scale; None: the plain mean of all updates as they come.
        noisy: Whether the global delta gets the plan's Gaussian noise.
    """

    plan: FederationPlan | None
    noisy: bool = True


def simulate(scene: Scene, attack: AttackConfig, defence: Defence) -> list[float]:
    """Train under an attack and a defence; return the test accuracy after each round.

    *Guarantees*
        the same arguments give the same accuracies
    """
    population, workload = scene.population, scene.workload
    model = RunningModel.zeros(workload.dimension)
    rule = basket_rule(defence.plan)
    accuracies = []
    for number in range(workload.rounds):
        deltas = train_clients((0, population.num_clients), scene.training(model.current, attack))
        rng = stream(scene.seed, "simulate", attack.name, number)
        sent = craft(attack, deltas, population.byzantine, scene.baskets, rng, rule)
        if defence.plan is None:
            delta = sent.mean(axis=0)
        else:
            delta, sigma = federated_delta(sent, scene.baskets, defence.plan)
            if defence.noisy:
                delta = (delta + sigma * rng.standard_normal(delta.size)).astype(np.float32)
        model = model.step(delta, workload.server_learning_rate, workload.averaging_decay)
        accuracies.append(accuracy(model.average, scene.dataset.test_features, scene.dataset.test_labels))
    return accuracies


def federated_delta(
    rows: NDArray[np.float32], baskets: NDArray[np.int64], plan: FederationPlan
) -> tuple[NDArray[np.float32], float]:
    """The noiseless global delta of a round, and the standard deviation of the noise it needs.

    Rows that are not finite are left out, as a federation refuses them; a basket that then has fewer rows
    than its rule needs waits.

    Args:
        rows: (clients, d) float32, as sent.
        baskets: (clients,) the basket of each client.
        plan: The federation's numbers.

    Returns:
        The (d,) float32 delta, zero if every basket waits, and sigma.
    """
    layer1 = plan.config.layer1
    facts, vectors = [], {}
    for basket in np.unique(baskets):
        inside = rows[baskets == basket]
        members, name = len(inside), str(basket)
        present, vector = basket_vector(inside, plan)
        if vector is None:
            facts.append(BasketFacts(name, "", members))
            continue
        vectors[name] = vector
        share = 1.0 / present if layer1.aggregation_method is AggregationMethod.WEIGHTED else None
        facts.append(BasketFacts(name, "", members, present, plan.num_byzantine(members), share))
    if not vectors:
        return np.zeros(rows.shape[1], dtype=np.float32), 0.0
    release = plan.release(facts)
    total = np.zeros(rows.shape[1], dtype=np.float64)
    for name, vector in vectors.items():
        total += release.weights[name] * vector.astype(np.float64)
    survivors = list(release.weights)
    return total.astype(np.float32), release.grid_sigma(survivors) / release.scale


def basket_vector(rows: NDArray[np.float32], plan: FederationPlan) -> tuple[int, NDArray[np.float32] | None]:
    """How many of a basket's rows are finite, and what the rule makes of them; None if it waits for more."""
    finite = np.isfinite(row_norms(rows))
    present = int(finite.sum())
    if present < plan.least_rows(len(rows)):
        return present, None
    model = Layer1Aggregator(plan.config.layer1).aggregate(rows[finite], num_members=len(rows))
    return present, clip_vector(model.aggregate, plan.config.layer2.clip_norm)


def basket_rule(plan: FederationPlan | None) -> BasketRule:
    """What attackers know of a basket: its rule without noise, zero where it waits; None: the plain mean."""

    def rule(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        if plan is None:
            mean: NDArray[np.float32] = rows.mean(axis=0)
            return mean
        _, vector = basket_vector(rows, plan)
        return np.zeros(rows.shape[1], dtype=np.float32) if vector is None else vector

    return rule
