"""What a site is told that its rows cost."""

from __future__ import annotations

from typing import Any

import pytest

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.gateway.site_desk import release_mu
from scarcity_ray.plan.federation import FederationPlan
from scarcity_ray_client.accounting.gaussian_dp import mu_of_gaussian

CENTRAL: dict[str, Any] = {
    "vector_dim": 3,
    "total_epsilon": 8.0,
    "total_delta": 1e-6,
    "gossip_budget_share": 0.0,
    "layer2": {"central_dp_epsilon": 1.0, "central_dp_delta": 1e-7, "noise": "gaussian"},
}


def plan(**changed: Any) -> FederationPlan:
    return FederationPlan(HierarchicalFederationConfig(**{**CENTRAL, **changed}))


def test_under_central_noise_a_row_costs_what_its_release_does() -> None:
    assert release_mu(plan()) == pytest.approx(mu_of_gaussian(1.0, 1e-7))


@pytest.mark.parametrize(
    "changed",
    [
        {"gossip_budget_share": 0.2},
        {"privacy": {"noise_decay": 0.9}},
        {"total_epsilon": float("inf"), "layer2": {"central_dp_epsilon": float("inf")}},
    ],
    ids=["gossip", "falling noise", "no claim"],
)
def test_no_cost_is_stated_that_is_not_all(changed: dict[str, Any]) -> None:
    assert release_mu(plan(**changed)) is None
