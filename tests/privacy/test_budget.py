"""The durable budget: check, record durably, then allow; the same over a file and over PostgreSQL."""

from __future__ import annotations

import dataclasses
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcity_ray.errors import LedgerCorrupted, LedgerError, LedgerMissing, UsageError
from scarcity_ray.privacy import Accounting, BudgetStatus, DurableBudget, Ledger, PrivacyAccountant

TOTALS = {"name": "hospital", "total_epsilon": 10.0, "total_delta": 1e-5, "gossip_share": 0.25}


def begin(path, **changes):
    return DurableBudget.open(path, must_exist=False, now=1.0, **{**TOTALS, **changes})


def resume(path, **changes):
    return DurableBudget.open(path, must_exist=True, now=2.0, **{**TOTALS, **changes})


def release(budget, charge_id, mu=0.2):
    return budget.charge_release(charge_id, mu, now=3.0, details={"sigma": 1 / mu if mu else math.inf})


def gossip(budget, charge_id, client_ids, mu=0.2):
    return budget.charge_gossip(charge_id, client_ids, mu, now=3.0, details={"round": 1})


def test_a_charge_is_recorded_with_who_what_and_when(path):
    budget = begin(path)
    charge = release(budget, "round-0")
    assert charge.allowed
    assert charge.reason == ""
    reader = Ledger.read(path)
    row = reader.find("round-0")
    assert (row.kind, row.at, row.body["mu"], row.body["details"]) == ("release", 3.0, 0.2, {"sigma": 5.0})
    assert row.body["epsilon_spent"] == charge.epsilon_spent == budget.status(0.1).epsilon_spent
    assert reader.verify() == charge.head_hash == budget.status(0.1).head_hash


def test_a_retried_charge_is_charged_once(path):
    budget = begin(path)
    first = release(budget, "r0")
    release(budget, "r1")
    spent = budget.status(0.1).epsilon_spent
    again = release(budget, "r0")
    assert again == first
    assert (first.repeated, again.repeated) == (False, True)
    budget.close()
    budget = resume(path)
    assert release(budget, "r0") == first
    assert budget.status(0.1).epsilon_spent == spent
    with pytest.raises(UsageError, match="recorded already"):
        release(budget, "r0", mu=0.3)
    with pytest.raises(UsageError, match="recorded already"):
        gossip(budget, "r0", ["a"])


def void(budget, charge_id):
    return budget.void_release(charge_id, now=3.0, details={"asked_by": "basket:0"})


def test_a_release_is_charged_or_given_up_never_both(path):
    budget = begin(path)
    assert release(budget, "charged").allowed
    head, spent = budget.head_hash, budget.status(0.1).epsilon_spent
    assert not void(budget, "charged")
    assert budget.head_hash == head, "nothing is recorded of what stands"
    assert void(budget, "given up")
    head = budget.head_hash
    assert void(budget, "given up")
    for life in range(2):
        refused = release(budget, "given up", mu=0.2 + 0.1 * life)
        assert not refused.allowed
        assert "given up" in refused.reason
        assert release(budget, "charged").repeated
        assert not void(budget, "charged")
        with pytest.raises(UsageError, match="recorded already"):
            gossip(budget, "given up", ["a"])
        assert budget.status(0.1).epsilon_spent == spent, "giving up costs nothing"
        if not life:
            assert budget.head_hash == head
            budget.close()
            budget = resume(path)
    assert [row.kind for row in Ledger.read(path).rows() if row.charge_id] == ["release", "void"]


def test_no_other_name_stands_for_a_release(path):
    """Least of all the one that it has in a later period: with that one it was charged and given up."""
    budget = begin(path)
    assert release(budget, "s in period 0").allowed
    assert not release(budget, "s").repeated
    assert not void(budget, "s")
    assert void(budget, "t")
    assert release(budget, "t in period 0").allowed
    assert not release(budget, "t").allowed


def test_a_release_is_charged_as_one_sum(path):
    """A basket that a charge names as not in the sum hands its aggregate in again, whatever comes later."""
    budget, mu = begin(path), 0.1

    def charge(*dropped, name="s"):
        return budget.charge_release(name, mu, now=2.0, details={"dropped": list(dropped)} if dropped else {})

    assert charge("b", "a").dropped == ("a", "b")
    assert charge().dropped == ("a", "b")
    budget.renew(1.0, 1e-5, now=3.0, operator="op")
    assert not void(budget, "s")
    assert not charge().allowed
    assert not charge("a").allowed
    assert charge(name="s in period 1").allowed
    assert charge().dropped == budget.dropped_from("s") == ("a", "b")
    budget.renew(1.0, 1e-5, now=4.0, operator="op")
    assert charge("a", "b").allowed
    assert charge("a", "b").repeated


