"""A federation whose clients noise their own rows: charges, what is free, what stops it, and its words."""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, PrivacyBudgetExhausted, UsageError
from scarcity_ray.baskets import Rejection
from scarcity_ray.federation.fit_terms import Stopped
from scarcity_ray.plan import person_claim
from scarcity_ray.privacy import Ledger, SeededNoise
from scarcity_ray.privacy.ledger.replay import export
from scarcity_ray.workloads.report.privacy_claim import privacy_claim
from scarcity_ray_client import Client, Noising, SiteNoise, Trained, Update, Workload, train_client

DIMENSION = 4
NAMES = [f"{domain}{i}" for domain in "ab" for i in range(3)]
SETTINGS: dict[str, Any] = {
    "vector_dim": DIMENSION,
    "auto_aggregate": False,
    "total_epsilon": 2.0,
    "total_delta": 1e-6,
    "gossip_budget_share": 0.0,
    "basket": {"min_clients": 3, "max_clients": 4},
    "buffer": {"participation_cap": 3},
    "layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0, "clip_norm": 4.0},
    "layer2": {"noise": "discrete_gaussian", "clip_norm": 4.0, "min_baskets": 2},
    "gossip": {"clip_norm": 4.0, "push_drift_threshold": 1e-6},
    "privacy": {
        "unit": "person",
        "noise": "site",
        "person_clip_norm": 1.0,
        "min_persons": 100,
        "row_epsilon": 0.9,
        "row_delta": 1e-6,
    },
}
ROWS = 4
"""That the budget buys a client."""


class Mean(Workload[dict[str, Any]]):
    """Every client sends the same mean."""

    def clients(self) -> list[Client]:
        return [Client(name, name[0], num_persons=100) for name in NAMES]

    def initial_model(self) -> dict[str, Any]:
        return {"w": np.zeros(DIMENSION, np.float32)}

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        return Trained(delta={"w": np.full(DIMENSION, 0.25, np.float32)}, num_persons=100)

    def evaluate(self, model: dict[str, Any]) -> dict[str, float]:
        return {"mean": float(model["w"].mean())}


def settings(**sections: Any) -> dict[str, Any]:
    return SETTINGS | {
        name: {**SETTINGS[name], **value} if isinstance(value, dict) else value
        for name, value in sections.items()
    }


def recorded(fed: HierarchicalFederation, kind: str | None = None) -> list[dict[str, Any]]:
    ledger = Ledger.read(fed.config.ledger_path)
    lines = list(export(ledger))
    ledger.close()
    return [line for line in lines if kind is None or line["kind"] == kind]


def joined(fed: HierarchicalFederation) -> HierarchicalFederation:
    for name in NAMES:
        fed.register_client(name, name[0], num_examples=100)
    return fed


def test_each_client_is_charged_for_its_rows_and_nothing_else_is(open_federation: Any) -> None:
    fed = open_federation(settings())
    assert fed.plan.num_releases == ROWS
    result = fed.fit(Mean(), rounds=2)
    assert [round_.versions for round_ in result.history] == [(1,), (2,)]
    rows, releases = recorded(fed, "row"), recorded(fed, "release")
    assert [sorted(line["clients"]) for line in rows] == [NAMES, NAMES]
    assert len({line["charge_id"] for line in rows}) == 2
    assert [line["body"]["mu"] for line in releases] == [0.0, 0.0]
    accounting = fed.plan.accounting
    spent = accounting.epsilon_of(fed.plan.mu_row * math.sqrt(2), 1e-6)
    assert result.epsilon_spent == pytest.approx(spent)
    assert fed.get_global_meta_model().noise_sigma == 0.0


def test_a_release_is_the_rules_result_on_the_noised_rows(open_federation: Any) -> None:
    fed = joined(open_federation(settings()))
    sent = fed.plan.site_noise.noised(np.full((6, DIMENSION), 0.25), 100)
    assert all(fed.submit_updates(NAMES, sent))
    released = fed.force_aggregate()
    assert released == pytest.approx(sent.mean(axis=0), abs=1e-5)


def test_a_client_outside_the_cluster_sends_what_it_noised(open_federation: Any) -> None:
    """As docs/site_noise.md has it: the numbers travel as plain data, and only the noised row leaves."""
    fed = joined(open_federation(settings()))
    told = json.loads(json.dumps(asdict(fed.plan.site_noise)))
    workload = Mean()
    codec = workload.codec()
    vector = codec.encode(workload.initial_model())
    for site in workload.clients():
        noising = Noising(SiteNoise(**told))
        update = train_client(workload, codec, vector, site, 0, min_persons=100, noising=noising)
        assert isinstance(update, Update)
        assert fed.submit_update(site.client_id, update.delta, 0, num_examples=update.num_persons)
    released = fed.force_aggregate()
    assert released is not None
    assert 0.0 < np.abs(released - 0.25).max() < 6 * fed.plan.site_noise.sigma(100) / math.sqrt(6)


