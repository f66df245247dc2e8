"""With discrete Gaussian noise the ledger is in zCDP, for good, and each release has that noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats

from scarcity_ray import HierarchicalFederation, LedgerError
from scarcity_ray.privacy import Ledger
from scarcity_ray.privacy.accounting.zcdp import epsilon_of_rho, rho_of_claim

DIMENSION = 2000
FALSE_ALARM = 1e-6


def settings(**layer2: Any) -> dict[str, Any]:
    return {
        "vector_dim": DIMENSION,
        "total_epsilon": 3.0,
        "total_delta": 1e-5,
        "gossip_budget_share": 0.3,
        "gossip": {"local_dp_epsilon": 0.5},
        "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
        "layer2": {"central_dp_epsilon": 1.0, "noise": "discrete_gaussian", **layer2},
    }


def play(fed: HierarchicalFederation) -> Any:
    for i in range(10):
        fed.register_client(f"c{i}", "a" if i < 5 else "b")
    for i in range(10):
        fed.submit_update(f"c{i}", np.zeros(DIMENSION))
    released = fed.maybe_aggregate()
    fed.run_gossip_round()
    fed.advance_round()
    return None if released is None else fed.get_global_meta_model()


@pytest.mark.parametrize("secure", [True, False])
def test_the_whole_budget_is_spent_in_zcdp(open_federation: Any, secure: bool) -> None:
    given = settings(use_secure_aggregation=secure)
    fed = open_federation(given)
    models = []
    while (model := play(fed)) is not None:
        models.append(model)
    # As many as rho buys: each is what (1, 1e-5) buys, of 70 % of what (3, 1e-5) buys.
    assert (
        len(models) == int(0.7 * rho_of_claim(3.0, 1e-5) / rho_of_claim(1.0, 1e-5)) == fed.plan.num_releases
    )
    found = fed.get_stats()
    assert found["privacy_accounting"] == "zcdp"
    assert found["privacy_consumed_epsilon"] <= 3.0
    rows = list(Ledger.read(found["ledger_path"]).rows())
    central = sum(row.body["mu"] ** 2 for row in rows if row.kind == "release")
    gossip = sum(row.body["mu"] ** 2 for row in rows if row.kind == "gossip")
    assert gossip > 0
    assert found["privacy_consumed_epsilon"] == pytest.approx(
        epsilon_of_rho((central + gossip) / 2, 1e-5), rel=1e-9
    )
    for row in rows:
        if row.kind == "release":
            details = row.body["details"]
            assert details["grid_sensitivity"] / details["grid_sigma"] <= row.body["mu"]
    ledger = found["ledger_path"]
    fed.close()
    with pytest.raises(LedgerError, match=r"adds up zcdp.*gaussian_dp"):
        open_federation({**settings(noise="gaussian"), "ledger_path": ledger})


def test_the_released_noise_has_the_planned_scale_and_lies_on_the_grid(open_federation: Any) -> None:
    fed = open_federation({**settings(), "gossip_budget_share": 0.0})
    model = play(fed)
    sigma = 2 / 5 / 2 / np.sqrt(2 * rho_of_claim(1.0, 1e-5))
    assert model.noise_sigma == pytest.approx(sigma, rel=1e-3)
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], DIMENSION)
    size = np.sum(model.aggregate.astype(np.float64) ** 2)
    assert low < size / sigma**2 < high
    assert not low < size / (1.5 * sigma) ** 2 < high
    assert not low < size / (sigma / 1.5) ** 2 < high
