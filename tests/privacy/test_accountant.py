"""The accountant: exact, worst case over clients, and never past its claim."""

from __future__ import annotations

import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import UsageError
from scarcity_ray.privacy import (
    Accounting,
    PrivacyAccountant,
    epsilon_of_mu,
    mu_of_gaussian,
)

STEP = st.one_of(
    st.tuples(st.just("release"), st.floats(0, 1)),
    st.tuples(st.just("spend"), st.floats(0, 1), st.sampled_from([0.0, 1e-7, 4e-7, 2e-6])),
    st.tuples(st.just("gossip"), st.sets(st.sampled_from("abcde"), max_size=5), st.floats(0, 0.6)),
)


def take(accountant, step):
    if step[0] == "release":
        return accountant.spend_release(step[1])
    if step[0] == "spend":
        return accountant.spend(step[1], step[2])
    return accountant.spend_gossip(sorted(step[1]), step[2])


@given(st.lists(STEP, max_size=25), st.sampled_from([0.0, 0.2, 0.7]), st.sampled_from(Accounting))
def test_what_was_spent_never_exceeds_the_claim(steps, share, mode):
    accountant = PrivacyAccountant(3.0, 1e-5, gossip_share=share, accounting=mode)
    central, delta, gossip = 0.0, 0.0, dict.fromkeys("abcde", 0.0)
    for step in steps:
        answer = take(accountant, step)
        if step[0] == "release" and answer:
            central += step[1] ** 2
        elif step[0] == "spend" and answer:
            central += mode.mu_of_pure(step[1]) ** 2
            delta += step[2]
        elif step[0] == "gossip":
            for client, charged in zip(sorted(step[1]), answer, strict=True):
                gossip[client] += step[2] ** 2 * charged
    worst = math.sqrt(central + max(gossip.values()))
    assert mode.delta_of(worst, 3.0) + delta <= 1e-5 * (1 + 1e-9)
    assert accountant.mu_spent() == pytest.approx(worst, rel=1e-12)
    assert accountant.delta_spent() == pytest.approx(mode.delta_of(worst, 3.0) + delta, rel=1e-9)
    assert accountant.epsilon_spent() == pytest.approx(mode.epsilon_of(worst, 1e-5 - delta), rel=1e-9)
    for client, own in gossip.items():
        assert accountant.mu_spent(client) == pytest.approx(math.sqrt(central + own), rel=1e-12)
        assert accountant.remaining(client) >= accountant.remaining()


@given(st.lists(STEP, max_size=25))
def test_a_refused_charge_changes_nothing(steps):
    accountant = PrivacyAccountant(1.0, 1e-6, gossip_share=0.3)
    for step in steps:
        before = (accountant.remaining(), [accountant.remaining(c) for c in "abcde"], accountant.num_clients)
        answer = take(accountant, step)
        if not np.any(answer):
            after = (
                accountant.remaining(),
                [accountant.remaining(c) for c in "abcde"],
                accountant.num_clients,
            )
            assert before == after


def test_a_smaller_charge_fits_after_a_refusal():
    accountant = PrivacyAccountant(1.0, 1e-5)
    assert not accountant.spend(2.0, 0.0)
    assert not accountant.spend_release(accountant.mu_total * 1.01)
    assert accountant.spend_release(accountant.mu_total * 0.99)


@pytest.mark.parametrize("rounds", [1, 3, 7, 100, 4097, 50_000])
@pytest.mark.parametrize("share", [0.0, 0.2])
@pytest.mark.parametrize("mode", Accounting)
def test_a_budget_planned_for_n_equal_releases_allows_n(rounds, share, mode):
    accountant = PrivacyAccountant(10.0, 1e-5, gossip_share=share, delta_reserve=0.0, accounting=mode)
    total = mode.mu_of_claim(10.0, 1e-5)
    mu = total * math.sqrt((1 - share) / rounds)
    assert all(accountant.spend_release(mu) for _ in range(rounds))
    assert not accountant.check_release(mu)
    if share:
        each = total * math.sqrt(share / min(rounds, 4097))
        assert all(accountant.spend_gossip(["a"], each)[0] for _ in range(min(rounds, 4097)))
        assert not accountant.affordable_gossip(["a", "b"], each)[0]
        assert accountant.affordable_gossip(["a", "b"], each)[1]
        assert accountant.remaining()[0] <= 1e-9
    assert accountant.remaining()[0] >= 0
    assert accountant.epsilon_spent() <= 10.0


