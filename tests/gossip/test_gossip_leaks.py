"""docs/gossip.md says what peers learn, by the package's own accounting."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.plan import make_plan
from scarcity_ray.privacy.accounting.gaussian_dp import epsilon_of_mu

TEXT = (Path(__file__).parents[2] / "docs" / "gossip.md").read_text()
PROSE = " ".join(TEXT.split())
CONFIG = HierarchicalFederationConfig()
PLAN = make_plan(CONFIG)
MU = math.hypot(PLAN.gossip.mu_drift, PLAN.gossip.mu_vector)


def learned(rounds: float) -> float:
    return epsilon_of_mu(MU * math.sqrt(rounds), CONFIG.gossip.local_dp_delta)


def test_the_table_of_rounds_is_what_the_accounting_says() -> None:
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE)
    assert len(rows) == 5
    for rounds, epsilon, naive in rows:
        assert float(epsilon) == pytest.approx(learned(int(rounds)), abs=0.005)
        assert float(naive) == pytest.approx(int(rounds) * CONFIG.gossip.local_dp_epsilon)
    assert int(rows[-1][0]) == PLAN.num_gossip_rounds


def test_the_other_figures_are_those_of_the_default_config() -> None:
    gossip = CONFIG.gossip
    assert f"epsilon {gossip.local_dp_epsilon} a round at delta 1e-5 and sigma" in PROSE
    assert gossip.local_dp_delta == 1e-5
    assert f"sigma {PLAN.gossip.sigma_vector:.1f} " in PROSE
    noise = math.sqrt(PLAN.gossip.noise_energy)
    assert f"{CONFIG.vector_dim} coordinates carries noise of norm {noise:.0f}," in PROSE
    assert f"N is {round(PLAN.gossip.noise_energy, -3):,.0f} C^2" in PROSE
    assert f"`gossip_budget_share` {CONFIG.gossip_budget_share} of" in PROSE
    separate = learned(gossip.peers_per_round * PLAN.num_gossip_rounds)
    assert f"K = {gossip.peers_per_round} peers" in PROSE
    assert f"would know {separate:.2f} after {PLAN.num_gossip_rounds:.0f} rounds" in PROSE


def test_colluding_peers_see_no_more_than_one(make, noise, gossip) -> None:
    """One draw a client and round, whatever K is: the vectors that K peers hold are one and the same."""
    for k in (1, 5):
        noise.drawn.clear()
        protocol = make(sigma_drift=1e-9, sigma_vector=0.5, peers_per_round=k)
        gossip(protocol, {f"c{i}": [0.1 * i + 0.1] * 4 for i in range(6)})
        assert set(noise.drawn.values()) == {1}
        assert len(noise.drawn) == 12
