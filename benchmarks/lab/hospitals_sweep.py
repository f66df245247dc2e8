"""The job ``configs/hospitals.yaml`` as arithmetic: many trainings of one seed side by side, without Ray.

Every training has its own model, rule, attack, placement of attackers and noise; data, hospitals and test are
a seed's. Rows are those of the workload's `train` (tests/benchmarks/test_hospitals.py holds them against it),
attacks are the lab's, and rule, clip norms, weights and noise are those of a federation with the same plan.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab.releases import Releases, Rows
from scarcity_ray.config import (
    AggregationMethod,
    CentralNoise,
    HierarchicalFederationConfig,
    PrivacyConfig,
    PrivacyUnit,
    load,
    stream,
)
from scarcity_ray.forecast import solve_for_rounds
from scarcity_ray.forecast.noise_places import site_sigma
from scarcity_ray.layers import server_optimizer
from scarcity_ray.plan import FederationPlan, make_plan
from scarcity_ray.workloads.attacks import AttackConfig, BasketRule, craft, poisons, strongest
from scarcity_ray_client.loading import load_workload
from scarcity_ray_client.metrics import auc

Floats = NDArray[np.float64]
Placement = Literal["spread", "pairs", "gathered"]
"""Of attackers: as many in each basket; twice as many in half of the baskets; as few baskets as they fill."""

TURNED = "turned"
"""An attack beside the lab's, on the whole training: all attackers send, in every round, a row of norm C
against what the training without noise and attack learns, which they know."""
HIDDEN = "hidden"
"""Likewise, but they send the honest mean of their basket, moved against that by the multiple of the honest
rows' deviation that takes the rule furthest: they hide in what honest rows differ by, or are noised with."""


@dataclass(frozen=True)
class Arm:
    """One training.

    Attributes:
        rule: Of each basket; ``plain_mean``: the mean of all rows, nothing clipped, and never any noise.
        unit: Of privacy; of ``client`` the rows are those of ``record``.
        one_basket: All hospitals are one basket, which a federation refuses (it needs at least two).
        byzantine_fraction: That the rule reckons with.
        pre: What goes before the rule.
        at_source: Each hospital noises its row before it leaves (``noise: site``); releases have none.
        momentum: Of each hospital's noised rows, kept by its basket.
        clipping_radius: Of centred clipping; None: the job's.
        rounds, learning_rate: None: the job's.
    """

    rule: str
    attack: str = "none"
    placement: Placement = "spread"
    noisy: bool = True
    unit: str = "record"
    one_basket: bool = False
    byzantine_fraction: float = 0.0
    pre: tuple[Literal["nnm"], ...] = ()
    at_source: bool = False
    momentum: float = 0.0
    clipping_radius: float | None = None
    rounds: int | None = None
    learning_rate: float | None = None


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
        rule, sigma = AggregationMethod(arm.rule.replace(PLAIN_MEAN, "mean")), None
        if arm.at_source:
            config = replace(config, layer2=replace(config.layer2, noise=CentralNoise.DISCRETE_GAUSSIAN))
            sigma = site_sigma(config, arm.rounds or self.job["training"]["rounds"])
        radius = None
        if rule is AggregationMethod.CENTERED_CLIPPING:
            radius = arm.clipping_radius or config.layer1.clipping_radius
        layer1 = replace(
            config.layer1,
            aggregation_method=rule,
            clipping_radius=radius,
            byzantine_fraction=arm.byzantine_fraction,
            pre=arm.pre,
            clip_norm=config.layer1.clip_norm
            if sigma is None
            else _longest(self.clip_norm, sigma, len(self.initial)),
        )
        privacy = replace(config.privacy, unit=PrivacyUnit(arm.unit))
        if arm.unit == "client":
            privacy = PrivacyConfig()
        basket = config.basket
        if arm.one_basket:
            basket = replace(basket, min_clients=self.num_sites, max_clients=self.num_sites)
        made = replace(config, basket=basket, layer1=layer1, privacy=privacy)
        return make_plan(solve_for_rounds(made, arm.rounds) if arm.rounds else made)


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
    if any(arm.attack in (TURNED, HIDDEN) for arm in arms):
        goal = (_trained(trial, [CLEAN], None)[0] - trial.initial).astype(np.float64)
    vectors = _trained(trial, arms, goal)
    return [trial.auc_of(vector) for vector in vectors]


@dataclass
class _Site:
    """What an arm's hospitals send where they noise their rows, and what their baskets keep of it.

    Attributes:
        sigmas: (sites, 1) noise of each coordinate.
        reached: (sites, d) momentum of what was sent.
        honest: Of what each would have sent if it were honest.
        longest: Clip norm of noised rows.
    """

    momentum: float
    sigmas: Floats
    reached: Floats
    honest: Floats
    longest: float

    def noised(self, rows: Rows, rng: np.random.Generator) -> Rows:
        """The momenta that baskets would see of honest rows, (sites, d)."""
        sent = rows + self.sigmas * rng.standard_normal(rows.shape)
        self.honest = self.momentum * self.honest + (1.0 - self.momentum) * sent
        return self.honest.astype(np.float32)

    def kept(self, aimed: Rows, liars: NDArray[np.bool_]) -> Rows:
        """The momenta that baskets see where liars aim at theirs, as far as a clipped row takes them."""
        sent = (aimed - self.momentum * self.reached) / (1.0 - self.momentum)
        norms = np.sqrt((sent**2).sum(axis=1, keepdims=True))
        sent *= np.minimum(1.0, self.longest / np.maximum(norms, 1e-300))
        moved = self.momentum * self.reached + (1.0 - self.momentum) * sent
        self.reached = np.where(liars[:, None], moved, self.honest)
        return self.reached.astype(np.float32)