def test_a_refusal_speaks_of_what_the_ledger_adds_up(tmp_path):
    for mode, charged, epsilon in (
        (Accounting.GAUSSIAN_DP, "mu 3", "epsilon 16.68"),
        (Accounting.ZCDP, "rho 4.5", "epsilon 17.8"),
    ):
        budget = begin(tmp_path / f"{mode}.sqlite", accounting=mode)
        said = release(budget, "r0", 3.0).reason
        assert said.startswith(f"a release of {charged}, by itself {epsilon} at delta 1e-05, does not fit")
        release(budget, "r1", 0.2)
        with pytest.raises(UsageError, match=f"release with {mode.in_words(0.2)};"):
            release(budget, "r1", 0.3)


def test_a_retried_gossip_charge_gives_its_first_answer(path):
    budget = begin(path)
    big = PrivacyAccountant(10.0, 1e-5, delta_reserve=0.0).mu_total * math.sqrt(0.25)
    assert gossip(budget, "g0", ["a", "b"], 0.9 * big) == ("a", "b")
    assert gossip(budget, "g1", ["c", "a", "d"], 0.9 * big) == ("c", "d")
    before = budget.remaining("c")
    for again in (budget, resume(path, take_over=True)):
        assert gossip(again, "g1", ["c", "a", "d"], 0.9 * big) == ("c", "d")
        assert gossip(again, "g1", ["d", "x"], 0.9 * big) == ("d",)
        assert again.remaining("c") == before
        assert again.remaining("x") == (10.0, 1e-5)


def test_a_partial_gossip_charge_records_exactly_the_allowed(path):
    budget = begin(path)
    cap = PrivacyAccountant(10.0, 1e-5, delta_reserve=0.0).mu_total * math.sqrt(0.25)
    gossip(budget, "g0", ["a"], cap)
    rows = len(list(Ledger.read(path).rows()))
    assert gossip(budget, "g1", ["a"], 0.1) == ()
    assert len(list(Ledger.read(path).rows())) == rows
    assert gossip(budget, "g2", ["z", "a", "b"], 0.1) == ("z", "b")
    budget.close()
    budget = resume(path)
    assert gossip(budget, "g3", ["a", "b", "z"], cap) == ()
    assert gossip(budget, "g4", ["new"], cap) == ("new",)
    assert budget.status(0.1).remaining_epsilon == min(budget.remaining(c)[0] for c in ("a", "b", "z", "new"))


def test_a_restart_continues_the_same_budget(path):
    budget = begin(path)
    rng = random.Random(4)
    for k in range(60):
        if rng.random() < 0.5:
            release(budget, f"r{k}", rng.uniform(0, 0.4))
        else:
            gossip(budget, f"g{k}", rng.sample("abcdefgh", rng.randint(1, 8)), rng.uniform(0, 0.4))
        if k == 30:
            budget.renew(7.0, 2e-5, now=4.0, operator="ann")
    before, clients = budget.status(0.3), [budget.remaining(c) for c in "abcdefgh"]
    budget.close()
    budget = resume(path)
    after = budget.status(0.3)
    told = {"head_hash": "", "is_new": False, "run": 0}
    assert dataclasses.replace(after, **told, incarnation=1) == dataclasses.replace(before, **told)
    assert [budget.remaining(c) for c in "abcdefgh"] == clients
    Ledger.read(path).verify(before.head_hash)


def test_a_charge_of_an_earlier_period_covers_nothing(path):
    budget = begin(path)
    release(budget, "r0", 0.3)
    assert gossip(budget, "g0", ["a", "b"], 0.1) == ("a", "b")
    spent = budget.status(0.3).epsilon_spent
    for period in (1, 2):
        budget.renew(10.0, 1e-5, now=4.0, operator="ann")
        again = release(budget, "r0", 0.3)
        assert (again.allowed, again.repeated) == (True, False)
        assert gossip(budget, "g0", ["b"], 0.1) == ("b",)
        budget.close()
        budget = resume(path)
        assert release(budget, "r0", 0.3).repeated
        assert gossip(budget, "g0", ["a", "b"], 0.1) == ("b",)
        assert (budget.period, budget.status(0.3).epsilon_spent) == (period, spent)
    with pytest.raises(UsageError, match="recorded already, as release"):
        release(budget, "r0", 0.4)
    with pytest.raises(UsageError, match="recorded already, as release"):
        gossip(budget, "r0", ["a"], 0.3)
    budget.renew(10.0, 1e-5, now=5.0, operator="ann", renewal_id="renewal/1")
    with pytest.raises(UsageError, match="recorded already, as renewal"):
        release(budget, "renewal/1", 0.4)