class Witness:
    """Seeded noise; each draw is written down with what the ledger held at that moment."""

    def __init__(self, ledger: Path, log: Path) -> None:
        self.ledger, self.log = ledger, log
        self._source = SeededNoise(3)

    def uniform_words(self, stream: str) -> Any:
        ledger = Ledger.read(self.ledger)
        charged = Counter(c for line in export(ledger) if line["kind"] == "row" for c in line["clients"])
        ledger.close()
        with self.log.open("a") as log:
            log.write(json.dumps([stream, charged]) + "\n")
        return self._source.uniform_words(stream)

    def standard_normal(self, shape: Any, stream: str) -> Any:
        raise AssertionError(f"nothing but rows is noised, and {stream} is none")


@pytest.mark.parametrize("gossip_share", [0.0, 0.2])
def test_each_noised_row_has_a_charge_before_its_training_begins(
    gossip_share: float, open_federation: Any, tmp_path: Path
) -> None:
    witness = Witness(tmp_path / "ledger_0.sqlite", tmp_path / "draws")
    fed = open_federation(settings(gossip_budget_share=gossip_share), noise=witness)
    result = fed.fit(Mean(), rounds=2)
    assert (sum(round_.gossip_messages for round_ in result.history) > 0) == (gossip_share > 0)
    assert recorded(fed, "gossip") == []
    lines = [json.loads(line) for line in (tmp_path / "draws").read_text().splitlines()]
    drawn: Counter[str] = Counter()
    for stream, charged in lines:
        client = stream.split("/")[1]
        drawn[client] += 1
        assert charged[client] == drawn[client], "one more charge for each draw, and before it"
    assert drawn == dict.fromkeys(NAMES, 2)
    assert len({stream for stream, _ in lines}) == 12


def test_the_rounds_end_when_too_few_clients_can_pay_for_a_row(open_federation: Any) -> None:
    fed = open_federation(settings())
    result = fed.fit(Mean(), rounds=10)
    assert (len(result.history), result.stopped) == (ROWS, Stopped.BUDGET)
    assert "0 of 2 are such" in result.explanation
    stats = fed.get_stats()
    assert (stats["read_only"], stats["waiting_for"]["missing"]) == (True, "budget")
    assert stats["read_only_reason"] == result.explanation
    assert fed.get_privacy_budget() == fed.get_privacy_budget("a0") == (0.0, 0.0)
    assert result.epsilon_spent <= 2.0
    fed.renew_budget(2.0, 1e-6, operator="ann")
    assert fed.fit(Mean(), rounds=1).history[0].versions == (ROWS + 1,)


def test_a_client_that_cannot_pay_for_a_row_is_left_out_and_counted(open_federation: Any) -> None:
    fed = joined(open_federation(settings(layer1={"min_updates": 2})))
    for value in range(ROWS):
        assert fed.offer_update("a0", np.full(DIMENSION, value / 8)).reason is None
        fed.advance_round()
    assert fed.get_privacy_budget("a0") == (0.0, 0.0)
    assert fed.get_privacy_budget("a1") > (1.9, 0.0)
    assert not fed.get_stats()["read_only"]
    (round_,) = fed.fit(Mean(), rounds=1).history
    assert round_.refusals == {"budget_spent": 1}
    assert "no room" in str(round_.first_refusals[0])
    assert round_.versions == (1,)


def test_a_row_is_charged_when_it_comes_accepted_or_not_and_m_rows_m_times(open_federation: Any) -> None:
    fed = joined(open_federation(settings()))
    receipts = fed.submit_updates(["a0", "a0", "a1", "a2"], [[0.1] * 4, [0.2] * 4, [0.3] * 3, "x"])
    assert [receipt.reason for receipt in receipts] == [
        None,
        None,
        Rejection.WRONG_SHAPE,
        Rejection.NOT_NUMERIC,
    ]
    charged = Counter(c for line in recorded(fed, "row") for c in line["clients"])
    assert charged == {"a0": 2, "a1": 1, "a2": 1}
    assert all(line["body"]["mu"] == fed.plan.mu_row for line in recorded(fed, "row"))


def test_the_same_bytes_sent_again_are_charged_once(open_federation: Any) -> None:
    fed = joined(open_federation(settings()))
    row = np.full(DIMENSION, 0.1)
    assert fed.offer_update("a0", row)
    assert fed.offer_update("a0", row).reason is Rejection.REPLAYED
    assert [line["clients"] for line in recorded(fed, "row")] == [["a0"]]


