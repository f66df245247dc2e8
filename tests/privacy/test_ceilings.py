"""Ceilings of the clients' own: never passed, never raised, on record before anybody is told."""

from __future__ import annotations

import json
import math
import sqlite3
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from scarcity_ray.config import PrivacyUnit
from scarcity_ray.errors import LedgerCorrupted, UsageError
from scarcity_ray.privacy import Accounting, DurableBudget, Ledger, PrivacyAccountant
from scarcity_ray.privacy.ledger.events import PolicyGiven
from scarcity_ray.privacy.ledger.replay import export, history
from scarcity_ray_client import IdentityKeyPair, Policy

DELTA = 1e-5
TOTALS = {"name": "hospital", "total_epsilon": 10.0, "total_delta": DELTA, "gossip_share": 0.25}
ANN, BO = IdentityKeyPair.generate(), IdentityKeyPair.generate()


def epsilon_of(mu: float, delta: float = DELTA) -> float:
    """Dong, Roth and Su (2022), corollary 2.13, solved for epsilon."""

    def excess(epsilon: float) -> float:
        high, low = norm.cdf(-epsilon / mu + mu / 2), norm.logcdf(-epsilon / mu - mu / 2)
        return float(high - math.exp(epsilon + low) - delta)

    return 0.0 if mu == 0.0 or excess(0.0) <= 0.0 else float(brentq(excess, 0.0, 500.0, xtol=1e-12))


def policy(client="ann", epsilon=2.0, key=ANN, **more):
    return Policy(client, more.pop("unit", "client"), epsilon, more.pop("delta", DELTA), **more).signed(key)


@pytest.fixture
def opened(tmp_path):
    budgets = []

    def open_one(**changes):
        given = {"must_exist": bool(budgets), **TOTALS, **changes}
        budgets.append(DurableBudget.open(tmp_path / "ledger.sqlite", now=1.0, **given))
        return budgets[-1]

    yield open_one
    for budget in budgets:
        budget.close()


def release(budget, name, mu=0.2, **more):
    return budget.charge_release(name, mu, now=2.0, details={}, **more)


STEPS = st.one_of(
    st.tuples(st.just("release"), st.floats(0.05, 0.4)),
    st.tuples(st.just("gossip"), st.floats(0.05, 0.3), st.sets(st.sampled_from(["ann", "bo", "cy", "dee"]))),
    st.tuples(st.just("policy"), st.sampled_from(["ann", "bo", "cy"]), st.floats(0.3, 4.0)),
    st.tuples(
        st.just("renew"),
    ),
)


@given(steps=st.lists(STEPS, min_size=5, max_size=60))
def test_what_a_client_spends_never_passes_its_ceiling(steps):
    """Every charge is added up again by hand, and turned into epsilon by the normal distribution of SciPy."""
    accountant = PrivacyAccountant(10.0, DELTA, gossip_share=0.5, delta_reserve=0.0)
    spent, ceilings, out = defaultdict(float), {}, set()

    def within() -> bool:
        return all(epsilon_of(math.sqrt(spent[c])) <= ceilings[c] * (1 + 1e-9) for c in ceilings)

    for step in steps:
        match step:
            case ("release", mu):
                stuck = accountant.ceilings.reached_by(mu)
                if stuck:
                    assert not accountant.spend_release(mu)
                    accountant.leave_out(stuck)
                    out |= set(stuck)
                if accountant.spend_release(mu):
                    for client in ("ann", "bo", "cy"):
                        spent[client] += mu**2 * (client not in out)
            case ("gossip", mu, clients):
                asked = sorted(clients)
                for client, fits in zip(asked, accountant.spend_gossip(asked, mu), strict=True):
                    spent[client] += mu**2 * bool(fits)
                    assert not (fits and client in out)
            case ("policy", client, epsilon):
                assert within()
                accountant.set_ceiling(client, epsilon, DELTA, is_newcomer=False)
                before = ceilings.get(client, math.inf)
                ceilings[client] = max(min(before, epsilon), epsilon_of(math.sqrt(spent[client])))
            case ("renew",):
                accountant.reset()
    assert within()


def test_nobody_is_left_out_while_the_next_release_fits():
    """Two clients whose ceilings buy exactly 4 and 9 releases of mu 0.1, by the formula alone."""
    accountant = PrivacyAccountant(10.0, DELTA, delta_reserve=0.0)
    for client, releases in (("ann", 4), ("bo", 9)):
        epsilon = epsilon_of(0.1 * math.sqrt(releases)) * (1 + 1e-9)
        accountant.set_ceiling(client, epsilon, DELTA, is_newcomer=True)
    left_at = {}
    for number in range(12):
        stuck = accountant.ceilings.reached_by(0.1)
        accountant.leave_out(stuck)
        left_at |= dict.fromkeys(stuck, number)
        assert accountant.spend_release(0.1)
    assert left_at == {"ann": 4, "bo": 9}
    assert accountant.left_under_ceiling("ann") == 0.0
    assert accountant.left_under_ceiling("cy") == math.inf


