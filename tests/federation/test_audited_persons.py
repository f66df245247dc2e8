"""Audits of a release whose unit is a person, from the person's records to the released vector.

White box, one step, many runs: the auditor knows everything but one person's records. Honest, the audit stays
below the claim; with the person's clip skipped, a count inflated, the noise halved, or a rule claimed a
constant that it has not, it exceeds it. Every bound is wrong with probability at most 1e-6.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import scarcity_ray.privacy.sensitivity
from benchmarks.lab.audit import ManyRunAudit, many_run_audit
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input
from scarcity_ray.layers.layer2 import contribution, noised_mean
from scarcity_ray.plan import ReleasePlan, make_plan
from scarcity_ray.privacy import SystemNoise
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
RUNS = pytest.mark.parametrize("runs", [30_000, pytest.param(400_000, marks=pytest.mark.slow)])


def federation(method: str, law: str = "gaussian") -> HierarchicalFederationConfig:
    settings = {
        "vector_dim": 3,
        "total_epsilon": 50.0,
        "total_delta": DELTA,
        "gossip_budget_share": 0.0,
        "basket": {"min_clients": 7},
        "layer1": {"aggregation_method": method, "num_byzantine": ASSUMED.get(method, 0)},
        "layer2": {"central_dp_epsilon": EPSILON, "central_dp_delta": DELTA, "noise": law},
        "privacy": {"unit": "person", "min_persons": 40},
    }
    return load(HierarchicalFederationConfig, settings)


def row_of_a_site(count: int, first: float, others: float) -> Any:
    """A site's row: every person but the first contributes `others` along the first axis."""
    records = np.zeros((count + 1, 3))
    records[:, 0] = others
    records[:2, 0] = first  # two records of one person
    keys = np.concatenate([[0], np.arange(count)])
    return person_mean(records, keys, clip_norm=C, min_persons=40).row


def audit(config: HierarchicalFederationConfig, runs: int, size: float, stated: list[int]) -> ManyRunAudit:
    plan, layer1 = make_plan(config), Layer1Aggregator(config.layer1)
    weights = [plan.row_weight(count) for count in stated]
    releases = []
    for sign in (-1.0, 1.0):
        first = row_of_a_site(COUNTS[0], sign * size, 0.0)
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
        noised, _ = noised_mean(np.tile(ring_sum, (runs, 1)), release, ["a", "b"], SystemNoise(), "audit")
        releases.append(noised[:, 0])
    return many_run_audit(*releases, delta=DELTA, confidence=SURE)


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
    config = federation(method, law)
    claimed = make_plan(config).mu_release
    bound = audit(config, runs, 50.0, COUNTS)
    assert bound.mu < claimed
    assert bound.epsilon < EPSILON
    if method in ("mean", "trimmed_mean", "median", "centered_clipping"):
        assert bound.mu > 0.5 * claimed, "the neighbours are the worst ones, so that a break can be seen"


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
        ("mean", change_nothing, 1.0, [4 * count for count in COUNTS]),
        ("median", change_nothing, 1.0, [4 * count for count in COUNTS]),
        ("krum", claim_a_constant_for_krum, 1.0, COUNTS),
    ],
)
def test_a_broken_claim_about_one_person_is_exposed(
    method: str, broken: Any, size: float, stated: list[int], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = federation(method)
    claimed = make_plan(config).mu_release
    broken(monkeypatch)
    bound = audit(config, runs, size, stated)
    assert bound.mu > claimed
    # The bound that supposes nothing of the noise is weaker: twice the claim it sees with many runs only.
    assert bound.epsilon > EPSILON or (runs < 100_000 and broken is halve_the_noise)
