"""Audits of a release whose unit is a person, from the person's records to the released vector.

White box, many runs, a step at a time: the auditor knows everything but one person's records, and what
earlier releases tell of the noise. Honest, the audit stays below the claim of the step, wherever it stands
in a schedule of noise; with the person's clip skipped, a count inflated, the noise halved, used again or
drawn for a later step, or a rule claimed a constant that it has not, it exceeds it. All limits of an audit,
on both sides, are wrong with probability at most 1e-6 together, and a break is found with probability at
least 0.95 (`audit_power`; in truth nearly always: the breaks are about twice their claim or more).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import scarcity_ray.privacy.sensitivity
from benchmarks.lab.audit import (
    ManyRunAudit,
    audit_power,
    beyond,
    guess_coins,
    many_run_audit,
    one_run_epsilon,
)
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input
from scarcity_ray.layers.layer2 import contribution, noised_mean
from scarcity_ray.plan import FederationPlan, ReleasePlan, make_plan
from scarcity_ray.privacy import NoiseSource, SystemNoise
from scarcity_ray_client import persons
from scarcity_ray_client.persons import person_mean

SURE = 1 - 1e-6
EPSILON, DELTA, C = 2.0, 1e-5, 1.0
COUNTS = [40, 60, 50, 90, 45, 70, 80]
"""Persons of the sites of a basket; person 0 of the first site is the one that is replaced."""
CAMPS = [0.0, 0.5, 0.5, 0.5, -0.5, -0.5, -0.5]
"""Where the sites' rows lie along the first axis."""
ASSUMED = {"trimmed_mean": 1, "median": 1, "krum": 2}
"""The f of each rule; Krum's is such that the row in the middle decides which camp's row is chosen."""
RUNS = pytest.mark.parametrize("runs", [8_192, pytest.param(400_000, marks=pytest.mark.slow)])
POWER = 0.95


def federation(
    method: str, law: str = "gaussian", *, decay: float = 1.0, dimension: int = 3
) -> HierarchicalFederationConfig:
    settings = {
        "vector_dim": dimension,
        "total_epsilon": 6.0,
        "total_delta": DELTA,
        "gossip_budget_share": 0.0,
        "basket": {"min_clients": 7},
        "layer1": {"aggregation_method": method, "num_byzantine": ASSUMED.get(method, 0)},
        "layer2": {"central_dp_epsilon": EPSILON, "central_dp_delta": DELTA, "noise": law},
        "privacy": {"unit": "person", "min_persons": 40, "noise_decay": decay},
    }
    return load(HierarchicalFederationConfig, settings)


def row_of_a_site(count: int, first: float, others: float) -> Any:
    """A site's row: every person but the first contributes `others` along the first axis."""
    records = np.zeros((count + 1, 3))
    records[:, 0] = others
    records[:2, 0] = first  # two records of one person
    keys = np.concatenate([[0], np.arange(count)])
    return person_mean(records, keys, clip_norm=C, min_persons=40).row


def step_of(config: HierarchicalFederationConfig, number: int) -> FederationPlan:
    """The plan of one release of a budget in which noise falls; -1 is its last."""
    plan = make_plan(config)
    return plan.after(number % int(plan.num_releases))


def released(plan: FederationPlan, first: Any, runs: int, stated: list[int], noise: NoiseSource) -> Any:
    """What many releases are along the axis that matters, if the first site's row is `first`."""
    layer1 = Layer1Aggregator(plan.config.layer1)
    weights = [plan.row_weight(count) for count in stated]
    others = [row_of_a_site(n, at, at) for n, at in zip(COUNTS[1:], CAMPS[1:], strict=True)]
    models = [
        layer1.aggregate_basket(
            Layer1Input(np.array(given, np.float32), weights, num_persons=stated, basket_id=name)
        )
        for name, given in (("a", [first, *others]), ("b", [np.zeros(3)] * 7))
    ]
    release = plan.release([model.facts("", 7) for model in models])
    parts = [contribution(model, model.basket_id, release, plan) for model in models]
    ring_sum = np.add.reduce(parts, dtype=parts[0].dtype)
    noised, _ = noised_mean(np.tile(ring_sum, (runs, 1)), release, ["a", "b"], noise, "audit")
    return noised[:, 0]