def test_a_release_that_costs_delta_is_refused_beside_a_ceiling():
    accountant = PrivacyAccountant(10.0, DELTA)
    assert accountant.spend(0.1, 1e-7)
    accountant.set_ceiling("ann", 5.0, DELTA, is_newcomer=True)
    assert not accountant.spend(0.1, 1e-7)
    assert accountant.spend(0.1, 0.0)
    with pytest.raises(UsageError, match="no ceiling"):
        accountant.leave_out(["bo"])


def test_who_was_there_before_its_policy_has_spent_what_was_charged_before():
    accountant = PrivacyAccountant(10.0, DELTA, gossip_share=0.5, delta_reserve=0.0)
    accountant.spend_gossip(["dee"], 0.2)
    accountant.spend_release(0.3)
    accountant.reset()
    accountant.spend_release(0.1)
    for client, is_newcomer in (("ann", False), ("bo", True), ("cy", False), ("dee", True)):
        accountant.set_ceiling(client, 5.0, DELTA, is_newcomer=is_newcomer)
    left = {client: 5.0 - accountant.left_under_ceiling(client) for client in ("ann", "bo", "cy", "dee")}
    before = math.hypot(0.3, 0.1)
    assert left["ann"] == left["cy"] == pytest.approx(epsilon_of(before), rel=1e-6)
    assert left["bo"] == 0.0
    # The ledger knows better than its word: it was charged for gossip.
    assert left["dee"] == pytest.approx(epsilon_of(math.hypot(before, 0.2)), rel=1e-6)


def test_a_renewal_refills_no_ceiling(opened):
    budget = opened()
    assert budget.set_policy(policy(epsilon=epsilon_of(0.2 * math.sqrt(2.5))), now=1.0) == ""
    assert release(budget, "r0").allowed
    budget.renew(10.0, DELTA, now=3.0, operator="the board")
    assert release(budget, "r1").allowed
    budget.renew(10.0, DELTA, now=3.0, operator="the board")
    assert not release(budget, "r2").allowed
    assert budget.leave_out(0.2, now=4.0) == 1
    assert budget.remaining("ann") == (0.0, 0.0) != budget.remaining("bo")


def test_a_release_that_would_pass_a_ceiling_is_refused(opened):
    budget = opened()
    budget.set_policy(policy(epsilon=epsilon_of(0.3)), now=1.0)
    assert release(budget, "r0").num_left_out == 0
    refused = release(budget, "r1", 0.25)
    assert not refused.allowed
    assert refused.is_outdated
    assert "ceilings of 1 clients (['ann'])" in refused.reason
    assert release(budget, "r1", 0.21).allowed
    assert budget.left_out() == ()


def test_a_release_is_refused_to_whoever_does_not_know_who_is_left_out(opened):
    budget = opened()
    for client, key in (("ann", ANN), ("bo", BO)):
        budget.set_policy(policy(client, epsilon_of(0.1), key), now=1.0)
    assert release(budget, "r0", 0.05, num_left_out=0).allowed
    assert budget.leave_out(0.2, now=2.0) == 2
    assert sorted(budget.left_out()) == ["ann", "bo"]
    stale = release(budget, "r1", num_left_out=0)
    assert not stale.allowed
    assert stale.is_outdated
    charged = release(budget, "r1", num_left_out=2)
    assert charged.allowed
    assert charged.num_left_out == 2
    # Asked again, a charge says how many were left out when it was made, not how many are now.
    again = release(budget, "r0", 0.05, num_left_out=2)
    assert again.repeated
    assert again.num_left_out == 0


def test_a_message_leaves_room_for_the_release_that_may_hold_its_senders_row(opened):
    budget = opened(gossip_share=0.5)
    budget.set_policy(policy(epsilon=epsilon_of(math.sqrt(0.2**2 + 2 * 0.1**2)) * (1 + 1e-9)), now=1.0)
    ask = {"now": 2.0, "details": {}, "reserve": 0.2}
    assert [budget.charge_gossip(f"g{k}", ["ann", "bo"], 0.1, **ask) for k in range(3)] == [
        ("ann", "bo"),
        ("ann", "bo"),
        ("bo",),
    ]
    assert budget.left_out() == ()
    assert release(budget, "r0").allowed