def _site(trial: Trial, arm: Arm, rounds: int) -> _Site | None:
    if not arm.at_source:
        return None
    plan, dimension = trial.plan(arm), len(trial.initial)
    sigma, least = site_sigma(plan.config, rounds), plan.config.privacy.min_persons or 1
    counts = np.ones(trial.num_sites) if arm.unit == "client" else trial.num_units(arm.unit)
    sigmas = arm.noisy * sigma * least / counts[:, None]
    still = np.zeros((trial.num_sites, dimension))
    return _Site(arm.momentum, sigmas, still, still, _longest(trial.clip_norm, sigma, dimension))


def _longest(clip_norm: float, sigma: float, dimension: int) -> float:
    """The least clip norm that leaves noised rows as they are."""
    return clip_norm + sigma * (math.sqrt(dimension) + 3.0)


def _trained(trial: Trial, arms: Sequence[Arm], goal: Floats | None) -> NDArray[np.float32]:
    """(arms, d) the models after all rounds."""
    given = trial.job["training"]
    optimizers = [
        server_optimizer(
            **given["optimizer"] | ({"learning_rate": arm.learning_rate} if arm.learning_rate else {})
        )
        for arm in arms
    ]
    rounds = [arm.rounds or given["rounds"] for arm in arms]
    vectors = np.repeat(trial.initial[None], len(arms), axis=0)
    states = [optimizer.init(vectors.shape[1]) for optimizer in optimizers]
    attacks = [
        load(AttackConfig, {"name": "none" if arm.attack in (TURNED, HIDDEN) else arm.attack}) for arm in arms
    ]
    liars = np.array([trial.byzantine(arm.placement) & (arm.attack != "none") for arm in arms])
    poisoned = liars & np.array([poisons(attack) for attack in attacks])[:, None]
    by_person = np.array([arm.unit == "person" for arm in arms])
    baskets = [trial.baskets(arm.one_basket) for arm in arms]
    releases = [_releases(trial, arm) for arm in arms]
    sites = [_site(trial, arm, number) for arm, number in zip(arms, rounds, strict=True)]
    streams = [stream(trial.seed, "hospitals", place) for place in range(len(arms))]
    for number in range(max(rounds)):
        rows = rows_of(trial, vectors, poisoned, by_person)
        for place, (arm, release, rng) in enumerate(zip(arms, releases, streams, strict=True)):
            if number >= rounds[place]:
                continue
            own, site = rows[place], sites[place]
            if site is not None:
                own = site.noised(own, rng)
            if arm.attack == TURNED and goal is not None:
                own[liars[place]] = -trial.clip_norm * goal / np.linalg.norm(goal)
            rule = _mean if release is None else release.of_basket
            if arm.attack == HIDDEN and goal is not None:
                against = (-goal / np.linalg.norm(goal)).astype(np.float32)
                sent = _hidden(own, liars[place], baskets[place], rule, against)
            else:
                sent = craft(attacks[place], own, liars[place], baskets[place], rng, rule)
            if site is not None:
                sent = site.kept(sent, liars[place])
            if release is None:
                delta = sent.mean(axis=0, dtype=np.float64)
            else:
                delta, sigma = release.of(sent, number)
                if site is None:
                    delta = delta + arm.noisy * sigma * rng.standard_normal(delta.size)
            states[place], vectors[place] = optimizers[place].step(
                states[place], vectors[place], delta, number
            )
    return vectors


def _hidden(
    rows: Rows, liars: NDArray[np.bool_], baskets: NDArray[np.int64], rule: BasketRule, against: Rows
) -> Rows:
    """The rows of all hospitals, under `HIDDEN`; a basket without honest ones looks at those of all."""
    sent = rows.copy()
    for basket in np.unique(baskets[liars]):
        inside = baskets == basket
        honest = rows[inside & ~liars] if (inside & ~liars).any() else rows[~liars]
        mean, deviation = honest.mean(axis=0), np.float32(np.sqrt(honest.var(axis=0).sum()))

        lying = liars[inside]

        def of(strength: float, mean: Rows = mean, deviation: np.float32 = deviation) -> Rows:
            row: Rows = mean + np.float32(strength) * deviation * against
            return row

        def harm(strength: float, at: NDArray[np.bool_] = inside, lying: NDArray[np.bool_] = lying) -> float:
            moved = rows[at]
            moved[lying] = of(strength)
            return float(rule(moved) @ against)

        sent[inside & liars] = of(strongest(harm, 20.0))
    return sent


def _releases(trial: Trial, arm: Arm) -> Releases | None:
    if arm.rule == PLAIN_MEAN:
        return None
    counts = None if arm.unit == "client" else trial.num_units(arm.unit)
    return Releases(trial.plan(arm), trial.baskets(arm.one_basket), counts)


def _mean(rows: Rows) -> Rows:
    return rows.mean(axis=0)
