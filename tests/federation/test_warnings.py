"""What a driver is warned of: once, with the figure and what would change it, and in the statistics."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from scarcity_ray import (
    ClippingWarning,
    HierarchicalFederation,
    HierarchicalFederationConfig,
    NoiseWarning,
    PrivacyWarning,
    ScarcityWarning,
)

SAFE = {
    "expose_basket_models": False,
    "gossip_budget_share": 0.0,
    "total_delta": 1e-6,
    "vector_dim": 4,
    "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
    "layer2": {"assumed_corrupt_fraction": 0.0},
}


def heard(caught: list[warnings.WarningMessage]) -> list[type[Warning]]:
    return [found.category for found in caught if issubclass(found.category, ScarcityWarning)]


def play(fed: HierarchicalFederation, size: int = 5, norm: float = 0.5, rounds: int = 2) -> None:
    fed.register_clients([(f"c{i}", "ab"[i % 2]) for i in range(2 * size)])
    for number in range(rounds):
        for i in range(2 * size):
            row = np.random.default_rng([number, i]).normal(size=fed.config.vector_dim)
            fed.submit_update(f"c{i}", norm * row / np.linalg.norm(row))
        fed.run_gossip_round()
        fed.maybe_aggregate()
        fed.advance_round()


def test_the_specifications_defaults_are_told_that_noise_drowns_them(open_federation: Any) -> None:
    with pytest.warns(ScarcityWarning) as caught:
        fed = open_federation({})
    assert heard(caught.list) == [PrivacyWarning, PrivacyWarning, NoiseWarning]
    assert "119 times its clip norm" in str(caught[2].message)
    with pytest.warns(ScarcityWarning) as caught:
        play(fed)
    assert heard(caught.list).count(NoiseWarning) == 1
    (noise,) = (str(w.message) for w in caught.list if w.category is NoiseWarning)
    assert "noise has norm 29.8, 29.8 times the greatest that its signal can have, 1" in noise
    told = {warning["code"]: warning for warning in fed.get_stats()["warnings"]}
    assert set(told) == {
        "basket_models_exposed",
        "gossip_noise_drowns_signal",
        "noise_drowns_signal",
        "weak_masking",
    }
    assert len(told["noise_drowns_signal"]["remedies"]) == 4
    for remedy in told["noise_drowns_signal"]["remedies"]:
        assert remedy in noise


@pytest.mark.parametrize("domains", [2, 3, 20])
def test_what_few_baskets_are_worth_is_kept_only_while_they_are_few(
    domains: int, open_federation: Any
) -> None:
    fed = open_federation({**SAFE, "layer2": {"central_dp_epsilon": 0.5}})

    def told() -> bool:
        return "weak_masking" in [warning["code"] for warning in fed.get_stats()["warnings"]]

    assert told()
    clients = [(f"c{d}_{i}", f"d{d}") for d in range(domains) for i in range(3)]
    fed.register_clients(clients[:6])
    assert told()
    if domains == 20:
        fed.submit_updates([c for c, _ in clients[:6]], np.full((6, 4), 0.1))
        assert fed.get_global_model() is not None
        fed.advance_round()
    fed.register_clients(clients[6:])
    assert told() == (domains != 3), "the release of two baskets was weak, however many there are now"
    fed.submit_updates([c for c, _ in clients], np.full((len(clients), 4), 0.1))
    assert fed.get_global_meta_model().n_baskets == domains
    assert told() == (domains == 2)


def test_a_warning_points_at_the_drivers_line(open_federation: Any) -> None:
    with pytest.warns(PrivacyWarning) as caught:
        HierarchicalFederation(HierarchicalFederationConfig(), runtime="local").close()
    assert caught[0].filename == __file__


def test_the_noise_is_told_before_it_costs_anything(open_federation: Any) -> None:
    fed = open_federation({"gossip_budget_share": 0.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoiseWarning)
        with pytest.raises(NoiseWarning):
            play(fed)
    assert fed.get_privacy_budget()[0] == 10.0


def test_a_warning_that_is_an_error_is_raised_each_time(open_federation: Any) -> None:
    fed = open_federation({"gossip_budget_share": 0.0})
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoiseWarning)
        fed.register_clients([(f"c{i}", "ab"[i % 2]) for i in range(10)])
        rows = np.random.default_rng(0).normal(size=(10, fed.config.vector_dim))
        with pytest.raises(NoiseWarning):
            fed.submit_updates([f"c{i}" for i in range(10)], rows)
        for release in (fed.maybe_aggregate, fed.force_aggregate, fed.maybe_aggregate):
            with pytest.raises(NoiseWarning):
                release()
    assert fed.get_privacy_budget()[0] == 10.0
    with pytest.warns(NoiseWarning):
        assert fed.force_aggregate() is not None
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoiseWarning)
        fed.maybe_aggregate()


@pytest.mark.parametrize("noise", ["gaussian", "distributed_discrete_gaussian"])
def test_the_noise_is_told_when_enough_baskets_are_there(noise: str, open_federation: Any) -> None:
    fed = open_federation({"gossip_budget_share": 0.0, "layer2": {"noise": noise}, "vector_dim": 4})
    for domain in ("first", "second"):
        told = [warning["code"] for warning in fed.get_stats()["warnings"]]
        assert "noise_drowns_signal" not in told
        fed.register_clients([(f"{domain}{i}", domain) for i in range(5)])
        for i in range(5):
            fed.submit_update(f"{domain}{i}", np.full(4, 0.1))
    assert "noise_drowns_signal" in [warning["code"] for warning in fed.get_stats()["warnings"]]


def test_a_quiet_and_careful_federation_is_told_nothing(open_federation: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScarcityWarning)
        fed = open_federation(SAFE)
        play(fed, size=60, rounds=1)
    assert fed.get_stats()["warnings"] == []


def test_every_warning_is_given_once(open_federation: Any) -> None:
    with pytest.warns(ScarcityWarning) as caught:
        play(open_federation({}), norm=40.0, rounds=4)
    messages = [str(found.message) for found in caught.list]
    assert len(messages) == len(set(messages)) == 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"total_epsilon": math.inf}, "total_epsilon is infinite"),
        ({"total_epsilon": 40.0}, r"factor of e\^40"),
        ({"layer2": {"use_secure_aggregation": False}}, "without noise"),
        ({"expose_basket_models": True}, "outside the privacy claim"),
    ],
)
def test_weak_settings_are_told_at_the_start(changes: Any, words: str, open_federation: Any) -> None:
    with pytest.warns(PrivacyWarning, match=words):
        open_federation({**SAFE, **changes})


def test_a_delta_above_one_in_n_is_told_once_n_is_known(open_federation: Any) -> None:
    fed = open_federation({**SAFE, "total_delta": 0.01, "total_epsilon": 30.0})
    with pytest.warns(PrivacyWarning, match=r"1/n with 120 clients is 0\.00833"):
        play(fed, size=60)


def test_weights_in_place_of_deltas_are_told_with_the_figures(open_federation: Any) -> None:
    fed = open_federation({})
    with pytest.warns(
        ClippingWarning, match=r"10 of 10 updates .* \(median norm 40\) .* less the global model"
    ):
        play(fed, norm=40.0, rounds=1)
    baskets = fed.get_stats()["basket_stats"]["a"]["baskets"]["a_basket_0"]
    assert baskets["clipping"] == pytest.approx(
        {"num_rows": 5, "num_clipped": 5, "median_norm": 40.0, "clip_norm": 1.0}, rel=1e-6
    )


def test_shares_of_clipped_rows_are_counted_a_basket(open_federation: Any) -> None:
    fed = open_federation({"vector_dim": 4, "gossip_budget_share": 0.0})
    fed.register_clients([(f"c{i}", "a") for i in range(5)])
    for i, norm in enumerate([0.5, 0.9, 3.0, 4.0, 0.1]):
        fed.submit_update(f"c{i}", np.full(4, norm / 2))
    clipping = fed.get_stats()["basket_stats"]["a"]["baskets"]["a_basket_0"]["clipping"]
    assert (clipping["num_rows"], clipping["num_clipped"]) == (5, 2)
    assert clipping["median_norm"] == pytest.approx(0.9)


def test_norms_are_told_nobody_where_basket_models_are_private(open_federation: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClippingWarning)
        fed = open_federation({"expose_basket_models": False})
        play(fed, norm=40.0)
    assert "clipping" not in str(fed.get_stats()["basket_stats"])
    assert "updates_clipped" not in str(fed.get_stats()["warnings"])


def test_some_long_updates_are_ordinary(open_federation: Any) -> None:
    fed = open_federation({"vector_dim": 4, "gossip_budget_share": 0.0})
    fed.register_clients([(f"c{i}", "a") for i in range(5)])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ClippingWarning)
        for i in range(5):
            fed.submit_update(f"c{i}", np.full(4, 5.0 if i else 0.1))
    assert fed.get_basket_model("a") is not None


@pytest.mark.parametrize("claim", [1, 10**9])
def test_one_great_claim_is_told_before_its_noise_drowns_the_release(
    claim: int, open_federation: Any
) -> None:
    """In whichever release: a claim may come when the first is long past."""
    layer1 = {"aggregation_method": "weighted", "byzantine_fraction": 0.0}
    fed = open_federation(SAFE | {"total_epsilon": 10.0, "auto_aggregate": False, "layer1": layer1})
    fed.register_clients([(f"c{i}", f"d{i % 3}") for i in range(120)])
    ids = [f"c{i}" for i in range(120)]
    heard_of: list[list[str]] = []
    for number, most in enumerate([1, claim]):
        rows = np.full((120, 4), 0.5 / (number + 1))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert all(fed.submit_updates(ids, rows, num_examples=[most, *[1] * 119]))
            model = fed.force_aggregate()
        heard_of.append([str(found.message) for found in caught if found.category is NoiseWarning])
        fed.advance_round()
    assert model is not None
    assert heard_of[0] == []
    if claim == 1:
        assert heard_of[1] == []
        return
    (message,) = heard_of[1]
    assert f"norm {2.0 * fed.get_global_meta_model().noise_sigma:.3g}" in message
    assert "layer1.max_examples (now 1000)" in message
    assert "weights_drown_signal" in {warning["code"] for warning in fed.get_stats()["warnings"]}