@pytest.mark.parametrize("states_round", [False, True])
def test_the_same_bytes_in_another_round_are_charged_as_another_draw(
    open_federation: Any, states_round: bool
) -> None:
    """As they may be: in one dimension one pair of draws in some thousands has the same bytes."""
    fed = joined(open_federation(settings()))
    for round_id in range(3):
        assert fed.offer_update("a0", np.full(DIMENSION, 0.1), round_id if states_round else None)
        fed.advance_round()
    assert [line["clients"] for line in recorded(fed, "row")] == [["a0"]] * 3


def test_a_row_that_nobody_can_pay_for_reaches_no_basket(open_federation: Any) -> None:
    fed = joined(open_federation(settings(buffer={"participation_cap": 9})))
    rows = [np.full(DIMENSION, value / 8) for value in range(ROWS + 1)]
    receipts = fed.submit_updates(["a0"] * (ROWS + 1), rows)
    assert [receipt.reason for receipt in receipts] == [None] * ROWS + [Rejection.BUDGET_SPENT]
    assert fed.get_stats()["rejections"] == {"budget_spent": 1}
    assert fed.get_stats()["n_updates_buffered"] == ROWS


def test_with_strict_a_spent_budget_is_an_error(open_federation: Any) -> None:
    fed = open_federation(settings(strict=True))
    fed.fit(Mean(), rounds=ROWS)
    with pytest.raises(PrivacyBudgetExhausted):
        fed.force_aggregate()


def test_momentum_follows_a_client_that_moves(open_federation: Any) -> None:
    states: dict[bool, Any] = {}
    for moves in (False, True):
        changes = {
            "basket": {"min_clients": 2, "max_clients": 6},
            "layer1": {"momentum": 0.9, "min_updates": 2},
        }
        fed = open_federation(settings(**changes, layer2={"use_secure_aggregation": False}))
        for name in NAMES:
            fed.register_client(name, "a" if name != "b2" else "b", num_examples=100)
        fed.register_client("b3", "b", num_examples=100)
        for round_id in range(2):
            for name in [*NAMES, "b3"]:
                fed.submit_update(name, np.full(DIMENSION, (1 + round_id) / 4))
            assert fed.force_aggregate() is not None
            if moves and round_id == 0:
                fed.split_basket(fed.get_client("a0").basket_id)
            fed.advance_round()
        states[moves] = fed.get_global_model()
    assert states[True] == pytest.approx(states[False], abs=1e-6)
    assert states[False] == pytest.approx(np.full(DIMENSION, 0.9 * 0.025 + 0.1 * 0.5), abs=1e-5)


def test_the_claim_names_unit_mode_and_against_whom(open_federation: Any) -> None:
    fed = open_federation(settings())
    claim = fed.get_stats()["privacy_claim"]
    assert (claim["unit"], claim["noise"]) == ("person", "site")
    assert claim["against"] == "whoever sees every row, message, basket model and release"
    assert "submit_update" in claim["against_operator"]
    words = " ".join(privacy_claim(fed.config, 2.0))
    for said in (
        "noises its own row before it leaves",
        "Not against: whoever operates",
        "sqrt(k)",
        "any one person",
    ):
        assert said in words
    central = {"noise": "central", "row_epsilon": None, "row_delta": None}
    assert "before it leaves" not in " ".join(
        privacy_claim(open_federation(settings(privacy=central)).config, 2.0)
    )


def test_a_person_at_two_sites_loses_sqrt_two_times_and_a_client_as_much_as_its_row_moves(
    open_federation: Any,
) -> None:
    config = open_federation(settings()).config
    claim = person_claim(config, 2.0)
    assert claim is not None
    from scarcity_ray.privacy.accounting.modes import Accounting

    mu = functools.partial(Accounting.ZCDP.mu_of_claim, delta=1e-6)
    assert mu(claim.two_clients_epsilon) == pytest.approx(math.sqrt(2) * mu(2.0), rel=1e-6)
    assert mu(claim.client_epsilon) == pytest.approx(100 * mu(2.0), rel=0.02)


