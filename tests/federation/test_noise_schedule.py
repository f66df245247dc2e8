"""A schedule of noise in a federation: it follows the ledger, and nobody can have it otherwise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.errors import ActorLost, ConfigError
from scarcity_ray.plan import make_plan
from scarcity_ray.privacy import Charge, Ledger
from scarcity_ray.privacy.ledger.events import ReleaseCharge

D = 4
RNG = np.random.default_rng(3)
NOISE = pytest.mark.parametrize("noise", ["gaussian", "distributed_discrete_gaussian"])


def settings(**layer2: Any) -> dict[str, Any]:
    return {
        "vector_dim": D,
        "auto_aggregate": False,
        "gossip_budget_share": 0.0,
        "total_epsilon": 10.0,
        "total_delta": 1e-5,
        "basket": {"min_clients": 2},
        "buffer": {"participation_cap": 50},
        "layer1": {"aggregation_method": "mean", "num_byzantine": 0, "min_updates": 2},
        "layer2": {"central_dp_epsilon": 3.0, "central_dp_delta": 1e-5, **layer2},
        "privacy": {"noise_decay": 0.25},
        "runtime": {"baskets_per_actor": 1},
    }


@pytest.fixture
def open_with(open_federation: Any) -> Callable[..., HierarchicalFederation]:
    def open_one(**layer2: Any) -> HierarchicalFederation:
        fed: HierarchicalFederation = open_federation(settings(**layer2))
        for domain in "abcd":
            for i in range(2):
                fed.register_client(f"{domain}{i}", domain)
        return fed

    return open_one


def roles(fed: HierarchicalFederation) -> dict[str, Any]:
    return fed._runtime.peers.roles  # type: ignore[attr-defined, no-any-return]


def release(fed: HierarchicalFederation) -> Any:
    """Send an update from everybody, and release; None if nothing was released."""
    for domain in "abcd":
        for i in range(2):
            if not fed.submit_update(f"{domain}{i}", RNG.normal(size=D)):
                assert fed.get_stats()["read_only"]
    return None if fed.force_aggregate() is None else fed.get_global_meta_model()


def charges(fed: HierarchicalFederation) -> list[tuple[str, float]]:
    rows = Ledger.read(fed.plan.config.ledger_path).rows()
    return [(str(row.charge_id), row.event.mu) for row in rows if isinstance(row.event, ReleaseCharge)]


@pytest.mark.long
@NOISE
def test_noise_falls_with_each_charge_until_the_budget_is_spent_and_a_renewal_begins_it_anew(
    open_with: Any, noise: str
) -> None:
    fed = open_with(noise=noise)
    planned = int(fed.plan.num_releases)
    assert planned >= 5
    sigmas, left = [], []
    while (model := release(fed)) is not None:
        sigmas.append(model.noise_sigma)
        left.append(fed.get_stats()["n_releases_left"])
    assert len(sigmas) == planned
    assert left == list(range(planned - 1, -1, -1))
    assert sigmas[-1] / sigmas[0] == pytest.approx(0.25, rel=1e-2), "rounding to the grid is added"
    assert all(a > b for a, b in itertools.pairwise(sigmas))
    stats = fed.get_stats()
    assert stats["read_only"]
    assert stats["privacy_consumed_epsilon"] == pytest.approx(10.0, rel=1e-6)
    for number, (charge_id, mu) in enumerate(charges(fed)):
        assert charge_id.endswith(f"/step {number}")
        assert mu == pytest.approx(fed.plan.mu_of_step(number), rel=1e-9)
    fed.renew_budget(10.0, 1e-5, operator="ann")
    assert release(fed).noise_sigma == pytest.approx(sigmas[0])


def test_an_aborted_release_that_stays_charged_has_used_its_step(
    open_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = open_with()
    assert release(fed) is not None
    with monkeypatch.context() as during:
        for slot in range(4):

            def lost(*args: Any, slot: int = slot) -> Any:
                raise ActorLost(f"basket:{slot}", "unmask")

            during.setattr(roles(fed)[f"basket:{slot}"], "unmask", lost)
        assert release(fed) is None
    while release(fed) is not None:
        pass
    planned = int(fed.plan.num_releases)
    assert [charge_id[-1] for charge_id, _ in charges(fed)] == [str(k) for k in range(planned)]
    spent = math.fsum(mu * mu for _, mu in charges(fed))
    assert spent == pytest.approx(fed.plan.central_mu_cap**2, rel=1e-11)
    assert fed.get_stats()["n_layer2_aggregations"] == planned - 1


def test_a_session_of_another_step_is_refused(open_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that the mu does not follow from: the baskets recompute it, and none gives a share."""
    fed = open_with()
    aggregator = roles(fed)["global"]
    honest = aggregator._terms

    def lying(*args: Any) -> Any:
        terms = honest(*args)
        later = replace(terms.release.step, number=terms.release.step.number + 1)
        return replace(terms, release=replace(terms.release, step=later))

    monkeypatch.setattr(aggregator, "_terms", lying)
    assert release(fed) is None
    assert fed.get_stats()["n_sessions_refused"] == 4
    assert charges(fed) == []


def test_a_release_of_another_step_is_not_charged(open_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole session of another step, noise and all, in which the aggregator claims to have charged it."""
    fed = open_with()
    aggregator = roles(fed)["global"]
    last = fed.plan.schedule.step_of(fed.plan.central_mu_cap**2, int(fed.plan.num_releases) - 1)
    asked = roles(fed)["accountant"].step(0.0)
    for step in (last, replace(asked, left=0.5 * asked.left), replace(asked, number=1)):
        with monkeypatch.context() as lying:
            lying.setattr(aggregator, "_step", lambda now, step=step: step)
            assert release(fed) is None
            assert "planned as release" in fed.get_stats()["last_layer2_aborts"][-1]
            assert not fed.get_stats()["read_only"]
            lying.setattr(aggregator, "_charge", lambda *asked: Charge(True, "", 0.0, "head"))
            refused = fed.get_stats()["n_sessions_refused"]
            assert release(fed) is None
            assert fed.get_stats()["n_sessions_refused"] == refused + 4
    assert charges(fed) == []
    assert release(fed) is not None


def test_constant_noise_knows_no_step(open_federation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a schedule where there is none is refused."""
    fed = open_federation({**settings(), "privacy": {}})
    for domain in "abcd":
        for i in range(2):
            fed.register_client(f"{domain}{i}", domain)
    first = release(fed)
    assert "/step" not in charges(fed)[0][0]
    step = roles(fed)["accountant"].step(0.0)
    assert step.number == 1
    aggregator = roles(fed)["global"]
    honest = aggregator._terms

    def lying(*args: Any) -> Any:
        terms = honest(*args)
        return replace(terms, release=replace(terms.release, step=step))

    with monkeypatch.context() as during:
        during.setattr(aggregator, "_terms", lying)
        assert release(fed) is None
    assert release(fed).noise_sigma == first.noise_sigma


@pytest.mark.parametrize(
    "changed",
    [
        {"total_epsilon": math.inf},
        {"layer2": {"central_dp_epsilon": math.inf}},
        {"layer2": {"enabled": False}},
    ],
)
def test_a_schedule_needs_a_budget_and_releases(changed: dict[str, Any]) -> None:
    config = load(
        HierarchicalFederationConfig,
        {"privacy": {"noise_decay": 0.5}, "layer1": {"aggregation_method": "mean"}, **changed},
    )
    with pytest.raises(ConfigError, match=r"privacy\.noise_decay"):
        make_plan(config)