@given(
    st.lists(st.sets(st.sampled_from("abcdefgh")), max_size=12),
    st.floats(0.01, 0.4),
    st.sampled_from(Accounting),
)
def test_the_reported_budget_is_the_worst_case_over_all_clients(rounds, mu, mode):
    accountant = PrivacyAccountant(5.0, 1e-5, gossip_share=0.4, accounting=mode)
    accountant.spend_release(0.2)
    for members in rounds:
        accountant.spend_gossip(sorted(members), mu)
    each = [accountant.remaining(client) for client in "abcdefgh"]
    assert accountant.remaining() == min(each)


@pytest.mark.parametrize("mode", Accounting)
def test_gossip_never_starves_the_releases(mode):
    accountant = PrivacyAccountant(5.0, 1e-5, gossip_share=0.5, delta_reserve=0.0, accounting=mode)
    while accountant.spend_gossip(["a"], 0.3)[0]:
        pass
    assert accountant.check_release(accountant.mu_total * math.sqrt(0.5))
    assert accountant.spend_gossip(["b"], 0.3)[0]
    before = accountant.affordable_gossip(["c"], 0.3)
    while accountant.spend_release(0.2):
        pass
    assert before == accountant.affordable_gossip(["c"], 0.3)


def test_who_has_spent_the_share_is_left_out_and_not_charged():
    accountant = PrivacyAccountant(5.0, 1e-5, gossip_share=0.1)
    cap = accountant.mu_total * math.sqrt(0.1)
    np.testing.assert_array_equal(accountant.spend_gossip(["a", "b"], 0.8 * cap), [True, True])
    np.testing.assert_array_equal(accountant.spend_gossip(["c", "a", "b"], 0.7 * cap), [True, False, False])
    assert accountant.mu_spent("a") == pytest.approx(0.8 * cap)
    assert accountant.mu_spent("c") == pytest.approx(0.7 * cap)
    assert accountant.mu_spent("never seen") == 0.0


@pytest.mark.parametrize("mode", Accounting)
def test_lifetime_epsilon_covers_all_periods(mode):
    accountant = PrivacyAccountant(5.0, 1e-5, gossip_share=0.5, delta_reserve=0.0, accounting=mode)
    accountant.spend_release(0.3)
    accountant.spend_gossip(["a"], 0.2)
    lifetimes = [accountant.lifetime_epsilon()]
    accountant.reset()
    assert accountant.remaining()[0] == 5.0
    assert accountant.period == 1
    lifetimes.append(accountant.lifetime_epsilon())
    accountant.spend_gossip(["b", "a"], 0.2)
    accountant.spend_release(0.4)
    lifetimes.append(accountant.lifetime_epsilon())
    accountant.renew(50.0, 1e-3)
    lifetimes.append(accountant.lifetime_epsilon())
    assert lifetimes == sorted(lifetimes)
    assert lifetimes[0] == lifetimes[1]
    exact = math.sqrt(0.3**2 + 0.4**2 + 2 * 0.2**2)
    assert accountant.lifetime_epsilon() == pytest.approx(mode.epsilon_of(exact, 1e-5), rel=1e-9)
    assert accountant.lifetime_epsilon("b") < accountant.lifetime_epsilon("a")
    assert accountant.total_epsilon == 50.0


def test_a_refused_renewal_changes_nothing():
    accountant = PrivacyAccountant(5.0, 1e-5)
    accountant.spend_release(0.3)
    before = accountant.remaining(), accountant.lifetime_epsilon(), accountant.period
    for wrong in ((0.0, 1e-5), (1.0, 0.0), (math.nan, 1e-5)):
        with pytest.raises(UsageError):
            accountant.renew(*wrong)
    assert (accountant.remaining(), accountant.lifetime_epsilon(), accountant.period) == before


def test_general_spends_charge_their_delta_to_the_reserve():
    accountant = PrivacyAccountant(5.0, 1e-5, delta_reserve=4e-6)
    assert accountant.mu_total == mu_of_gaussian(5.0, 6e-6)
    assert accountant.spend(0.1, 3e-6)
    assert not accountant.check(0.1, 2e-6)
    assert accountant.spend(0.1, 1e-6)
    assert accountant.spend(0.1, 0.0)
    pure_only = PrivacyAccountant(5.0, 1e-5, delta_reserve=0.0)
    assert not pure_only.spend(0.1, 1e-12)
    assert pure_only.spend(0.1, 0.0)


@pytest.mark.parametrize("mode", Accounting)
@pytest.mark.parametrize("seed", range(6))
def test_general_spends_stay_above_dp_accountings_pld(seed, mode):
    rng = np.random.default_rng(seed)
    accountant = PrivacyAccountant(50.0, 1e-4, accounting=mode)
    pld = PLDAccountant(value_discretization_interval=1e-3)
    for _ in range(8):
        if rng.random() < 0.5:
            sigma = float(rng.uniform(2, 20))
            assert accountant.spend_release(1 / sigma)
            pld.compose(dp_accounting.GaussianDpEvent(sigma))
        else:
            epsilon = float(rng.uniform(0.05, 0.5))
            assert accountant.spend(epsilon, 0.0)
            pld.compose(dp_accounting.LaplaceDpEvent(1 / epsilon))
    assert accountant.epsilon_spent() >= pld.get_epsilon(1e-4) - 8e-3


