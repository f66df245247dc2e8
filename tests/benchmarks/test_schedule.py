"""The benchmark of falling noise: every arm spends the same budget in the rounds that it trains."""

from __future__ import annotations

import pytest

from benchmarks.hospitals import CONFIG
from benchmarks.schedule import DECAYS, with_noise, with_rate
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.config.yaml_text import read_yaml
from scarcity_ray.plan import make_plan


@pytest.mark.parametrize("decay", DECAYS)
def test_each_arm_spends_the_budget_in_its_rounds(decay: float) -> None:
    job = with_rate(with_noise(read_yaml(CONFIG), 20, 0.5, decay), 5.0, falls=True)
    plan = make_plan(load(HierarchicalFederationConfig, {**job["federation"], "vector_dim": 10}))
    assert job["training"]["rounds"] == plan.num_releases == 20
    spent = sum(plan.mu_of_step(k) ** 2 for k in range(20))
    assert plan.accounting.epsilon_of(spent**0.5, 1e-6) == pytest.approx(0.5, rel=1e-3)