def test_where_releases_cost_nothing_a_refused_message_leaves_its_sender_out(opened):
    budget = opened(gossip_share=1.0)
    budget.set_policy(policy(epsilon=epsilon_of(0.15)), now=1.0)
    ask = {"now": 2.0, "details": {}}
    assert budget.charge_gossip("g0", ["ann", "bo"], 0.1, **ask) == ("ann", "bo")
    assert budget.left_out() == ()
    assert budget.charge_gossip("g1", ["ann", "bo"], 0.12, **ask) == ("bo",)
    assert budget.left_out() == ("ann",)
    assert budget.charge_gossip("g2", ["ann", "bo"], 0.01, **ask) == ("bo",)
    assert budget.charge_gossip("g1", ["ann", "bo"], 0.12, **ask) == ("bo",)


def test_a_looser_policy_and_a_forged_one_are_refused(opened):
    budget = opened()
    first, stricter = policy(epsilon=2.0), policy(epsilon=1.0)
    assert budget.set_policy(first, now=1.0) == ""
    assert budget.set_policy(stricter, now=1.0) == ""
    for refused, why in (
        (first, "allows more than the one in force, epsilon 1 "),
        (policy(epsilon=1.0, delta=2e-5), "allows more"),
        (policy(epsilon=0.5, delta=2e-5), "allows more"),
        (policy(epsilon=0.5, key=BO), "its key is another"),
        (policy("cy", federation_id="0" * 32), "it is for federation 0000"),
        (policy("cy", unit="person"), "its unit is person"),
    ):
        assert why in budget.set_policy(refused, now=1.0)
    forged = policy("cy")
    object.__setattr__(forged.policy, "lifetime_epsilon", 9.0)
    assert "its signature is not its key's" in budget.set_policy(forged, now=1.0)
    assert budget.status(0.0).num_ceilings == 1
    federation_id = budget.status(0.0).federation_id
    assert budget.set_policy(policy("cy", federation_id=federation_id, key=BO), now=1.0) == ""


def test_a_restart_knows_ceilings_keys_and_who_is_left_out(opened):
    budget = opened()
    budget.set_policy(policy(epsilon=epsilon_of(0.3), is_newcomer=True), now=1.0)
    budget.set_policy(policy("bo", 5.0, BO), now=1.0)
    release(budget, "r0")
    budget.leave_out(0.25, now=2.0)
    release(budget, "r1", num_left_out=1)
    before = budget.remaining("bo")
    budget.close()
    again = opened()
    assert again.left_out() == ("ann",)
    assert again.remaining("bo") == before
    assert release(again, "r0", num_left_out=1).num_left_out == 0
    assert release(again, "r1", num_left_out=1).num_left_out == 1
    assert "another" in again.set_policy(policy("bo", 1.0, ANN), now=1.0)
    # A client that comes back with the policy that it had keeps what it spent.
    assert again.set_policy(policy("bo", 5.0, BO), now=1.0) == ""
    assert again.remaining("bo") == before


def test_a_person_federation_takes_a_persons_ceiling_alone(opened):
    budget = opened(unit=PrivacyUnit.PERSON, accounting=Accounting.ZCDP)
    assert "its unit is client" in budget.set_policy(policy(), now=1.0)
    assert budget.set_policy(policy(unit="person"), now=1.0) == ""


def test_the_ledger_shows_policies_and_who_was_left_out(opened, tmp_path):
    budget = opened(gossip_share=0.5)
    budget.charge_gossip("g0", ["cy"], 0.01, now=1.0, details={})
    budget.set_policy(policy(epsilon=epsilon_of(0.1)), now=1.0)
    budget.charge_gossip("g1", ["ann", "dee"], 0.01, now=1.0, details={})
    budget.leave_out(0.2, now=2.0)
    budget.charge_gossip("g2", ["cy", "dee"], 0.01, now=1.0, details={})
    lines = list(export(Ledger.read(tmp_path / "ledger.sqlite")))
    assert [line["kind"] for line in lines[-5:]] == ["gossip", "policy", "gossip", "left_out", "gossip"]
    assert [line["clients"] for line in lines if "clients" in line] == [["cy"], ["ann", "dee"], ["cy", "dee"]]
    assert lines[-2]["body"] == {"clients": ["ann"], "mu": 0.2}
    *_, (_, accountant) = history(Ledger.read(tmp_path / "ledger.sqlite"))
    assert accountant.ceilings.left_out == ["ann"]


def test_a_policy_that_nobody_signed_is_no_ledgers_row(opened, tmp_path):
    """Written by somebody who can seal the chain anew."""
    budget = opened()
    loose = policy(epsilon=1.0)
    object.__setattr__(loose.policy, "lifetime_epsilon", 9.0)
    budget._ledger.append(PolicyGiven.of(loose), now=1.0)
    budget.close()
    with sqlite3.connect(tmp_path / "ledger.sqlite") as file:
        (record,) = file.execute("SELECT record FROM ledger ORDER BY seq DESC LIMIT 1").fetchone()
    assert json.loads(record)["kind"] == "policy"
    with pytest.raises(LedgerCorrupted, match="not signed by its key"):
        opened()
