"""Clients that are at ceilings of their own: left out before a release would pass one, whoever drives."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, Missing, UsageError
from scarcity_ray.federation.fit_terms import Stopped
from scarcity_ray.privacy import Ledger
from scarcity_ray.privacy.ledger.answers import Charge
from scarcity_ray.privacy.ledger.replay import export
from scarcity_ray_client import Client, IdentityKeyPair, Policy, SignedPolicy, Trained, Workload
from tests.federation.test_fitting import Towards
from tests.federation.test_noise_in_shares import roles
from tests.privacy.test_ceilings import epsilon_of

DIMENSION = 4
CLIENTS = [f"c{i}" for i in range(10)]
SETTINGS: dict[str, Any] = {
    "vector_dim": DIMENSION,
    "total_epsilon": 30.0,
    "gossip_budget_share": 0.0,
    "auto_aggregate": False,
    "layer1": {"aggregation_method": "trimmed_mean", "byzantine_fraction": 0.2},
    "runtime": {"baskets_per_actor": 1},
}
MEAN = {"aggregation_method": "mean", "num_byzantine": 0, "min_updates": 2}
KEYS = {client: IdentityKeyPair.generate() for client in CLIENTS}


def domain_of(client: str) -> str:
    return "a" if int(client[1:]) < 5 else "b"


def releases_worth(fed: HierarchicalFederation, number: float) -> float:
    """The epsilon of so many releases."""
    return epsilon_of(fed.plan.mu_release * math.sqrt(number), fed.config.total_delta) * (1 + 1e-9)


def policy_of(fed: HierarchicalFederation, client: str, number: float, **more: Any) -> SignedPolicy:
    delta = fed.config.total_delta
    return Policy(client, "client", releases_worth(fed, number), delta, **more).signed(KEYS[client])


def opened(open_federation: Any, ceilings: dict[str, float], **changes: Any) -> HierarchicalFederation:
    fed: HierarchicalFederation = open_federation({**SETTINGS, **changes})
    fed.register_clients(
        [(client, domain_of(client)) for client in CLIENTS],
        policies={client: policy_of(fed, client, number) for client, number in ceilings.items()},
    )
    return fed


def send(fed: HierarchicalFederation, value: float = 0.1) -> dict[str, str | None]:
    rows = np.full((len(CLIENTS), DIMENSION), value) + 0.01 * np.arange(len(CLIENTS))[:, None]
    return {c: receipt.reason for c, receipt in zip(CLIENTS, fed.submit_updates(CLIENTS, rows), strict=True)}


def baskets_of(fed: HierarchicalFederation) -> dict[str, Any]:
    return {
        b: basket for name, r in roles(fed).items() if "basket" in name for b, basket in r._baskets.items()
    }


def contributors(fed: HierarchicalFederation) -> set[str]:
    return {c for basket in baskets_of(fed).values() for c in basket.latest._contributors}


def spent_by_hand(fed: HierarchicalFederation) -> dict[str, float]:
    """mu^2 of each client, from the ledger's rows alone."""
    squares: dict[str, float] = defaultdict(float)
    out: set[str] = set()
    for line in export(Ledger.read(fed.config.ledger_path)):
        if line["kind"] == "left_out":
            out |= set(line["body"]["clients"])
        for client in CLIENTS if line["kind"] == "release" else line.get("clients", ()):
            squares[client] += 0.0 if client in out else line["body"]["mu"] ** 2
    return squares


def test_a_client_is_left_out_before_a_release_would_pass_its_ceiling(open_federation: Any) -> None:
    fed = opened(open_federation, {"c0": 1, "c7": 3.5})
    seen = []
    for number in range(6):
        reasons = send(fed, 0.1 + 0.1 * number)
        assert fed.force_aggregate() is not None
        seen.append(({c for c, why in reasons.items() if why is not None}, contributors(fed)))
        fed.advance_round()
        squares = spent_by_hand(fed)
        for client, number_of_releases in (("c0", 1), ("c7", 3.5)):
            assert squares[client] <= number_of_releases * fed.plan.mu_release**2 * (1 + 1e-9)
    assert [refused for refused, _ in seen] == [set(), {"c0"}, {"c0"}, *[{"c0", "c7"}] * 3]
    for refused, made_of in seen:
        assert made_of == set(CLIENTS) - refused
    stats = fed.get_stats()
    assert stats["ceilings"] == {"clients": 2, "num_left_out": 2, "left_out": ["c0", "c7"]}
    assert stats["rejections"] == {"at_ceiling": 8}
    assert stats["n_clients"] == 10
    # f and the least rows are those of 4 members, as if nobody else were registered.
    assert {b.facts().num_members for b in baskets_of(fed).values()} == {4}
    assert {b.report().least_rows for b in baskets_of(fed).values()} == {fed.plan.least_rows(4)}
    assert fed.get_privacy_budget("c0") == (0.0, 0.0) != fed.get_privacy_budget("c1")
    fed.renew_budget(30.0, 1e-5, operator="the board")
    assert fed.get_privacy_budget("c0") == (0.0, 0.0)
    assert send(fed, 0.9)["c0"] == "at_ceiling"