def test_a_renewal_asked_again_opens_no_second_period(path):
    budget = begin(path)
    budget.renew(7.0, 2e-5, now=4.0, operator="ann", renewal_id="renewal/1")
    release(budget, "r1", 0.3)
    budget.close()
    budget = resume(path)
    before = budget.status(0.3)
    budget.renew(7.0, 2e-5, now=5.0, operator="ann", renewal_id="renewal/1")
    assert budget.status(0.3) == before
    with pytest.raises(UsageError, match="recorded already"):
        budget.renew(7.0, 2e-5, now=5.0, operator="ann", renewal_id="r1")
    budget.renew(7.0, 2e-5, now=6.0, operator="ann", renewal_id="renewal/2")
    assert budget.status(0.3).period == before.period + 1


CHARGE = st.one_of(
    st.tuples(st.just("release"), st.integers(0, 9), st.sampled_from([0.1, 0.5, 1.0])),
    st.tuples(st.just("gossip"), st.integers(10, 14), st.sets(st.sampled_from("abc"), min_size=1)),
    st.tuples(st.just("reopen")),
)


@settings(max_examples=settings.default.max_examples // 3)
@given(st.lists(CHARGE, max_size=14), st.sampled_from(Accounting))
def test_any_history_is_the_accountants_own(tmp_path_factory, history, mode):
    path = tmp_path_factory.mktemp("history") / "ledger.sqlite"
    budget = begin(path, accounting=mode)
    model = PrivacyAccountant(10.0, 1e-5, gossip_share=0.25, delta_reserve=0.0, accounting=mode)
    done: dict[int, object] = {}
    for step in history:
        if step[0] == "reopen":
            budget.close()
            budget = resume(path, accounting=mode)
            continue
        key = step[1]
        if step[0] == "release":
            mu = step[2] + key / 100
            if key in done and done[key][0] != mu:
                continue
            charge = release(budget, f"c{key}", mu)
            if key not in done:
                assert charge.allowed == model.spend_release(mu)
                if charge.allowed:
                    done[key] = (mu,)
            else:
                assert charge.allowed
        else:
            asked = sorted(step[2])
            allowed = gossip(budget, f"c{key}", asked, 1.5)
            if key not in done:
                charged = model.spend_gossip(asked, 1.5)
                assert allowed == tuple(c for c, yes in zip(asked, charged, strict=True) if yes)
                if allowed:
                    done[key] = set(allowed)
            else:
                assert set(allowed) == done[key] & set(asked)
    assert budget.status(0.1).epsilon_spent == pytest.approx(model.epsilon_spent(), rel=1e-12)
    budget.close()


def test_a_spent_budget_is_read_only_and_writes_nothing(path):
    budget = begin(path)
    k = 0
    while (charge := release(budget, f"r{k}", 0.7)).allowed:
        assert not budget.status(0.0).read_only
        k += 1
    assert "does not fit" in charge.reason
    status = budget.status(0.7)
    assert status.read_only
    assert (status.remaining_epsilon, status.remaining_delta) == (0.0, 0.0)
    assert 0 < status.epsilon_spent <= 10.0
    assert charge.head_hash == status.head_hash
    assert release(budget, "small", 0.01).allowed
    budget.renew(10.0, 1e-5, now=5.0, operator="ann")
    status = budget.status(0.7)
    assert not status.read_only
    assert (status.remaining_epsilon, status.epsilon_spent, status.period) == (10.0, 0.0, 1)
    assert status.lifetime_epsilon > 8.0
    assert release(budget, f"r{k}", 0.7).allowed


def test_renewal_is_the_operators_recorded_act(path):
    budget = begin(path)
    budget.renew(20.0, 1e-4, now=5.0, operator="ann")
    row = list(Ledger.read(path).rows())[-1]
    assert row.body == {"total_epsilon": 20.0, "total_delta": 1e-4, "operator": "ann"}
    with pytest.raises(UsageError):
        budget.renew(-1.0, 1e-4, now=5.0, operator="ann")
    budget.close()
    for totals in ({}, {"total_epsilon": 20.0, "total_delta": 1e-4}):
        again = resume(path, **totals)
        assert again.status(0.1).total_epsilon == 20.0
        again.close()


def test_a_missing_ledger_is_never_a_fresh_budget(path):
    with pytest.raises(LedgerMissing):
        resume(path)
    with pytest.raises(LedgerMissing):
        Ledger.read(path)


def test_an_emptied_file_is_never_a_fresh_budget(tmp_path):
    path = tmp_path / "ledger.sqlite"
    begin(path).close()
    path.write_bytes(b"")
    with pytest.raises(LedgerCorrupted):
        begin(path)


@pytest.mark.parametrize("wrong", [{"total_epsilon": 11.0}, {"total_delta": 1e-4}, {"gossip_share": 0.3}])
def test_other_totals_point_at_renewal(path, wrong):
    begin(path).close()
    with pytest.raises(LedgerError, match="by renewing the budget"):
        resume(path, **wrong)


def test_another_federations_ledger_is_refused(path):
    begin(path).close()
    with pytest.raises((LedgerError, UsageError), match=r"federation 'hospital', .*'bank'"):
        resume(path, name="bank")


def test_a_superseded_accountant_is_refused(path):
    first = begin(path)
    release(first, "r0")
    second = resume(path, take_over=True)
    with pytest.raises(LedgerError, match="moved on"):
        release(first, "r1")
    assert release(second, "r1").allowed
    with pytest.raises(LedgerError, match="moved on"):
        release(first, "r1")


def test_answers_are_frozen_and_travel(path):
    budget = begin(path)
    for answer in (release(budget, "r0"), budget.status(0.1)):
        assert pickle.loads(pickle.dumps(answer)) == answer
        with pytest.raises(dataclasses.FrozenInstanceError):
            answer.epsilon_spent = 0.0
    assert isinstance(budget.status(0.1), BudgetStatus)


def test_no_claim_is_recorded_too(path):
    budget = begin(path, total_epsilon=math.inf)
    assert release(budget, "r0", math.inf).epsilon_spent == math.inf
    assert gossip(budget, "g0", ["a"], math.inf) == ("a",)
    budget.close()
    budget = resume(path, total_epsilon=math.inf)
    assert release(budget, "r0", math.inf).allowed
    status = budget.status(math.inf)
    assert (status.remaining_epsilon, status.epsilon_spent, status.read_only) == (math.inf, math.inf, False)


def test_threads_never_overspend(path):
    budget = begin(path)
    mu = PrivacyAccountant(10.0, 1e-5, delta_reserve=0.0).mu_total * math.sqrt(0.75 / 20)
    with ThreadPoolExecutor(8) as pool:
        charges = list(pool.map(lambda k: release(budget, f"r{k}", mu), range(40)))
    assert sum(charge.allowed for charge in charges) == 20


CHILD = """
import sys
from scarcity_ray.privacy import DurableBudget
budget = DurableBudget.open(sys.argv[1], name="hospital", total_epsilon=1e3, total_delta=1e-5,
                            gossip_share=0.5, must_exist=False, now=0.0)
k = int(sys.argv[2])
while True:
    if k % 3:
        assert budget.charge_release(f"r{k}", 0.01, now=0.0, details={}).allowed
        print(f"r{k}", flush=True)
    else:
        allowed = budget.charge_gossip(f"g{k}", ["a", f"c{k}"], 0.01, now=0.0, details={})
        assert len(allowed) == 2
        print(f"g{k}", flush=True)
    k += 1
"""


KILLS = 2


@pytest.mark.long
def test_an_allowed_charge_survives_sigkill(path):
    rng = random.Random(11)
    printed: set[str] = set()
    start = 0
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(start)], stdout=subprocess.PIPE, text=True
        )
        first = child.stdout.readline()
        assert first.endswith("\n")
        time.sleep(rng.uniform(0.0, 0.1))
        os.kill(child.pid, signal.SIGKILL)
        rest, _ = child.communicate()
        # The last line may be torn by the kill; a whole line is a charge that was allowed.
        lines = [line.strip() for line in (first + rest).splitlines(keepends=True) if line.endswith("\n")]
        printed.update(lines)
        start += len(lines) + 5
    reader = Ledger.read(path)
    reader.verify()
    recorded = {row.charge_id for row in reader.rows() if row.charge_id}
    assert printed <= recorded
    assert len(recorded) - len(printed) <= KILLS
    budget = DurableBudget.open(
        path,
        name="hospital",
        total_epsilon=1e3,
        total_delta=1e-5,
        gossip_share=0.5,
        must_exist=True,
        now=0.0,
    )
    model = PrivacyAccountant(1e3, 1e-5, gossip_share=0.5, delta_reserve=0.0)
    for charge_id in sorted(printed):
        if charge_id[0] == "r":
            model.spend_release(0.01)
        else:
            model.spend_gossip(["a"], 0.01)
    assert budget.status(0.0).epsilon_spent >= model.epsilon_spent() * (1 - 1e-12)
