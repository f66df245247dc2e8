"""A federation whose unit of privacy is a person: registration, refusals, facts, noise, ledger and words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, IdentityKeyPair, LedgerError, UsageError
from scarcity_ray_client.persons import person_mean

DIMENSION = 6
NAMES = [f"{domain}{i}" for domain in "ab" for i in range(3)]
COUNTS = [120, 400, 250, 300, 150, 500]
LEAST = 100


def settings(unit: str = "person", **sections: Any) -> dict[str, Any]:
    return {
        "vector_dim": DIMENSION,
        "auto_aggregate": False,
        "gossip_budget_share": 0.0,
        "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0},
        "layer2": {"central_dp_epsilon": 1.0, "central_dp_delta": 1e-6},
        "basket": {"min_clients": 3, "max_clients": 5},
        "privacy": {"unit": unit, "min_persons": LEAST} if unit != "client" else {},
        **sections,
    }


def joined(fed: HierarchicalFederation, counts: list[int | None] | None = None) -> HierarchicalFederation:
    for name, count in zip(NAMES, COUNTS if counts is None else counts, strict=True):
        fed.register_client(name, name[0], num_examples=count)
    return fed


def rows() -> Any:
    rng = np.random.default_rng(6)
    return [
        person_mean(rng.normal(size=(n, DIMENSION)), clip_norm=1.0, min_persons=LEAST).row for n in COUNTS
    ]


def facts_of(fed: HierarchicalFederation, domain: str) -> Any:
    model = fed.get_basket_meta_model(domain)
    assert model is not None
    return model.facts(domain, 3)


def test_the_noise_follows_the_smallest_site_of_each_basket(open_federation: Any) -> None:
    sigmas = {}
    for unit in ("person", "client"):
        fed = joined(open_federation(settings(unit)))
        fed.submit_updates(NAMES, np.array(rows()))
        assert fed.force_aggregate() is not None
        assert [facts_of(fed, d).num_persons for d in "ab"] == (
            [120, 150] if unit == "person" else [None] * 2
        )
        release = fed.get_global_meta_model()
        assert release is not None
        sigmas[unit] = release.noise_sigma
        assert fed.get_stats()["privacy_consumed_epsilon"] > 0
    assert sigmas["client"] / sigmas["person"] == pytest.approx(120, rel=2e-3)


def test_what_an_update_states_goes_before_what_was_registered(open_federation: Any) -> None:
    fed = joined(open_federation(settings()))
    fed.submit_updates(NAMES, np.array(rows()), num_examples=[None, 200, 130, None, 110, None])
    assert fed.offer_update("a1", rows()[1] / 2, num_examples=115)
    fed.force_aggregate()
    assert [facts_of(fed, d).num_persons for d in "ab"] == [115, 110]


def test_weights_by_persons_count_each_person_alike(open_federation: Any) -> None:
    """Below the cap a person's share is one of all persons, whatever site it is of."""
    layer1 = {"aggregation_method": "weighted", "byzantine_fraction": 0.0, "max_examples": 1000}
    fed = joined(open_federation(settings(layer1=layer1)))
    fed.submit_updates(NAMES, np.array(rows()))
    fed.force_aggregate()
    for domain, counts in (("a", COUNTS[:3]), ("b", COUNTS[3:])):
        facts = facts_of(fed, domain)
        assert facts.max_row_share / facts.num_persons == pytest.approx(1 / sum(counts))
        assert fed.plan.sensitivity(facts) == pytest.approx(2 / sum(counts), rel=2e-3)


def test_sites_below_the_least_number_are_refused_with_that_reason(open_federation: Any) -> None:
    fed = joined(open_federation(settings()), [None, LEAST, *[500] * 4])
    with pytest.raises(
        UsageError, match=r"num_examples: 99 is not accepted; at least privacy.min_persons = 100"
    ):
        fed.register_client("new", "a", num_examples=99)
    assert fed.get_client("new") is None
    for stated, accepted in ((None, False), (99, False), (100, True)):
        receipt = fed.offer_update("a0", rows()[0] * (stated or 1) / 1000, num_examples=stated)
        assert (bool(receipt), receipt.reason) == (accepted, None if accepted else "too_few_persons")
    assert fed.offer_update("a1", rows()[1])
    assert fed.get_stats()["rejections"] == {"too_few_persons": 2}


def test_who_has_a_key_signs_the_number_of_its_persons(open_federation: Any) -> None:
    """What was registered for it is not signed, so it does not stand in for a number that is missing."""
    fed = joined(open_federation(settings()))
    fed.register_client("signed", "a", identity_keypair=IdentityKeyPair.generate(), num_examples=10**6)
    assert fed.offer_update("signed", rows()[0]).reason == "too_few_persons"
    assert fed.offer_update("signed", rows()[0], num_examples=130)
    fed.submit_updates(NAMES[1:3], np.array(rows()[1:3]))
    fed.force_aggregate()
    assert facts_of(fed, "a").num_persons == 130


def test_a_ledger_of_another_unit_is_refused(open_federation: Any, tmp_path: Any) -> None:
    ledger = {"ledger_path": str(tmp_path / "one.sqlite")}
    open_federation({**settings(), **ledger}).close()
    for unit in ("client", "record"):
        with pytest.raises(LedgerError, match=r"'replace-one person of one client'.*privacy.unit: " + unit):
            open_federation({**settings(unit), **ledger})
    open_federation({**settings(), **ledger}).close()


def test_statistics_name_unit_mode_and_whom_it_is_against(open_federation: Any) -> None:
    fed = joined(open_federation(settings()))
    fed.submit_updates(NAMES, np.array(rows()))
    fed.force_aggregate()
    claim = fed.get_stats()["privacy_claim"]
    stated = {"noise": "central", "against": "whoever sees every release"}
    assert claim.items() >= {"unit": "person", **stated}.items()
    assert claim["epsilon"] == fed.get_stats()["privacy_consumed_epsilon"]
    assert 0 < claim["membership_advantage"] < 0.2
    assert 0.01 < claim["true_positives"] < 0.03
    assert claim["epsilon"] < claim["two_clients_epsilon"] < claim["client_epsilon"]
    of_clients = open_federation(settings("client")).get_stats()["privacy_claim"]
    assert of_clients == {"unit": "client", **stated}