def test_what_a_client_sent_before_it_reached_its_ceiling_is_in_no_later_aggregate(
    open_federation: Any,
) -> None:
    fed = opened(open_federation, {"c0": 1})
    send(fed, 0.1)
    fed.force_aggregate()
    # No actor has heard yet that the first release was all that it can afford.
    assert send(fed, 0.2)["c0"] is None
    fed.force_aggregate()
    assert contributors(fed) == set(CLIENTS) - {"c0"}
    assert fed.get_stats()["n_updates_withdrawn"] == 1


def test_an_aggregate_that_holds_its_row_is_not_released_past_its_ceiling(open_federation: Any) -> None:
    """A stricter policy comes between the aggregate and the release: the aggregate is discarded."""
    fed = opened(open_federation, {"c0": 5})
    send(fed, 0.1)
    fed._driver.run_layer1(None, force=True)
    assert contributors(fed) == set(CLIENTS)
    fed.register_client("c0", "a", policy=policy_of(fed, "c0", 0.5))
    outcome = fed._driver.run_layer2(force=True)
    assert outcome.model is None
    assert outcome.aborted
    assert "1 fresh baskets" in outcome.reason
    assert fed.get_stats()["n_basket_models_discarded"] == 1
    assert spent_by_hand(fed)["c0"] == 0.0
    send(fed, 0.2)
    assert fed.force_aggregate() is not None
    assert "c0" not in contributors(fed)
    assert spent_by_hand(fed)["c0"] == 0.0


@pytest.mark.parametrize("masked", [True, False])
def test_who_reaches_a_ceiling_during_a_session_ends_it_uncharged(open_federation: Any, masked: bool) -> None:
    fed = opened(open_federation, {"c0": 5}, layer2={"use_secure_aggregation": masked})
    send(fed, 0.1)
    aggregator, charge = roles(fed)["global"], roles(fed)["global"]._charge
    strict = policy_of(fed, "c0", 0.5)

    def late(*args: Any) -> Charge:
        assert roles(fed)["accountant"].set_policies((strict,), 1.0) == ()
        answer: Charge = charge(*args)
        return answer

    aggregator._charge = late
    assert fed.force_aggregate() is None
    assert spent_by_hand(fed) == {}
    assert "would pass the ceilings of 1 clients" in fed.get_stats()["last_layer2_aborts"][-1]
    aggregator._charge = charge
    send(fed, 0.2)
    assert fed.force_aggregate() is not None
    assert spent_by_hand(fed)["c0"] == 0.0


def test_baskets_unmask_nothing_for_an_aggregator_that_keeps_quiet_of_who_was_left_out(
    open_federation: Any,
) -> None:
    """It has c0 left out once all facts are signed, and charges a release with its row to the others."""
    fed = opened(open_federation, {"c0": 5})
    send(fed, 0.1)
    aggregator, charge = roles(fed)["global"], roles(fed)["global"]._charge

    def lying(terms: Any, survivors: Any, now: float, num_left_out: int) -> Charge:
        accountant = roles(fed)["accountant"]
        accountant.set_policies((policy_of(fed, "c0", 0.5),), now)
        answer: Charge = charge(terms, survivors, now, accountant.leave_out(now))
        assert answer.allowed
        return answer

    aggregator._charge = lying
    assert fed.force_aggregate() is None
    assert "1 clients were left out when this session was charged" in str(
        fed.get_stats()["last_layer2_violations"]
    )


def test_a_client_that_leaves_and_comes_back_keeps_what_it_spent(open_federation: Any) -> None:
    fed = opened(open_federation, {"c0": 1, "c1": 2})
    send(fed, 0.1)
    fed.force_aggregate()
    fed.advance_round()
    left = fed.get_privacy_budget("c1")
    for client in ("c0", "c1"):
        assert fed.unregister_client(client)
        fed.register_client(client, "a", policy=policy_of(fed, client, 1 if client == "c0" else 2))
    assert fed.get_privacy_budget("c1") == left
    # Without a policy, under another key, or with what it had once: the ceiling stays.
    with pytest.raises(UsageError, match="allows more than the one in force"):
        fed.register_client("c0", "a", policy=policy_of(fed, "c0", 9))
    fed.register_client("c0", "a", policy=policy_of(fed, "c0", 0.9, is_newcomer=True))
    assert send(fed, 0.2)["c0"] == "at_ceiling"
    fed.unregister_client("c0")
    fed.register_client("c0", "b")
    assert send(fed, 0.3)["c0"] == "at_ceiling"


