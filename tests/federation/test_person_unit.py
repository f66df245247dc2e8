"""A federation whose unit of privacy is a person: registration, refusals, facts, noise, ledger and words."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, IdentityKeyPair, LedgerError, PrivacyWarning, UsageError
from scarcity_ray.layers.server_optimizers import server_optimizer
from scarcity_ray_client import Client, LinearModel, Trained, Workload, person_gradient, person_mean

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


def test_a_mean_over_persons_is_not_rounded_to_less_than_float32(open_federation: Any) -> None:
    half = np.array(rows(), np.float16)
    fed = joined(open_federation(settings()))
    for submit in (
        lambda: fed.submit_updates(NAMES, half),
        lambda: fed.submit_updates(NAMES, [*rows()[:5], half[5]]),
        lambda: fed.submit_update("a0", half[0]),
        lambda: fed.offer_update("a0", half[0].astype(ml_dtypes.bfloat16)),
        lambda: fed.submit_update_async("a0", half[0]),
    ):
        with pytest.raises(UsageError, match="float16 is not accepted where persons"):
            submit()
    assert fed.submit_update("a0", rows()[0])
    assert joined(open_federation(settings("client"))).submit_update("a0", half[0])


def test_what_an_update_states_goes_before_what_was_registered(open_federation: Any) -> None:
    fed = joined(open_federation(settings()))
    fed.submit_updates(NAMES, np.array(rows()), num_examples=[None, 200, 130, None, 110, None])
    fed.advance_round()
    assert fed.offer_update("a1", rows()[1] / 2, num_examples=115)
    fed.force_aggregate()
    assert [facts_of(fed, d).num_persons for d in "ab"] == [115, 110]


@pytest.mark.parametrize("last", [-1.0, -1.0 + 2 / 400])
def test_whether_an_update_counts_does_not_follow_from_what_one_person_holds(
    last: float, open_federation: Any
) -> None:
    """Neighbours: the third update equals the second, or one person's part of it differs."""
    fed = joined(open_federation(settings()))
    sent = [np.eye(DIMENSION)[0] * at for at in (1.0, -1.0, last)]
    assert [bool(fed.offer_update("a1", row)) for row in sent] == [True, False, False]
    fed.advance_round()
    assert fed.offer_update("a1", sent[0])


def test_a_count_registered_later_says_nothing_of_what_was_sent_before(open_federation: Any) -> None:
    fed = joined(open_federation(settings()))
    fed.submit_updates(NAMES, np.array(rows()))
    for name in NAMES[:3]:
        fed.register_client(name, "a", num_examples=10**6)
    fed.force_aggregate()
    assert [facts_of(fed, d).num_persons for d in "ab"] == [120, 150]


@pytest.mark.parametrize("method", ["mean", "weighted", "median", "trimmed_mean", "centered_clipping"])
def test_no_person_moves_its_basket_further_than_the_plan_says_however_its_site_sends(
    method: str, open_federation: Any
) -> None:
    """Updates of several rounds and sizes become one row; person 0 of site a0 is replaced in all of them."""
    layer1 = {"aggregation_method": method, "num_byzantine": int(method == "trimmed_mean")}
    rng, furthest = np.random.default_rng(4), 0.0
    fed = joined(open_federation(settings(layer1=layer1)))
    for trial in range(6):
        sizes = [[120, 300, 101], [400, 150], [250]][trial % 3]
        towards = rng.standard_normal(DIMENSION)
        rest = [rng.normal(size=(n, DIMENSION)) * 0.1 for n in sizes]
        others = rng.normal(size=(2, DIMENSION)) * 0.05
        aggregates, bounds = [], set()
        for sign in (1.0, -1.0):
            fed.advance_round()
            for number, records in enumerate(rest):
                records[0] = sign * 1e6 * towards
                mean = person_mean(records, clip_norm=1.0, min_persons=LEAST)
                if number:
                    fed.advance_round()
                assert fed.offer_update("a0", mean.row, num_examples=mean.num_persons)
            fed.submit_updates(NAMES[1:3], others)
            fed._driver.run_layer1(None, force=True)
            model = fed.get_basket_meta_model("a")
            assert model is not None
            aggregates.append(model.aggregate.astype(float))
            bounds.add((fed.plan.sensitivity(facts_of(fed, "a")), facts_of(fed, "a").num_persons))
        ((bound, persons),) = bounds
        assert persons == min(*sizes, *COUNTS[1:3]) or method == "weighted"
        moved = float(np.linalg.norm(aggregates[0] - aggregates[1]))
        assert moved <= bound
        furthest = max(furthest, moved / bound)
    assert furthest > 0.95 or method in ("weighted", "median", "trimmed_mean")


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
    stated = {"noise": "central", "against": "whoever sees every release", "against_operator": "no"}
    assert claim.items() >= {"unit": "person", **stated}.items()
    assert claim["epsilon"] == fed.get_stats()["privacy_consumed_epsilon"]
    assert 0 < claim["membership_advantage"] < 0.2
    assert 0.01 < claim["true_positives"] < 0.03
    assert claim["epsilon"] < claim["two_clients_epsilon"] < claim["client_epsilon"]
    of_clients = open_federation(settings("client")).get_stats()["privacy_claim"]
    assert of_clients == {"unit": "client", **stated}


def test_a_renewed_budget_takes_back_nothing_that_a_person_lost(open_federation: Any) -> None:
    fed = joined(open_federation(settings()))
    lost = []
    for period in range(2):
        fed.submit_updates(NAMES, np.array(rows()))
        fed.force_aggregate()
        lost.append(fed.get_stats()["privacy_claim"]["membership_advantage"])
        fed.renew_budget(10.0, 1e-4 / 10**period, operator="o")
        assert fed.get_stats()["privacy_claim"]["membership_advantage"] >= lost[-1] * (1 - 1e-9)
        fed.advance_round()
    assert lost[1] == pytest.approx(np.sqrt(2) * lost[0], rel=1e-2), "one release more"


