"""A ledger in zCDP: the same sums under another meaning, fixed for good, never below what was spent."""

from __future__ import annotations

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution as losses
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scarcity_ray.errors import LedgerError
from scarcity_ray.privacy import Accounting, DurableBudget, Ledger, PrivacyAccountant
from scarcity_ray.privacy.ledger.events import Genesis
from scarcity_ray.privacy.ledger.replay import accountant_of, accounting_of

TOTALS = {"name": "hospital", "total_epsilon": 10.0, "total_delta": 1e-5, "gossip_share": 0.25}
INTERVAL = 1e-3


def opened(path, accounting, **changes):
    return DurableBudget.open(
        path, now=1.0, **{"must_exist": False, "accounting": accounting, **TOTALS, **changes}
    )


@pytest.mark.parametrize("seed", range(8))
def test_a_sequence_of_releases_is_never_below_its_privacy_loss_distribution(seed):
    """Discrete Gaussians of random scale and integer sensitivity, Gaussians and pure releases among them."""
    rng = np.random.default_rng(seed)
    accountant = PrivacyAccountant(200.0, 1e-4, delta_reserve=0.0, accounting=Accounting.ZCDP)
    composed, events = None, 0
    for _ in range(int(rng.integers(2, 7))):
        kind, count = rng.choice(["discrete", "discrete", "gaussian", "pure"]), int(rng.integers(1, 6))
        if kind == "pure":
            epsilon = float(rng.uniform(0.05, 0.5))
            loss = losses.from_laplace_mechanism(1 / epsilon, value_discretization_interval=INTERVAL)
            assert all(accountant.spend(epsilon, 0.0) for _ in range(count))
        else:
            sensitivity = int(rng.integers(1, 4))
            sigma = float(rng.uniform(1.5, 12.0)) * sensitivity
            make = {
                "discrete": losses.from_discrete_gaussian_mechanism,
                "gaussian": losses.from_gaussian_mechanism,
            }[kind]
            loss = make(sigma, sensitivity=sensitivity, value_discretization_interval=INTERVAL)
            assert all(accountant.spend_release(sensitivity / sigma) for _ in range(count))
        events += count
        loss = loss.self_compose(count)
        composed = loss if composed is None else composed.compose(loss)
    for delta in (1e-7, 1e-5, 1e-4):
        # Each loss is rounded up to the interval, so theirs may lie above the truth by one a composition.
        theirs = composed.get_epsilon_for_delta(delta)
        assert Accounting.ZCDP.epsilon_of(accountant.mu_spent(), delta) >= theirs - events * INTERVAL
    assert accountant.epsilon_spent() >= composed.get_epsilon_for_delta(1e-4) - events * INTERVAL


@pytest.mark.parametrize("seed", range(4))
def test_each_client_is_never_below_the_loss_of_its_own_sequence(seed):
    """Discrete releases of different sensitivities that all are in, and each one's own Gaussian gossip."""
    rng = np.random.default_rng(seed)
    accountant = PrivacyAccountant(100.0, 1e-5, gossip_share=0.5, accounting=Accounting.ZCDP)
    clients, own = ["ann", "bo", "cy"], {}
    common, events = None, 0
    for _ in range(4):
        sensitivity, sigma = int(rng.integers(1, 5)), float(rng.uniform(8.0, 20.0))
        assert accountant.spend_release(sensitivity / sigma)
        loss = losses.from_discrete_gaussian_mechanism(
            sigma, sensitivity=sensitivity, value_discretization_interval=INTERVAL
        )
        common, events = loss if common is None else common.compose(loss), events + 1
    for _ in range(6):
        senders, mu = [c for c in clients if rng.random() < 0.5], float(rng.uniform(0.05, 0.4))
        assert accountant.spend_gossip(senders, mu).all()
        for client in senders:
            own[client] = [*own.get(client, []), mu]
    for client in clients:
        composed = common
        if client in own:
            composed = common.compose(
                losses.from_gaussian_mechanism(
                    1 / np.linalg.norm(own[client]), value_discretization_interval=INTERVAL
                )
            )
        theirs = composed.get_epsilon_for_delta(1e-5)
        assert accountant.epsilon_spent(client) >= theirs - (events + 1) * INTERVAL
        assert accountant.epsilon_spent() >= accountant.epsilon_spent(client)


@given(st.lists(st.floats(0.0, 0.6), max_size=12))
def test_a_gaussian_sequence_costs_more_epsilon_and_the_same_sum(mus):
    zcdp = PrivacyAccountant(20.0, 1e-5, accounting=Accounting.ZCDP)
    exact = PrivacyAccountant(20.0, 1e-5)
    for mu in mus:
        assert zcdp.spend_release(mu) == exact.spend_release(mu)
    assert zcdp.mu_spent() == exact.mu_spent()
    assert zcdp.epsilon_spent() >= exact.epsilon_spent()
    assert zcdp.mu_total < exact.mu_total


