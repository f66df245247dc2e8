"""Noise in shares: the sum that the aggregator unmasks is noised already, by everybody, anew at each attempt.

Two-sided chi-square tests at a false-alarm rate of 1e-6 each. With 4 baskets a share that is missing takes a
quarter of the variance, at 6000 coordinates 14 standard deviations of the statistic.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from scarcity_ray import HierarchicalFederation
from scarcity_ray.actors import secure_parties
from scarcity_ray.actors.secure_session import SecureSession
from scarcity_ray.actors.session_terms import agreement_hash
from scarcity_ray.errors import ActorLost
from scarcity_ray.privacy.accounting.zcdp import rho_of_shares
from scarcity_ray.privacy.ledger.answers import Charge
from scarcity_ray.privacy.sampling.noise import SeededNoise, SystemNoise
from scarcity_ray.secagg import to_signed

DIMENSION = 6000
FALSE_ALARM = 1e-6
BASKETS = [f"{domain}_basket_0" for domain in "abcd"]
SIZES = dict(zip("abcd", (3, 4, 5, 6), strict=True))


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every sum that a session hands to the global aggregator."""
    seen: list[Any] = []
    unmask = SecureSession.unmask

    def seeing(self: SecureSession, *charged: Any) -> Any:
        seen.append(np.array(unmask(self, *charged)))
        return seen[-1].copy()

    monkeypatch.setattr(SecureSession, "unmask", seeing)
    return seen