def audit(
    plan: FederationPlan,
    runs: int,
    size: float,
    stated: list[int] = COUNTS,
    noise: Callable[[], NoiseSource] = SystemNoise,
    before: FederationPlan | None = None,
) -> ManyRunAudit:
    """Audit a release, given the one `before` it: there the person did the same, so it shows its noise."""
    sides = []
    for sign in (-1.0, 1.0):
        own = noise()
        shown = released(before or plan, row_of_a_site(COUNTS[0], 0.0, 0.0), runs, stated, own)
        here = released(plan, row_of_a_site(COUNTS[0], sign * size, 0.0), runs, stated, own)
        sides.append(beyond(here, shown))
    return many_run_audit(*sides, delta=DELTA, confidence=SURE)


@RUNS
@pytest.mark.parametrize(
    ("method", "law"),
    [
        ("mean", "gaussian"),
        ("mean", "discrete_gaussian"),
        ("weighted", "gaussian"),
        ("trimmed_mean", "gaussian"),
        ("median", "gaussian"),
        ("centered_clipping", "gaussian"),
        ("krum", "gaussian"),
    ],
)
def test_a_release_stays_below_its_claim_about_one_person(method: str, law: str, runs: int) -> None:
    plan = make_plan(federation(method, law))
    bound = audit(plan, runs, 50.0)
    assert bound.mu < plan.mu_release
    assert bound.epsilon < EPSILON
    if method in ("mean", "trimmed_mean", "median", "centered_clipping"):
        assert bound.mu_at_most > 0.9 * plan.mu_release, "the worst neighbours, so that a break can be seen"
    if method == "mean":
        assert bound.mu_at_most > 0.97 * plan.mu_release, "nor is there more noise than the grid adds"


def halve_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ReleasePlan.grid_sigma
    monkeypatch.setattr(ReleasePlan, "grid_sigma", lambda self, survivors: 0.5 * right(self, survivors))


def skip_the_persons_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    right = persons._clipped_sum
    monkeypatch.setattr(
        persons, "_clipped_sum", lambda sums, groups, clip_norm, *rest: right(sums, groups, 1e9, *rest)
    )


def claim_a_constant_for_krum(monkeypatch: pytest.MonkeyPatch) -> None:
    table = scarcity_ray.privacy.sensitivity._LIPSCHITZ
    monkeypatch.setitem(table, "krum", table["median"])


def change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the break that is in what the sites state."""


@RUNS
@pytest.mark.parametrize(
    ("method", "broken", "size", "stated"),
    [
        ("mean", halve_the_noise, 1.0, COUNTS),
        ("median", halve_the_noise, 1.0, COUNTS),
        ("mean", skip_the_persons_clip, 10.0, COUNTS),
        ("trimmed_mean", skip_the_persons_clip, 10.0, COUNTS),
        ("mean", change_nothing, 1.0, [2 * count for count in COUNTS]),
        ("median", change_nothing, 1.0, [2 * count for count in COUNTS]),
        ("krum", claim_a_constant_for_krum, 1.0, COUNTS),
    ],
)
def test_a_broken_claim_about_one_person_is_exposed(
    method: str, broken: Any, size: float, stated: list[int], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(federation(method))
    assert audit_power(plan.mu_release, 1.9 * plan.mu_release, runs, confidence=SURE) >= POWER
    broken(monkeypatch)
    bound = audit(plan, runs, size, stated)
    assert bound.mu > plan.mu_release
    # The bound that supposes nothing of the noise is weaker: twice the claim it sees with many runs only.
    assert bound.epsilon > EPSILON or runs < 100_000


class UsedAgain:
    """The system's noise, of which each release gets the same."""

    def __init__(self) -> None:
        self._drawn: Any = None

    def standard_normal(self, shape: Any, stream: str) -> Any:
        if self._drawn is None:
            self._drawn = SystemNoise().standard_normal(shape, stream)
        return self._drawn.copy()

    def uniform_words(self, stream: str) -> Any:
        raise NotImplementedError


FALLING = federation("mean", decay=0.4)
STEPS = pytest.mark.parametrize("number", [1, -1])