def test_under_a_schedule_each_client_stands_at_its_own_step(
    open_federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed = open_federation(settings(privacy={"noise_decay": 0.4}))
    plan, drawn = fed.plan, list[tuple[str, float]]()
    assert plan.num_releases == ROWS
    honest = Noising.sent

    def noting(self: Noising, update: Any) -> Any:
        drawn.append((update.client_id, self.mus[update.client_id]))
        return honest(self, update)

    monkeypatch.setattr(Noising, "sent", noting)
    mus = [plan.row_schedule.mu(plan.row_schedule.step_of(plan.mu_total**2, k)) for k in range(ROWS)]
    assert mus[0] / mus[-1] == pytest.approx(0.4)
    assert plan.site_noise.mu == mus[0], "what a plan counts with is the noisiest"
    fed.register_client("a0", "a")
    accountant = fed._runtime.peers.roles["accountant"]
    (start,) = accountant.row_steps(("a0",), 0.0)
    assert accountant.charge_rows("row/lost", ("a0",), mus[0], 0.0, {}, start)[0] == ("a0",)
    fed.fit(Mean(), rounds=ROWS)
    for name in NAMES:
        own = [mu for client_id, mu in drawn if client_id == name]
        assert own == pytest.approx(mus[1:] if name == "a0" else mus[: len(own)]), "its own rows count"
    rows = recorded(fed, "row")[1:]
    assert all("/step " in line["charge_id"] for line in rows)
    assert fed.get_stats()["privacy_consumed_epsilon"] == pytest.approx(2.0, rel=1e-6), "a0 has spent it all"
    assert accountant.able_to_send(tuple(NAMES), 0.0) == tuple(NAMES[1:])
    fed.renew_budget(2.0, 1e-6, operator="ann")
    drawn.clear()
    fed.fit(Mean(), rounds=1)
    assert [mu for _, mu in drawn] == pytest.approx([mus[0]] * len(NAMES))


def test_a_row_of_another_step_is_not_charged(open_federation: Any) -> None:
    fed = joined(open_federation(settings(privacy={"noise_decay": 0.4})))
    schedule, cap = fed.plan.row_schedule, fed.plan.mu_total**2
    accountant = fed._runtime.peers.roles["accountant"]
    (here,) = accountant.row_steps(("a0",), 0.0)
    later = schedule.step_of(cap, ROWS - 1)
    for mu, step in ((schedule.mu(later), later), (schedule.mu(later), here), (fed.plan.mu_row, None)):
        assert accountant.charge_rows("row/x", ("a0",), mu, 0.0, {}, step)[0] == ()
    first = schedule.mu(here)
    assert accountant.charge_rows("row/x", ("a0", "b0"), first, 0.0, {}, here)[0] == ("a0", "b0")
    assert accountant.charge_rows("row/x", ("a0", "b0"), first, 0.0, {}, here)[0] == ("a0", "b0"), (
        "asked again"
    )
    assert accountant.charge_rows("row/y", ("a0", "a1"), first, 0.0, {}, here)[0] == ("a1",)
    assert len(recorded(fed, "row")) == 2


def test_a_row_of_another_mu_is_not_charged(open_federation: Any) -> None:
    """Whoever asks for less than a row costs gets no permission for it."""
    fed = joined(open_federation(settings()))
    accountant = fed._runtime.peers.roles["accountant"]
    for mu in (0.0, fed.plan.mu_row / 2, 2 * fed.plan.mu_row):
        assert accountant.charge_rows("row/x", ("a0",), mu, 0.0, {})[0] == ()
    assert recorded(fed, "row") == []
    assert accountant.charge_rows("row/x", ("a0",), fed.plan.mu_row, 0.0, {})[0] == ("a0",)


def test_rows_that_come_noised_are_refused_under_a_schedule(open_federation: Any) -> None:
    fed = joined(open_federation(settings(privacy={"noise_decay": 0.4})))
    with pytest.raises(UsageError, match="noise_decay"):
        fed.submit_update("a0", np.zeros(DIMENSION))
    assert recorded(fed, "row") == []


def test_a_renewal_that_a_schedule_cannot_be_spread_over_is_refused(open_federation: Any) -> None:
    """Fewer rows begin with more noise, up to what clips them; an infinite budget has no last row."""
    wide = {"clip_norm": 7.0}
    fed = open_federation(
        settings(privacy={"noise_decay": 0.2, "row_epsilon": 0.2}, layer1=wide, layer2=wide, gossip=wide)
    )
    fed.renew_budget(1.0, 1e-6, operator="ann")
    for total, why in ((0.3, "buys 2 rows, the first of which"), (math.inf, "last release")):
        with pytest.raises(UsageError, match=why):
            fed.renew_budget(total, 1e-6, operator="ann")
    with pytest.raises(UsageError, match="total_epsilon"):
        fed.renew_budget(-1.0, 1e-6, operator="ann")
    assert len(recorded(fed, "renewal")) == 1
    central = {"noise": "central", "row_epsilon": None, "row_delta": None, "noise_decay": 0.5}
    fed = open_federation(settings(privacy=central))
    with pytest.raises(UsageError, match="last release"):
        fed.renew_budget(math.inf, 1e-6, operator="ann")