def test_a_client_left_out_stays_so_when_its_basket_splits_or_its_actor_dies(open_federation: Any) -> None:
    fed = opened(open_federation, {"c0": 1}, basket={"min_clients": 2, "max_clients": 5})
    send(fed, 0.1)
    fed.force_aggregate()
    fed.advance_round()
    fed.split_basket("a")
    assert send(fed, 0.2)["c0"] == "at_ceiling"
    for name in [name for name in roles(fed) if "basket" in name]:
        fed._runtime.kill(name)
    fed.get_stats()
    fed.advance_round()
    assert send(fed, 0.3)["c0"] == "at_ceiling"
    assert {m for b in baskets_of(fed).values() for m in b.left_out} == {"c0"}


def test_too_few_below_their_ceilings_is_told_as_the_reason(open_federation: Any) -> None:
    fed = opened(open_federation, dict.fromkeys(CLIENTS[:4], 1))
    send(fed, 0.1)
    fed.force_aggregate()
    assert fed.waiting_for().missing is not Missing.CEILING
    fed.advance_round()
    waits = fed.waiting_for()
    assert waits.missing is Missing.CEILING
    assert "4 clients are left out at ceilings of their own, for good (c0, c1, c2, c3)" in waits.sentence
    assert "Left out at ceilings of their own: c0, c1, c2, c3." in str(waits)
    assert fed.get_stats()["waiting_for"]["missing"] == "ceiling"
    fed.register_clients([(f"n{i}", "a") for i in range(4)])
    assert fed.waiting_for().missing is not Missing.CEILING


def test_a_message_and_a_release_are_charged_to_one_ceiling(open_federation: Any) -> None:
    fed = opened(open_federation, {"c0": 2.5}, gossip_budget_share=0.5)
    for number in range(5):
        send(fed, 0.1 + 0.1 * number)
        fed.run_gossip_round()
        fed.force_aggregate()
        fed.advance_round()
        assert spent_by_hand(fed)["c0"] <= 2.5 * fed.plan.mu_release**2 * (1 + 1e-9)
    assert fed.get_stats()["ceilings"]["left_out"] == ["c0"]
    assert spent_by_hand(fed)["c0"] >= fed.plan.mu_release**2


def test_what_is_no_policy_of_the_client_is_refused_and_nobody_registered(open_federation: Any) -> None:
    fed = open_federation(SETTINGS)
    mine = policy_of(fed, "c0", 3)
    for policy, key, why in (
        ("epsilon 3", None, "an instance of SignedPolicy"),
        (policy_of(fed, "c1", 3), None, "the policy is of 'c1'"),
        (mine, KEYS["c1"], "signed with another key"),
        (Policy("c0", "person", 1.0, 1e-5).signed(KEYS["c0"]), None, "its unit is person"),
        (SignedPolicy(mine.policy, mine.public_key, bytes(64)), None, "its signature is not its key's"),
    ):
        with pytest.raises(UsageError, match=why):
            fed.register_client("c0", "a", identity_keypair=key, policy=policy)
    with pytest.raises(UsageError, match="not among the clients"):
        fed.register_clients([("c1", "a")], policies={"c0": mine})
    assert fed.get_stats()["n_clients"] == 0
    assert fed.register_client("c0", "a", identity_keypair=KEYS["c0"], policy=mine) == "a_basket_0"


class Ceilinged(Towards):
    """Its first clients have ceilings worth some releases."""

    def __init__(self, fed: HierarchicalFederation, ceilings: dict[str, float]) -> None:
        super().__init__()
        self.policies = {client: policy_of(fed, client, number) for client, number in ceilings.items()}

    def clients(self) -> list[Client]:
        return [
            Client(
                c.client_id, c.domain_id, num_examples=9, data=c.data, policy=self.policies.get(c.client_id)
            )
            for c in super().clients()
        ]


class RowsOf(Workload[dict[str, Any]]):
    """All clients are sites of 500 persons."""

    def __init__(self, policies: dict[str, SignedPolicy]) -> None:
        self.policies = policies

    def clients(self) -> list[Client]:
        return [
            Client(name, domain_of(name), num_persons=500, policy=self.policies.get(name)) for name in CLIENTS
        ]

    def initial_model(self) -> dict[str, Any]:
        return {"w": np.zeros(2, np.float32)}

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        return Trained(delta={"w": np.full(2, 0.1, np.float32)}, num_persons=500)

    def evaluate(self, model: dict[str, Any]) -> dict[str, float]:
        return {}


