"""Rows that a client noises, audited as their readers see them: below the claim, and above it where broken.

A step at a time, with all else known: two sites that differ in one person, many rows of each, lower bounds
on mu of which each is wrong with probability at most 1e-6 (`benchmarks.lab.audit`). A claim that is broken by
a factor of two is found out with probability at least 0.95 (`audit_power`). And one run, a canary a person.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from benchmarks.lab.audit import ManyRunAudit, audit_power, guess_coins, many_run_audit, one_run_epsilon
from scarcity_ray.privacy import SeededNoise, mu_of_gaussian
from scarcity_ray_client import SiteNoise, persons
from scarcity_ray_client.noise.source import NoiseSource
from scarcity_ray_client.persons import person_mean
from scarcity_ray_client.site_noise import noised_row

C, COUNT, DELTA, SURE = 1.0, 50, 1e-5, 1 - 1e-6
RUNS = 20_000
Noised = Callable[[Any], Any]


def row_of_a_site(first: float) -> Any:
    """A site's row: one of 50 persons contributes along the first axis, the others nothing."""
    records = np.zeros((COUNT + 1, 3))
    records[:2, 0] = first  # two records of one person
    keys = np.concatenate([[0], np.arange(COUNT)])
    return person_mean(records, keys, clip_norm=C, min_persons=COUNT).row


def audit(noise: SiteNoise, size: float, stated: int = COUNT) -> ManyRunAudit:
    sides = [noise.noised(np.tile(row_of_a_site(at), (RUNS, 1)), stated)[:, 0] for at in (-size, size)]
    return many_run_audit(*sides, delta=DELTA, confidence=SURE)


@pytest.mark.parametrize("is_discrete", [True, False])
def test_a_noised_row_stays_below_its_claim_about_one_person(is_discrete: bool) -> None:
    noise = SiteNoise(1.0, C, COUNT, 3, is_discrete)
    assert 0.7 * noise.mu < audit(noise, 50.0).mu < noise.mu, (
        "the neighbours are the worst ones, so that a break can be seen"
    )


def halve_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    right = SiteNoise.grid_sigma
    monkeypatch.setattr(SiteNoise, "grid_sigma", lambda self, count: 0.5 * right(self, count))


def skip_the_persons_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    right = persons._clipped_sum
    monkeypatch.setattr(
        persons, "_clipped_sum", lambda sums, groups, clip_norm, *rest: right(sums, groups, 1e9, *rest)
    )


def change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the break that is in what the site states."""


@pytest.mark.parametrize("is_discrete", [True, False])
@pytest.mark.parametrize(
    ("broken", "size", "stated"),
    [(halve_the_noise, 1.0, COUNT), (skip_the_persons_clip, 10.0, COUNT), (change_nothing, 1.0, 4 * COUNT)],
)
def test_a_broken_row_is_exposed(
    broken: Any, size: float, stated: int, is_discrete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = SiteNoise(1.0, C, COUNT, 3, is_discrete)
    assert audit_power(noise.mu, 1.9 * noise.mu, RUNS, confidence=SURE) >= 0.95
    broken(monkeypatch)
    assert audit(noise, size, stated).mu > noise.mu


def two_rows(noise: SiteNoise, source: NoiseSource | None) -> ManyRunAudit:
    """The difference of two rows, charged twice; the person contributes to the first alone."""
    sides = []
    for at in (-C, C):
        first, second = (
            noise.noised(np.tile(row_of_a_site(size), (RUNS, 1)), COUNT, source, "row")[:, 0]
            for size in (at, 0.0)
        )
        sides.append(first - second)
    return many_run_audit(*sides, delta=DELTA, confidence=SURE)


def test_noise_that_is_used_again_is_exposed() -> None:
    noise = SiteNoise(1.0, C, COUNT, 3)
    claimed = np.sqrt(2.0) * noise.mu
    assert two_rows(noise, None).mu < claimed
    assert two_rows(noise, SeededNoise(1)).mu > claimed


@pytest.mark.parametrize("broken", ["", "clips skipped", "count inflated", "noise a sixteenth"])
def test_one_noised_row_with_a_canary_a_person(broken: str) -> None:
    """1200 persons, an axis and a coin each. One run sees little: only breaks by a factor of 16."""
    m, epsilon, delta = 1200, 2.0, 1e-9
    noise = SiteNoise(mu_of_gaussian(epsilon, delta), C, m, m, is_discrete=False)
    coins = np.where(np.unpackbits(np.frombuffer(np.random.default_rng(8).bytes(m // 8), np.uint8)), 1, -1)
    skipped, stated = broken == "clips skipped", m * (16 if broken == "count inflated" else 1)
    seen = noised_row(
        coins * (16.0 if skipped else C) / m,
        sigma=noise.grid_sigma(stated) / (16.0 if broken == "noise a sixteenth" else 1.0),
        step=noise.step(stated),
        clip_norm=16.0 if skipped else C,
        is_discrete=False,
    )
    correct = int(np.sum(guess_coins(seen, m // 5) == coins))
    bound = one_run_epsilon(m, m // 5, correct, delta=delta, confidence=SURE)
    assert (bound > epsilon) == bool(broken)
    assert seen @ coins / np.linalg.norm(seen) > (20.0 if broken else 0.5), "the canaries are in the row"