class Hospitals(Workload[dict[str, Any]]):
    """Logistic regression at sites of 300 patients with two visits each; a full-batch step a round."""

    def visits(self, seed: int) -> tuple[Any, Any, Any]:
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(600, DIMENSION - 1))
        return x, x @ [2.0, -2.0, 1.0, 0.0, 0.0] > rng.logistic(scale=0.3, size=600), np.arange(600) // 2

    def clients(self) -> list[Client]:
        return [Client(name, name[0], data=seed) for seed, name in enumerate(NAMES)]

    def initial_model(self) -> dict[str, Any]:
        return {"weights": np.zeros(DIMENSION, np.float32)}

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        mean = person_gradient(
            LinearModel(), model["weights"], *self.visits(client.data), clip_norm=1.0, min_persons=LEAST
        )
        return Trained(delta=-mean.row, num_persons=mean.num_persons)

    def evaluate(self, model: dict[str, Any]) -> dict[str, float]:
        x, y, _ = self.visits(99)
        return {"accuracy": float(np.mean((LinearModel().scores(model["weights"], x) > 0.0) == y))}


class Models(Hospitals):
    """Half of the sites give their models, as they would where a client is the unit."""

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        sent = super().train(model, client, round_id)
        if client.domain_id == "a":
            return sent
        return Trained(model={"weights": model["weights"] + np.float32(sent.delta)}, num_examples=300)


def test_what_is_no_mean_over_persons_is_refused_by_name(open_federation: Any) -> None:
    for unit in ("person", "record", "client"):
        result = open_federation(settings(unit)).fit(Models(), rounds=1)
        refused = {name: {"wrong_result": 1} for name in NAMES[3:]} if unit != "client" else {}
        assert result.refusals == refused
        assert all("num_persons" in refusal.detail for refusal in result.history[0].first_refusals)


class Uneven(Hospitals):
    """Sites that say how many persons they have; `train` counts 900 records as examples."""

    def __init__(self, counts: list[int | None], sent: dict[str, Any]) -> None:
        self.counts, self.sent = counts, sent

    def clients(self) -> list[Client]:
        return [
            Client(name, name[0], num_examples=900, num_persons=count)
            for name, count in zip(NAMES, self.counts, strict=True)
        ]

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        return Trained(num_examples=900, **self.sent)


DELTA = {"delta": np.full(DIMENSION, 0.1)}


def test_a_client_with_too_few_persons_is_left_out_before_it_trains_and_counted(open_federation: Any) -> None:
    layer1 = {"aggregation_method": "mean", "byzantine_fraction": 0.0, "min_updates": 2}
    fed = open_federation(settings(basket={"min_clients": 2, "max_clients": 5}, layer1=layer1))
    workload = Uneven([99, None, 100, 400, 7, 300], {**DELTA, "num_persons": 150})
    with pytest.warns(PrivacyWarning, match=r"2 of 6 clients have fewer persons than .* = 100 \(7 to 99\)"):
        result = fed.fit(workload, rounds=2)
    few = {"too_few_persons": 1}
    assert result.refusals == {"a0": few, "b1": few}
    assert [dict(record.refusals) for record in result.history] == [{"too_few_persons": 2}, {}]
    assert "99 persons, below privacy.min_persons = 100" in result.history[0].first_refusals[0].detail
    assert fed.get_client("a0") is None
    assert [record.num_sampled for record in result.history] == [4, 4]
    assert facts_of(fed, "a").num_persons == 150
    assert "too_few_persons" in [warning["code"] for warning in fed.get_stats()["warnings"]]
    with pytest.raises(UsageError, match="all 6 clients have fewer persons"):
        fed.fit(Uneven([5] * 6, DELTA), rounds=2)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (DELTA, r"wrong_result: num_persons is missing.*num_persons=mean.num_persons"),
        ({"model": {"weights": np.ones(DIMENSION, np.float32)}}, "wrong_result: model= is not accepted"),
        ({**DELTA, "num_persons": 99}, "too_few_persons: num_persons: 99 is below"),
    ],
)
def test_a_workload_that_tells_of_no_persons_is_told_what_to_do(
    sent: dict[str, Any], words: str, open_federation: Any
) -> None:
    """Examples may be records: 900 of them stand for nobody."""
    with pytest.raises(UsageError, match=f"all 6 clients of round 0 failed; the first: .*{words}"):
        open_federation(settings()).fit(Uneven([None] * 6, sent), rounds=2)


@pytest.mark.long
def test_persons_are_learned_from_at_an_epsilon_at_which_clients_drown(open_federation: Any) -> None:
    accuracy = {}
    for unit in ("person", "client"):
        given = settings(unit, layer1={"aggregation_method": "median"}, total_epsilon=3.0, total_delta=1e-6)
        given["layer2"]["central_dp_epsilon"] = 0.5
        fed = open_federation(given)
        result = fed.fit(Hospitals(), rounds=12, optimizer=server_optimizer("sgd", learning_rate=3.0))
        accuracy[unit] = [record.evaluation["accuracy"] for record in result.history if record.evaluation]
        assert fed.get_stats()["privacy_consumed_epsilon"] <= 3.0
        if unit == "person":
            assert facts_of(fed, "a").num_persons == 300
    assert accuracy["person"][-1] > 0.88
    assert np.mean(accuracy["client"]) < 0.75