def test_a_client_at_its_ceiling_is_not_asked_to_train_and_counted(open_federation: Any) -> None:
    fed = open_federation({**SETTINGS, "vector_dim": 2, "layer1": MEAN})
    result = fed.fit(Ceilinged(fed, {"c0": 1, "c3": 2}), rounds=4)
    assert [record.num_sampled for record in result.history] == [6, 5, 4, 4]
    assert [dict(record.refusals) for record in result.history] == [{}, *[{"at_ceiling": 1}] * 2, {}]
    assert result.refusals == {"c0": {"at_ceiling": 1}, "c3": {"at_ceiling": 1}}
    assert result.history[1].first_refusals[0].client_id == "c0"
    assert result.stopped is Stopped.ROUNDS


def test_too_few_clients_below_their_ceilings_end_the_rounds_and_it_is_told(open_federation: Any) -> None:
    fed = open_federation({**SETTINGS, "vector_dim": 2, "layer1": MEAN})
    result = fed.fit(Ceilinged(fed, {"c0": 2, "c1": 2}), rounds=6)
    assert (len(result.history), result.stopped) == (2, Stopped.CEILING)
    assert "2 clients are left out at ceilings of their own, for good (c0, c1)" in result.explanation


SITE_NOISE = {
    "vector_dim": 2,
    "total_epsilon": 8.0,
    "gossip_budget_share": 0.0,
    "privacy": {
        "unit": "person",
        "noise": "site",
        "person_clip_norm": 1.0,
        "min_persons": 400,
        "row_epsilon": 1.0,
        "row_delta": 1e-6,
    },
    "layer1": {"aggregation_method": "trimmed_mean", "num_byzantine": 1, "min_updates": 3, "clip_norm": 3.0},
    "layer2": {"clip_norm": 3.0},
    "auto_aggregate": False,
}


def test_where_clients_noise_their_rows_each_row_is_charged_and_the_last_one_is_used(
    open_federation: Any,
) -> None:
    """A ceiling of two rows: both are in an aggregate, a third is refused, the client counts no more."""
    fed = open_federation({**SITE_NOISE, "runtime": {"baskets_per_actor": 1}})
    assert fed.plan.mu_row > 0.0
    epsilon = fed.plan.accounting.epsilon_of(fed.plan.mu_row * math.sqrt(2), 1e-6) * (1 + 1e-9)
    policy = Policy("c0", "person", epsilon, 1e-6).signed(KEYS["c0"])
    fed.register_clients([(client, domain_of(client)) for client in CLIENTS], policies={"c0": policy})
    made_of = []
    for number in range(4):
        rows = np.full((len(CLIENTS), 2), 0.1 * (number + 1)) + 0.01 * np.arange(len(CLIENTS))[:, None]
        reasons = [r.reason for r in fed.submit_updates(CLIENTS, rows, num_examples=[500] * len(CLIENTS))]
        assert [why is None for why in reasons] == [number < 2] + [True] * 9
        assert fed.force_aggregate() is not None
        made_of.append("c0" in contributors(fed))
        fed.advance_round()
    assert made_of == [True, True, False, False]
    charged = [
        line for line in export(Ledger.read(fed.config.ledger_path)) if "c0" in line.get("clients", ())
    ]
    assert [line["body"]["mu"] for line in charged] == [fed.plan.mu_row] * 2
    assert fed.get_stats()["ceilings"]["left_out"] == ["c0"]
    assert len(baskets_of(fed)["a_basket_0"].members) == 4


def test_under_a_schedule_of_rows_a_ceiling_is_reached_at_the_clients_own_step(open_federation: Any) -> None:
    """Worth its first two rows, which cost less than the mean: it sends both, and no third."""
    fed = open_federation({**SITE_NOISE, "privacy": {**SITE_NOISE["privacy"], "noise_decay": 0.4}})
    schedule, cap = fed.plan.row_schedule, fed.plan.gossip_mu_cap**2
    first, second = (schedule.mu(schedule.step_of(cap, number)) for number in range(2))
    assert second < fed.plan.mu_row
    epsilon = fed.plan.accounting.epsilon_of(math.hypot(first, second), 1e-6) * (1 + 1e-9)
    result = fed.fit(RowsOf({"c0": Policy("c0", "person", epsilon, 1e-6).signed(KEYS["c0"])}), rounds=4)
    assert [record.num_sampled for record in result.history] == [10, 10, 9, 9]
    assert result.refusals == {"c0": {"at_ceiling": 1}}
    charged = [
        line["body"]["mu"]
        for line in export(Ledger.read(fed.config.ledger_path))
        if "c0" in line.get("clients", ())
    ]
    assert charged == pytest.approx([first, second])
