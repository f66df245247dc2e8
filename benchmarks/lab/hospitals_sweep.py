"""The job ``configs/hospitals.yaml`` as arithmetic: many trainings of one seed side by side, without Ray.

Every training has its own model, rule, attack, placement of attackers and noise; data, hospitals and test are
a seed's. Rows are those of the workload's `train` (tests/benchmarks/test_hospitals.py holds them against it),
attacks are the lab's, and rule, clip norms, weights and noise are those of a federation with the same plan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab.releases import Releases, Rows
from scarcity_ray.config import (
    AggregationMethod,
    HierarchicalFederationConfig,
    PrivacyConfig,
    PrivacyUnit,
    load,
    stream,
)
from scarcity_ray.layers import server_optimizer
from scarcity_ray.plan import FederationPlan, make_plan
from scarcity_ray.workloads.attacks import AttackConfig, craft, poisons
from scarcity_ray_client.loading import load_workload
from scarcity_ray_client.metrics import auc

Floats = NDArray[np.float64]
Placement = Literal["spread", "pairs", "gathered"]
"""Of attackers: as many in each basket; twice as many in half of the baskets; as few baskets as they fill."""

TURNED = "turned"
"""An attack beside the lab's, on the whole training: all attackers send, in every round, a row of norm C
against what the training without noise and attack learns, which they know."""


@dataclass(frozen=True)
class Arm:
    """One training.

    Attributes:
        rule: Of each basket; ``plain_mean``: the mean of all rows, nothing clipped, and never any noise.
        unit: Of privacy; of ``client`` the rows are those of ``record``.
        one_basket: All hospitals are one basket, which a federation refuses (it needs at least two).
        byzantine_fraction: That the rule reckons with.
    """

    rule: str
    attack: str = "none"
    placement: Placement = "spread"
    noisy: bool = True
    unit: str = "record"
    one_basket: bool = False
    byzantine_fraction: float = 0.0


PLAIN_MEAN = "plain_mean"
CLEAN = Arm(PLAIN_MEAN, noisy=False)


@dataclass(frozen=True, eq=False)
class Trial:
    """A job's data at one seed, which says who is where, who attacks, and what the noise is.

    Attributes:
        starts: (sites + 1,) where each hospital's records begin among `features`, and their end.
        features: (N, d) with the intercept's ones.
        persons: (N,) numbers of people, each one's records in a row.
        auc_centralised: Of what the workload learns from all data in one place.
    """

    job: dict[str, Any]
    seed: int
    initial: NDArray[np.float32]
    starts: NDArray[np.int64]
    features: Floats
    labels: NDArray[np.bool_]
    persons: NDArray[np.int64]
    domains: tuple[str, ...]
    auc_centralised: float
    test_features: Floats
    test_labels: NDArray[np.int64]

    @property
    def num_sites(self) -> int:
        return len(self.domains)

    @property
    def clip_norm(self) -> float:
        """C, of a record's (person's) gradient."""
        return float(self.job["workload"]["args"]["clip_norm"])

    def num_units(self, unit: str) -> NDArray[np.int64]:
        """(sites,) records or persons of each."""
        if unit != "person":
            return np.diff(self.starts)
        return np.array([len(np.unique(self.persons[a:b])) for a, b in self._spans])

    @property
    def _spans(self) -> list[tuple[int, int]]:
        return list(zip(self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True))

    def baskets(self, one_basket: bool = False) -> NDArray[np.int64]:
        """(sites,) the basket of each: a domain's clients in order."""
        if one_basket:
            return np.zeros(self.num_sites, np.int64)
        most = self.job["federation"]["basket"]["max_clients"]
        names: dict[tuple[str, int], int] = {}
        found = []
        for place, domain in enumerate(self.domains):
            earlier = self.domains[:place].count(domain)
            found.append(names.setdefault((domain, earlier // most), len(names)))
        return np.array(found)

    def byzantine(self, placement: Placement) -> NDArray[np.bool_]:
        """(sites,) who attacks: the job's share of all, drawn within their baskets."""
        rng = stream(self.seed, "hospitals", "byzantine")
        baskets = self.baskets()
        order = rng.permutation(baskets.max() + 1)
        number = round(self.job["lab"]["byzantine_share"] * self.num_sites)
        drawn = [rng.permutation(np.flatnonzero(baskets == basket)) for basket in order]
        if placement == "pairs":
            drawn = drawn[: (len(drawn) + 1) // 2]
        if placement == "gathered":
            chosen = np.concatenate(drawn)[:number]
        else:
            turns = [place for turn in range(max(map(len, drawn))) for place in _turn(drawn, turn)]
            chosen = np.array(turns[:number])
        return np.isin(np.arange(self.num_sites), chosen)

    def auc_of(self, vector: NDArray[np.float32]) -> float:
        """A model's AUC on the test."""
        return auc(self.test_labels, self.test_features @ vector.astype(np.float64))

    def plan(self, arm: Arm) -> FederationPlan:
        """The job's plan with an arm's rule, unit of privacy and f."""
        config = load(
            HierarchicalFederationConfig, {**self.job["federation"], "vector_dim": len(self.initial)}
        )
        rule = AggregationMethod(arm.rule)
        radius = config.layer1.clipping_radius if rule is config.layer1.aggregation_method else None
        layer1 = replace(
            config.layer1,
            aggregation_method=rule,
            clipping_radius=radius,
            byzantine_fraction=arm.byzantine_fraction,
        )
        privacy = replace(config.privacy, unit=PrivacyUnit(arm.unit))
        if arm.unit == "client":
            privacy = PrivacyConfig()
        basket = config.basket
        if arm.one_basket:
            basket = replace(basket, min_clients=self.num_sites, max_clients=self.num_sites)
        return make_plan(replace(config, basket=basket, layer1=layer1, privacy=privacy))


def _turn(drawn: Sequence[NDArray[np.int64]], turn: int) -> list[int]:
    return [int(basket[turn]) for basket in drawn if turn < len(basket)]


def trial_of(job: dict[str, Any], folder: str, seed: int) -> Trial:
    """The data of a job at a seed."""
    workload: Any = load_workload(
        job["workload"]["class"], {**job["workload"]["args"], "split": seed}, folder
    )
    clients = workload.clients()
    held, test = [workload.patients(client) for client in clients], workload.test
    return Trial(
        job=job,
        seed=seed,
        initial=workload.codec().encode(workload.initial_model()),
        starts=np.cumsum([0, *(len(each.labels) for each in held)]),
        features=_with_ones(np.concatenate([each.features for each in held])),
        labels=np.concatenate([each.labels for each in held]) == 1,
        persons=np.concatenate([each.persons for each in held]),
        domains=tuple(client.domain_id for client in clients),
        auc_centralised=workload.evaluate(workload.centralised())["auc"],
        test_features=_with_ones(test.features),
        test_labels=test.labels,
    )


def widened(trial: Trial, dimension: int) -> Trial:
    """The same with more coordinates: beside each record's features the tanh of random mixtures of them."""
    given = trial.features.shape[1] - 1
    mixtures = np.random.default_rng(0).standard_normal((given, dimension - given - 1)) / np.sqrt(given)

    def wide(features: Floats) -> Floats:
        own, ones = features[:, :-1], features[:, -1:]
        return np.hstack([own, np.tanh(own @ mixtures), ones])

    initial = np.zeros(dimension, np.float32)
    initial[-1] = trial.initial[-1]
    features, test = wide(trial.features), wide(trial.test_features)
    return replace(trial, initial=initial, features=features, test_features=test)


def _with_ones(features: NDArray[np.float32]) -> Floats:
    return np.hstack([features.astype(np.float64), np.ones((len(features), 1))])


def rows_of(
    trial: Trial, vectors: NDArray[np.float32], poisoned: NDArray[np.bool_], by_person: NDArray[np.bool_]
) -> Rows:
    """The rows of all hospitals in several trainings: minus the mean of clipped gradients.

    Args:
        vectors: (trainings, d) models.
        poisoned: (trainings, sites) whose labels are turned.
        by_person: (trainings,) whether a person's gradient is clipped, else a record's.

    Returns:
        (trainings, sites, d).
    """
    x, starts = trial.features, trial.starts
    records = np.diff(starts)
    turned = np.repeat(poisoned.T, records, axis=0)
    slopes = 0.5 + 0.5 * np.tanh(0.5 * (x @ vectors.T.astype(np.float64)))
    slopes -= trial.labels[:, None] ^ turned
    lengths = np.sqrt((x**2).sum(axis=1, keepdims=True))
    limits = trial.clip_norm / lengths
    rows = np.empty((len(vectors), trial.num_sites, x.shape[1]))
    alone = np.flatnonzero(~by_person)
    clipped = np.clip(slopes[:, alone], -limits, limits)
    for site, (a, b) in enumerate(trial._spans):
        rows[alone, site] = clipped[a:b].T @ x[a:b] / (b - a)
    firsts, sites_of = _persons(trial)
    years = np.diff(np.append(firsts, len(x)))
    for place in np.flatnonzero(by_person):
        means = np.add.reduceat(x * slopes[:, place, None], firsts) / years[:, None]
        norms = np.sqrt((means**2).sum(axis=1))
        means *= np.minimum(1.0, trial.clip_norm / np.maximum(norms, 1e-300))[:, None]
        begins = np.flatnonzero(np.diff(sites_of, prepend=-1))
        rows[place] = np.add.reduceat(means, begins) / trial.num_units("person")[:, None]
    return (-rows).astype(np.float32)


def _persons(trial: Trial) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each person's records begin, and the hospital of each person."""
    sites = np.repeat(np.arange(trial.num_sites), np.diff(trial.starts))
    new = (np.diff(trial.persons, prepend=-1) != 0) | (np.diff(sites, prepend=-1) != 0)
    firsts = np.flatnonzero(new)
    return firsts, sites[firsts]


def run(trial: Trial, arms: Sequence[Arm]) -> list[float]:
    """The AUC on the test after all rounds, of each arm."""
    goal = None
    if any(arm.attack == TURNED for arm in arms):
        goal = (_trained(trial, [CLEAN], None)[0] - trial.initial).astype(np.float64)
    vectors = _trained(trial, arms, goal)
    return [trial.auc_of(vector) for vector in vectors]


def _trained(trial: Trial, arms: Sequence[Arm], goal: Floats | None) -> NDArray[np.float32]:
    """(arms, d) the models after all rounds."""
    optimizer = server_optimizer(**trial.job["training"]["optimizer"])
    vectors = np.repeat(trial.initial[None], len(arms), axis=0)
    states = [optimizer.init(vectors.shape[1]) for _ in arms]
    attacks = [load(AttackConfig, {"name": "none" if arm.attack == TURNED else arm.attack}) for arm in arms]
    liars = np.array([trial.byzantine(arm.placement) & (arm.attack != "none") for arm in arms])
    poisoned = liars & np.array([poisons(attack) for attack in attacks])[:, None]
    by_person = np.array([arm.unit == "person" for arm in arms])
    baskets = [trial.baskets(arm.one_basket) for arm in arms]
    releases = [_releases(trial, arm) for arm in arms]
    streams = [stream(trial.seed, "hospitals", place) for place in range(len(arms))]
    for number in range(trial.job["training"]["rounds"]):
        rows = rows_of(trial, vectors, poisoned, by_person)
        for place, (arm, release, rng) in enumerate(zip(arms, releases, streams, strict=True)):
            own = rows[place]
            if arm.attack == TURNED and goal is not None:
                own[liars[place]] = -trial.clip_norm * goal / np.linalg.norm(goal)
            rule = _mean if release is None else release.of_basket
            sent = craft(attacks[place], own, liars[place], baskets[place], rng, rule)
            if release is None:
                delta = sent.mean(axis=0, dtype=np.float64)
            else:
                delta, sigma = release.of(sent, number)
                delta = delta + arm.noisy * sigma * rng.standard_normal(delta.size)
            states[place], vectors[place] = optimizer.step(states[place], vectors[place], delta, number)
    return vectors


def _releases(trial: Trial, arm: Arm) -> Releases | None:
    if arm.rule == PLAIN_MEAN:
        return None
    counts = None if arm.unit == "client" else trial.num_units(arm.unit)
    return Releases(trial.plan(arm), trial.baskets(arm.one_basket), counts)


def _mean(rows: Rows) -> Rows:
    return rows.mean(axis=0)