def test_infinite_epsilon_claims_nothing_and_fits_everything():
    accountant = PrivacyAccountant(math.inf, 1e-5, gossip_share=0.2)
    assert accountant.spend_release(3.0)
    assert accountant.epsilon_spent() == pytest.approx(epsilon_of_mu(3.0, 1e-5))
    assert accountant.remaining()[0] == math.inf
    assert accountant.spend_release(math.inf)
    assert accountant.epsilon_spent() == accountant.lifetime_epsilon() == math.inf
    assert accountant.spend_gossip(["a"], math.inf).all()
    assert accountant.spend(1.0, 0.5)
    assert PrivacyAccountant(math.inf, 1e-5).spend_gossip(["a"], 1.0).all()
    assert not PrivacyAccountant(1e6, 1e-5).check_release(math.inf)


def test_no_gossip_share_allows_no_gossip():
    accountant = PrivacyAccountant(5.0, 1e-5)
    assert not accountant.spend_gossip(["a"], 1e-3).any()
    assert accountant.spend_gossip([], 1.0).shape == (0,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"total_epsilon": 0.0},
        {"total_epsilon": math.nan},
        {"total_delta": 0.0},
        {"total_delta": 1.0},
        {"gossip_share": 1.001},
        {"gossip_share": -0.1},
        {"delta_reserve": 1e-5},
    ],
)
def test_totals_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError, match="is not accepted"):
        PrivacyAccountant(**{"total_epsilon": 1.0, "total_delta": 1e-5, **wrong})


def test_charges_out_of_range_are_refused():
    accountant = PrivacyAccountant(1.0, 1e-5, gossip_share=0.5)
    for call in (
        lambda: accountant.spend(-1.0, 0.0),
        lambda: accountant.spend(1.0, -1e-9),
        lambda: accountant.spend(math.nan, 0.0),
        lambda: accountant.spend_release(math.nan),
        lambda: accountant.spend_release(-0.1),
        lambda: accountant.spend_gossip(["a"], -0.1),
        lambda: accountant.spend_gossip(["a", "a"], 0.1),
    ):
        with pytest.raises(UsageError):
            call()
    assert accountant.remaining() == (1.0, 1e-5)


def test_ten_thousand_events_keep_the_state_small_and_exact():
    accountant = PrivacyAccountant(100.0, 1e-5, delta_reserve=0.0)
    mus = np.random.default_rng(0).uniform(0, 0.1, 10_000)
    assert all(accountant.spend_release(mu) for mu in mus.tolist())
    assert accountant.mu_spent() == pytest.approx(math.sqrt(math.fsum(mus**2)), rel=1e-15)


def test_with_the_whole_cap_for_gossip_no_release_fits_and_each_client_has_all_of_it():
    accountant = PrivacyAccountant(2.0, 1e-5, gossip_share=1.0, delta_reserve=0.0)
    assert not accountant.check_release(1e-6)
    assert accountant.check_release(0.0)
    assert accountant.spend_gossip(["a"], accountant.mu_total).tolist() == [True]
    assert accountant.epsilon_spent() == pytest.approx(2.0, rel=1e-9)
    assert not accountant.affordable_gossip(["a"], 1e-3 * accountant.mu_total).any()


@pytest.mark.parametrize("value", [None, "1", [1], {}, object(), 1 + 2j, True, math.nan, -1.0, 10**400])
def test_what_is_no_number_is_a_usage_error(value):
    accountant = PrivacyAccountant(1.0, 1e-5)
    calls = [
        lambda: PrivacyAccountant(value, 1e-5),
        lambda: PrivacyAccountant(1.0, value),
        lambda: PrivacyAccountant(1.0, 1e-5, gossip_share=value),
        lambda: accountant.spend(value, 1e-7),
        lambda: accountant.spend(0.1, value),
        lambda: accountant.spend_release(value),
        lambda: accountant.spend_gossip(["a"], value),
        lambda: accountant.renew(value, 1e-5),
    ]
    if value is not None:
        calls.append(lambda: PrivacyAccountant(1.0, 1e-5, delta_reserve=value))
    for call in calls:
        with pytest.raises(UsageError, match="is not accepted"):
            call()
    assert accountant.remaining() == (1.0, 1e-5)