@pytest.fixture
def shares(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Every share of noise that a basket adds, by the name of its stream."""
    drawn: list[tuple[str, Any]] = []
    honest = secure_parties.add_share

    def noting(part: Any, release: Any, noise: Any, stream: str) -> Any:
        whole = honest(part, release, noise, stream)
        drawn.append((stream, to_signed(whole - part)))
        return whole

    monkeypatch.setattr(secure_parties, "add_share", noting)
    return drawn


def roles(fed: HierarchicalFederation) -> dict[str, Any]:
    return fed._runtime.peers.roles  # type: ignore[attr-defined, no-any-return]


@pytest.fixture
def open_with(open_federation: Any) -> Callable[..., HierarchicalFederation]:
    def open_one(noise: Any = None, silent: str = "", **layer2: Any) -> HierarchicalFederation:
        """Four baskets, one an actor, with updates from all but those of the domains in `silent`."""
        fed: HierarchicalFederation = open_federation(
            {
                "vector_dim": DIMENSION,
                "auto_aggregate": False,
                "gossip_budget_share": 0.0,
                "total_epsilon": 30.0,
                "basket": {"min_clients": 2},
                "layer1": {"aggregation_method": "mean", "num_byzantine": 0, "min_updates": 2},
                "layer2": {"noise": "distributed_discrete_gaussian", **layer2},
                "runtime": {"baskets_per_actor": 1},
            },
            noise=noise or SystemNoise(),
        )
        rng = np.random.default_rng(4)
        for domain, size in SIZES.items():
            for i in range(size):
                fed.register_client(f"{domain}{i}", domain)
                if domain not in silent:
                    assert fed.submit_update(f"{domain}{i}", rng.normal(size=DIMENSION) / 100.0)
        return fed

    return open_one


def passes(noise: Any, sigma: float) -> bool:
    """Whether the sum of squares is what noise of scale `sigma` has."""
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], noise.size)
    return bool(low <= float(np.sum((np.asarray(noise, np.float64) / sigma) ** 2)) <= high)


def steps_without_noise(fed: HierarchicalFederation, parties: list[str]) -> tuple[Any, Any]:
    """The parties' exact sum in grid steps, and the release's plan."""
    models = {b: fed.get_basket_meta_model(b) for b in BASKETS}
    sizes = dict(zip(BASKETS, SIZES.values(), strict=True))
    facts = [
        model.facts(b[0], sizes[b]) if model else replace(facts_of(fed, b), num_rows=0)
        for b, model in models.items()
    ]
    release = fed.plan.release(facts)
    total = np.zeros(DIMENSION)
    for b in parties:
        if models[b] is not None:
            total += np.rint(models[b].aggregate.astype(np.float64) * release.weights[b] * release.scale)
    return total, release


def facts_of(fed: HierarchicalFederation, basket: str) -> Any:
    hosts = [role for name, role in roles(fed).items() if name.startswith("basket:")]
    return next(found[basket].facts for host in hosts if basket in (found := host.reports(0.0)))


def lose(fed: HierarchicalFederation, slot: int, phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*args: Any) -> Any:
        raise ActorLost(f"basket:{slot}", phase)

    monkeypatch.setattr(roles(fed)[f"basket:{slot}"], phase, lost)


def test_the_sum_handed_to_the_aggregator_is_noised_by_all_and_it_adds_nothing(
    open_with: Any, sums: list[Any], shares: list[tuple[str, Any]]
) -> None:
    fed = open_with()

    class NoNoise:
        def standard_normal(self, shape: Any, stream: str) -> Any:
            raise AssertionError("the aggregator adds none")

        uniform_words = standard_normal

    roles(fed)["global"]._noise = NoNoise()
    released = fed.force_aggregate()
    exact, release = steps_without_noise(fed, BASKETS)
    (handed,) = sums
    noise = to_signed(handed) - exact
    assert passes(noise, math.sqrt(4) * release.share_sigma)
    assert not passes(noise, math.sqrt(3) * release.share_sigma)
    np.testing.assert_array_equal(noise, sum(share for _, share in shares))
    np.testing.assert_array_equal(released, (to_signed(handed) / release.scale).astype(np.float32))
    meta = fed.get_global_meta_model()
    assert meta.noise_sigma == pytest.approx(2 * release.share_sigma / release.scale)
    assert passes(released.astype(np.float64) - exact / release.scale, meta.noise_sigma)
    assert len({stream for stream, _ in shares}) == 4


def test_one_basket_that_skips_its_share_is_seen(
    open_with: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = secure_parties.add_share

    def skipping(part: Any, release: Any, noise: Any, stream: str) -> Any:
        return part if stream.endswith("c_basket_0") else honest(part, release, noise, stream)

    monkeypatch.setattr(secure_parties, "add_share", skipping)
    fed = open_with()
    assert fed.force_aggregate() is not None
    exact, release = steps_without_noise(fed, BASKETS)
    assert not passes(to_signed(sums[0]) - exact, math.sqrt(4) * release.share_sigma)


def test_a_basket_that_joins_with_the_zero_vector_adds_its_share(
    open_with: Any, sums: list[Any], shares: list[tuple[str, Any]]
) -> None:
    fed = open_with(silent="b")
    assert fed.force_aggregate() is not None
    exact, release = steps_without_noise(fed, BASKETS)
    assert release.weights["b_basket_0"] == 0.0
    assert passes(to_signed(sums[0]) - exact, math.sqrt(4) * release.share_sigma)
    (own,) = [share for stream, share in shares if stream.endswith("b_basket_0")]
    assert passes(own, release.share_sigma)


@pytest.mark.parametrize("phase", ["advertise", "share_keys", "mask"])
def test_dropouts_down_to_the_threshold_leave_the_noise_that_is_claimed(
    open_with: Any, sums: list[Any], phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = open_with()
    lose(fed, 1, phase, monkeypatch)
    assert fed.force_aggregate() is not None
    survivors = [b for b in BASKETS if b != basket_at(fed, 1)]
    exact, release = steps_without_noise(fed, survivors)
    noise = to_signed(sums[0]) - exact
    assert passes(noise, math.sqrt(3) * release.share_sigma)
    assert not passes(noise, math.sqrt(4) * release.share_sigma)
    # Of three survivors one may be corrupt: what the other two added keeps the charge.
    assert release.num_honest == 2
    rho = rho_of_shares(release.share_sigma, 2, release.grid_sensitivity(BASKETS), release.length)
    assert 0.5 * release.mu**2 * (1 - 1e-8) <= rho <= 0.5 * release.mu**2
    meta = fed.get_global_meta_model()
    unit = release.scale * release.surviving_weight(survivors)
    assert meta.noise_sigma == pytest.approx(math.sqrt(3) * release.share_sigma / unit)


def basket_at(fed: HierarchicalFederation, slot: int) -> str:
    (basket,) = roles(fed)[f"basket:{slot}"].reports(0.0)
    return str(basket)


def test_below_the_threshold_nothing_is_unmasked_and_no_share_is_used_again(
    open_with: Any, sums: list[Any], shares: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for noise in (SystemNoise(), SeededNoise(3)):
        shares.clear()
        sums.clear()
        fed = open_with(noise)
        with monkeypatch.context() as patch:
            lose(fed, 1, "confirm", patch)
            lose(fed, 2, "confirm", patch)
            assert fed.force_aggregate() is None
        assert sums == []
        assert len(shares) == 4
        released = fed.force_aggregate()
        assert released is not None
        assert len(shares) == 8
        assert len({share.tobytes() for _, share in shares}) == 8
        assert len({stream for stream, _ in shares}) == 8
        exact, _ = steps_without_noise(fed, BASKETS)
        np.testing.assert_array_equal(to_signed(sums[0]) - exact, sum(share for _, share in shares[4:]))


def test_the_ledger_is_in_zcdp_and_says_what_the_shares_were_scaled_to(open_with: Any, tmp_path: Any) -> None:
    fed = open_with()
    assert fed.force_aggregate() is not None
    _, release = steps_without_noise(fed, BASKETS)
    with sqlite3.connect(f"file:{fed.plan.config.ledger_path}?mode=ro", uri=True) as connection:
        records = [json.loads(r) for (r,) in connection.execute("SELECT record FROM ledger ORDER BY seq")]
    assert "zcdp" in json.dumps(records[0])
    (charge,) = [r for r in records if "grid_share_sigma" in json.dumps(r)]
    details = charge["body"]["details"]
    assert details["grid_share_sigma"] == release.share_sigma
    assert details["shares_counted_on"] == release.num_honest == 2
    assert details["grid_sensitivity"] == release.grid_sensitivity(BASKETS)
    assert charge["body"]["mu"] == release.mu


Forge = Callable[[Any], Any]
LIES: dict[str, Forge] = {
    "less noise": lambda t: replace(t, release=replace(t.release, share_sigma=t.release.share_sigma / 2)),
    "no noise": lambda t: replace(t, release=replace(t.release, share_sigma=0.0)),
    "central noise": lambda t: replace(t, release=replace(t.release, noise="gaussian", share_sigma=0.0)),
    "a lower sensitivity": lambda t: replace(
        t, release=replace(t.release, sensitivities=dict.fromkeys(t.release.sensitivities, 1e-3))
    ),
    "a greater weight": lambda t: replace(
        t, release=replace(t.release, weights={**t.release.weights, "a_basket_0": 1.0})
    ),
    "more rows than there are": lambda t: replace(
        t, facts={b: replace(s, facts=replace(s.facts, num_rows=90)) for b, s in t.facts.items()}
    ),
    "a missing fact": lambda t: replace(t, facts={b: f for b, f in t.facts.items() if b[0] != "c"}),
    "another threshold": lambda t: replace(t, context=replace(t.context, threshold=4)),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_session_of_other_numbers_is_refused(
    open_with: Any, sums: list[Any], lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = open_with()
    aggregator = roles(fed)["global"]
    honest = aggregator._terms

    def lying(*args: Any) -> Any:
        """The lie, told to all alike, with the hash that goes with it."""
        terms = LIES[lie](honest(*args))
        told = agreement_hash(np.zeros(0, np.float32), terms.release)
        return replace(terms, context=replace(terms.context, model_hash=told))

    monkeypatch.setattr(aggregator, "_terms", lying)
    assert fed.force_aggregate() is None
    assert sums == []
    assert fed.get_stats()["n_sessions_refused"] == 4
    monkeypatch.setattr(aggregator, "_terms", honest)
    assert fed.force_aggregate() is not None


def charges_of(fed: HierarchicalFederation) -> list[str]:
    with sqlite3.connect(f"file:{fed.plan.config.ledger_path}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT charge_id FROM ledger WHERE charge_id LIKE 'layer2/%'")
        return [charge for (charge,) in rows]


def test_what_the_aggregator_does_not_charge_the_baskets_do(
    open_with: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = open_with()
    monkeypatch.setattr(
        roles(fed)["global"],
        "_charge",
        lambda terms, survivors, now, num_left_out: Charge(True, "", 0.0, "head"),
    )
    assert fed.force_aggregate() is not None
    assert len(charges_of(fed)) == 1
    assert fed.get_stats()["privacy_consumed_epsilon"] > 0.0


def test_nothing_is_unmasked_that_was_not_charged(
    open_with: Any, sums: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = open_with()
    monkeypatch.setattr(
        roles(fed)["global"],
        "_charge",
        lambda terms, survivors, now, num_left_out: Charge(True, "", 0.0, "head"),
    )
    refused = Charge(False, "it does not fit", 0.0, "head")
    monkeypatch.setattr(roles(fed)["accountant"], "charge_release", lambda *args: refused)
    assert fed.force_aggregate() is None
    assert sums == []
    assert fed.get_stats()["n_sessions_refused"] == 4
    assert charges_of(fed) == []