def test_gaussian_releases_match_dp_accountings_rdp():
    accountant = PrivacyAccountant(30.0, 1e-5, delta_reserve=0.0, accounting=Accounting.ZCDP)
    theirs = dp_accounting.rdp.RdpAccountant()
    for sigma in (3.0, 7.5, 12.0):
        assert accountant.spend_release(1 / sigma)
        theirs.compose(dp_accounting.GaussianDpEvent(sigma))
    assert accountant.epsilon_spent() == pytest.approx(theirs.get_epsilon(1e-5), rel=0.01)
    assert accountant.epsilon_spent() <= theirs.get_epsilon(1e-5) * (1 + 1e-9)


@pytest.mark.parametrize("mode", Accounting)
def test_a_restart_continues_in_the_mode_of_the_ledger(tmp_path, mode):
    path = tmp_path / "ledger.sqlite"
    budget = opened(path, mode)
    assert budget.charge_release("r0", 0.2, now=2.0, details={}).allowed
    assert budget.charge_gossip("g0", ["ann"], 0.1, now=2.0, details={}) == ("ann",)
    budget.renew(20.0, 1e-5, now=3.0, operator="op")
    assert budget.charge_release("r1", 0.3, now=4.0, details={}).allowed
    before = budget.status(0.1)
    budget.close()
    after = opened(path, mode, must_exist=True).status(0.1)
    assert after.accounting is before.accounting is mode
    assert after.epsilon_spent == before.epsilon_spent == mode.epsilon_of(0.3, 1e-5)
    assert after.lifetime_epsilon == before.lifetime_epsilon
    assert after.remaining_epsilon == before.remaining_epsilon > 0


@pytest.mark.parametrize("mode", Accounting)
def test_a_ledger_of_another_accounting_is_refused(tmp_path, mode):
    path = tmp_path / "ledger.sqlite"
    opened(path, mode).close()
    (other,) = set(Accounting) - {mode}
    with pytest.raises(LedgerError, match=rf"adds up {mode.value}.*layer2.noise.*{other.value}"):
        opened(path, other, must_exist=True)
    assert opened(path, mode, must_exist=True).charge_release("r", 0.1, now=2.0, details={}).allowed


def test_a_ledger_of_before_the_choice_adds_up_gaussian_dp(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger.create(path, Genesis(format=1, **TOTALS), now=0.0).close()
    with pytest.raises(LedgerError, match="adds up gaussian_dp"):
        opened(path, Accounting.ZCDP, must_exist=True)
    assert opened(path, Accounting.GAUSSIAN_DP).status(0.1).accounting is Accounting.GAUSSIAN_DP
    assert accountant_of(Ledger.read(path).genesis).accounting is Accounting.GAUSSIAN_DP


def test_an_unknown_accounting_is_refused_by_name(tmp_path):
    path = tmp_path / "ledger.sqlite"
    Ledger.create(path, Genesis(format=1, **TOTALS, accounting="renyi"), now=0.0).close()
    for attempt in (
        lambda: opened(path, Accounting.ZCDP, must_exist=True),
        lambda: accounting_of(Ledger.read(path).genesis),
    ):
        with pytest.raises(LedgerError, match=r"'renyi'.*gaussian_dp, zcdp"):
            attempt()


@pytest.mark.parametrize("mu", [0.01, 0.3, 0.648, 2.0, 6.0])
def test_no_test_of_membership_is_better_than_claimed_of_gaussians(mu):
    thresholds = np.linspace(-12.0, 12.0, 20_001) + mu / 2
    false, true = stats.norm.sf(thresholds), stats.norm.sf(thresholds - mu)
    for accounting in Accounting:
        assert (true - false).max() <= accounting.advantage_of(mu)
        for rate in (1e-3, 0.01, 0.2):
            claimed = accounting.true_positives_of(mu, rate)
            assert stats.norm.sf(stats.norm.isf(rate) - mu) <= claimed <= 1.0
    assert Accounting.GAUSSIAN_DP.advantage_of(mu) == pytest.approx((true - false).max(), rel=1e-6)
    exact = stats.norm.sf(stats.norm.isf(0.01) - mu)
    assert Accounting.GAUSSIAN_DP.true_positives_of(mu, 0.01) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(("sigma", "moved"), [(0.7, 1), (3.0, 1), (3.0, 4), (2.0, 9), (20.0, 3)])
def test_no_test_of_membership_is_better_than_claimed_of_discrete_gaussians(sigma, moved):
    """The likelihood ratio rises with the value, so the best tests accept from a value on."""
    values = np.arange(-400, 401)
    law = np.exp(-0.5 * (values / sigma) ** 2)
    law /= law.sum()
    false, true = law[::-1].cumsum(), np.roll(law, moved)[::-1].cumsum()
    mu = moved / sigma
    assert (true - false).max() <= Accounting.ZCDP.advantage_of(mu)
    for rate in (1e-3, 0.01, 0.2):
        # Between two values a test may accept the one with some probability: true is linear in false there.
        assert np.interp(rate, false, true) <= Accounting.ZCDP.true_positives_of(mu, rate)


@pytest.mark.parametrize("accounting", list(Accounting))
def test_without_noise_membership_is_certain_and_without_a_release_hidden(accounting):
    assert accounting.advantage_of(np.inf) == accounting.true_positives_of(np.inf, 0.01) == 1.0
    assert accounting.advantage_of(0.0) == 0.0
    assert accounting.true_positives_of(0.0, 0.01) == pytest.approx(0.01)