@RUNS
@STEPS
def test_each_step_of_a_schedule_stays_below_its_own_claim(number: int, runs: int) -> None:
    plan = step_of(FALLING, number)
    bound = audit(plan, runs, 50.0, before=step_of(FALLING, number - 1))
    claimed = plan.schedule.mu(plan.step)
    assert bound.mu < claimed < bound.mu_at_most / 0.97, "nor is there more noise than the grid adds"


@RUNS
@STEPS
@pytest.mark.parametrize("broken", ["noise halved", "noise used again", "clip skipped", "count inflated"])
def test_a_broken_step_of_a_schedule_is_exposed(
    broken: str, number: int, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, before = step_of(FALLING, number), step_of(FALLING, number - 1)
    claimed = plan.schedule.mu(plan.step)
    assert audit_power(claimed, 1.9 * claimed, runs, confidence=SURE) >= POWER
    if broken == "noise halved":
        halve_the_noise(monkeypatch)
    if broken == "clip skipped":
        skip_the_persons_clip(monkeypatch)
    bound = audit(
        plan,
        runs,
        size=10.0 if broken == "clip skipped" else 1.0,
        stated=[2 * count for count in COUNTS] if broken == "count inflated" else COUNTS,
        noise=UsedAgain if broken == "noise used again" else SystemNoise,
        before=before,
    )
    assert bound.mu > claimed


@RUNS
def test_the_noise_of_a_later_step_is_exposed(runs: int) -> None:
    """An early release that has the last one's noise, 0.4 of its own."""
    first, last = step_of(FALLING, 0), step_of(FALLING, -1)
    claimed = first.schedule.mu(first.step)
    assert audit_power(claimed, 2.4 * claimed, runs, confidence=SURE) >= POWER
    assert audit(last, runs, 1.0).mu > claimed


BREAKS = pytest.mark.parametrize("broken", ["", "noise a sixteenth", "clip skipped", "count inflated"])


@BREAKS
def test_one_run_with_a_canary_a_person(broken: str) -> None:
    """1200 persons, each with an axis and a coin of its own, in one release of 1200 coordinates.

    One run sees little: the expected share of right guesses says of which breaks it can tell.
    """
    m, delta, sites = 1200, 1e-9, 8
    config = federation("mean", dimension=m)
    config = replace(
        config,
        total_delta=delta,
        layer2=replace(config.layer2, central_dp_delta=delta),
        basket=replace(config.basket, min_clients=4),
        layer1=replace(config.layer1, min_updates=3),
        privacy=replace(config.privacy, min_persons=m // sites),
    )
    plan = make_plan(config)
    tossed = np.where(np.unpackbits(np.frombuffer(np.random.default_rng(8).bytes(m // 8), np.uint8)), 1, -1)
    contributions = np.diag(tossed * (16.0 if broken == "clip skipped" else C))
    means = np.stack([part.mean(axis=0) for part in np.split(contributions, sites)])
    stated = [m // sites * (16 if broken == "count inflated" else 1)] * (sites // 2)
    layer1 = Layer1Aggregator(config.layer1)
    models = [
        layer1.aggregate_basket(Layer1Input(rows.astype(np.float32), num_persons=stated, basket_id=name))
        for name, rows in zip("ab", np.split(means, 2), strict=True)
    ]
    release = plan.release([model.facts("", sites // 2) for model in models])
    parts = [contribution(model, model.basket_id, release, plan) for model in models]
    noise = Scaled(1 / 16 if broken == "noise a sixteenth" else 1.0)
    seen, _ = noised_mean(np.add.reduce(parts, dtype=parts[0].dtype), release, ["a", "b"], noise, "audit")
    guesses = guess_coins(seen, m // 5)
    correct = int(np.sum(guesses == tossed))
    bound = one_run_epsilon(m, m // 5, correct, delta=delta, confidence=SURE)
    assert (bound > EPSILON) == bool(broken)
    assert seen @ tossed / np.linalg.norm(seen) > (20.0 if broken else 0.5), "the canaries are in the release"


class Scaled(SystemNoise):
    """The system's noise, too small by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def standard_normal(self, shape: Any, stream: str) -> Any:
        return self.factor * super().standard_normal(shape, stream)
