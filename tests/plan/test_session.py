"""Who must stay in a session, and how many shares of noise are counted on."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.config import HierarchicalFederationConfig, Layer1Config, Layer2Config
from scarcity_ray.errors import ConfigError
from scarcity_ray.plan import (
    GRID_STEPS,
    NOISE_TAIL,
    BasketFacts,
    FederationPlan,
    fewest_parties,
    hides_from,
    honest_shares,
    make_plan,
    masking_warning,
    session_shape,
)
from scarcity_ray.privacy.accounting.zcdp import rho_of_shares
from scarcity_ray.secagg import threshold_for

SHARES = "distributed_discrete_gaussian"


def layer2(**changes):
    return Layer2Config(noise=SHARES, **changes)


def config(dimension=4, total_epsilon=10.0, **changes):
    return HierarchicalFederationConfig(
        vector_dim=dimension,
        layer1=Layer1Config(aggregation_method="mean"),
        layer2=layer2(**changes),
        total_epsilon=total_epsilon,
    )


def facts(count, rows=5):
    return [BasketFacts(f"b{i:03}", "d", rows + i % 3, rows + i % 3) for i in range(count)]


@given(
    num_parties=st.integers(2, 64),
    threshold=st.floats(0.501, 1.0),
    corrupt=st.floats(0.0, 0.499),
)
def test_no_more_honest_parties_are_counted_than_any_sum_must_hold(num_parties, threshold, corrupt):
    settled = layer2(threshold_fraction=threshold, assumed_corrupt_fraction=corrupt)
    shape = session_shape(settled, num_parties)
    assert shape.threshold == threshold_for(num_parties, threshold)
    colluding = math.ceil(corrupt * num_parties)
    # Whoever colludes may be in the sum, with no noise that is any use.
    assert shape.num_honest <= max(0, shape.threshold - colluding)
    if shape.num_honest:
        # No two disjoint lots of honest parties can each be shown a set of survivors of their own.
        honest = num_parties - colluding
        assert 2 * (shape.threshold - colluding) > honest
        assert honest_shares(settled, num_parties) == shape.threshold - colluding >= 1
    else:
        with pytest.raises(ConfigError, match=r"threshold_fraction.*") as refusal:
            honest_shares(settled, num_parties)
        assert refusal.value.path == "layer2.assumed_corrupt_fraction"


@pytest.mark.parametrize("num_parties", [65, 100, 500])
def test_on_a_sparse_graph_no_more_are_counted_than_hide_each_other(num_parties):
    shape = session_shape(layer2(), num_parties)
    assert shape.degree is not None
    assert 1 <= shape.num_honest < shape.share_threshold < shape.threshold - 0.1 * num_parties


def test_with_the_defaults_every_session_has_an_honest_party():
    for num_parties in range(2, 300):
        assert honest_shares(layer2(), num_parties) >= 1
    assert honest_shares(layer2(), 2) == 1
    assert honest_shares(layer2(assumed_corrupt_fraction=0.0), 4) == 3


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"assumed_corrupt_fraction": 0.4}, "layer2.assumed_corrupt_fraction"),
        ({"threshold_fraction": 0.51}, "layer2.assumed_corrupt_fraction"),
        ({"use_secure_aggregation": False}, "layer2.noise"),
    ],
)
def test_a_config_in_which_shares_claim_nothing_is_refused(changes, path):
    with pytest.raises(ConfigError) as refusal:
        make_plan(config(**changes))
    assert refusal.value.path == path
    make_plan(HierarchicalFederationConfig(layer2=Layer2Config(noise="discrete_gaussian", **changes)))


@given(
    count=st.integers(2, 90),
    epsilon=st.floats(0.05, 8.0),
    dimension=st.integers(1, 10**6),
    rows=st.integers(1, 40),
)
def test_the_shares_that_are_counted_on_keep_the_charge(count, epsilon, dimension, rows):
    plan = FederationPlan(config(dimension, central_dp_epsilon=epsilon))
    release = plan.release(facts(count, rows))
    everybody = list(release.weights)
    honest = release.num_honest
    claim = rho_of_shares(release.share_sigma, honest, release.grid_sensitivity(everybody), release.length)
    assert claim <= 0.5 * release.mu**2
    assert claim >= 0.5 * release.mu**2 * (1 - 1e-8)
    # What the survivors really add; never less than central noise over the same baskets.
    central = FederationPlan(
        HierarchicalFederationConfig(
            vector_dim=dimension,
            layer1=Layer1Config(aggregation_method="mean"),
            layer2=Layer2Config(noise="discrete_gaussian", central_dp_epsilon=epsilon),
        )
    ).release(facts(count, rows))
    assert release.mu == central.mu
    least = session_shape(layer2(), count).threshold
    for survivors in (everybody, everybody[:least]):
        sigma = release.grid_sigma(survivors)
        assert sigma == pytest.approx(math.sqrt(len(survivors)) * release.share_sigma)
        assert sigma > central.grid_sigma(survivors) * (1 - 1e-12)
        assert sigma == pytest.approx(
            central.grid_sigma(everybody) * math.sqrt(len(survivors) / honest), rel=1e-9
        )
    half = 2.0 ** (release.ring_bits - 1)
    assert GRID_STEPS + count / 2 + NOISE_TAIL * release.grid_sigma(everybody) < half


def test_without_a_claim_there_are_no_shares():
    plan = FederationPlan(config(total_epsilon=math.inf, central_dp_epsilon=math.inf))
    release = plan.release(facts(3))
    assert release.share_sigma == release.grid_sigma(["b000"]) == 0.0


def test_numbers_agree_up_to_the_last_bits_and_no_further():
    plan = FederationPlan(config())
    release, again = plan.release(facts(4)), plan.release(facts(4))
    assert release.agrees_with(again)
    for changed in (
        replace(release, share_sigma=release.share_sigma * (1 - 1e-12)),
        replace(release, weights={**release.weights, "b000": 0.1}),
        replace(release, weights={b: w for b, w in release.weights.items() if b != "b000"}),
        replace(release, sensitivities={**release.sensitivities, "b001": 0.0}),
        replace(release, ring_bits=64),
        replace(release, mu=2 * release.mu),
        replace(release, num_honest=release.num_honest + 1),
    ):
        assert not release.agrees_with(changed)
        assert not changed.agrees_with(release)
    assert release.agrees_with(replace(release, mu=math.nextafter(release.mu, 9.0)))


REGISTERED = st.integers(2, 64).flatmap(lambda r: st.tuples(st.just(r), st.integers(2, r)))


@given(
    sizes=REGISTERED,
    idle=st.integers(0, 10),
    unsigned=st.integers(0, 3),
    threshold=st.floats(0.501, 1.0),
    corrupt=st.floats(0.0, 0.499),
    least=st.integers(2, 8),
)
def test_the_corrupt_are_counted_of_all_that_are_registered(sizes, idle, unsigned, threshold, corrupt, least):
    """Whoever is invited, whatever the corrupt say: a sum that is unmasked holds two honest aggregates."""
    registered, invited = sizes
    idle, unsigned = min(idle, invited), min(unsigned, invited)
    settled = layer2(threshold_fraction=threshold, assumed_corrupt_fraction=corrupt, min_baskets=least)
    shape = session_shape(settled, invited, registered=registered, idle=idle, unsigned=unsigned)
    colluding = math.ceil(corrupt * registered) + unsigned
    assert shape.num_corrupt == colluding
    if shape.refusal(invited - idle):
        return
    # All colluding ones take part, call themselves fresh, and stay; as many others leave as may.
    survivors = max(shape.threshold, shape.least_weighted)
    assert invited - idle >= shape.least_weighted >= least
    if shape.hides:
        honest_of_weight = shape.least_weighted - colluding
        assert honest_of_weight >= 2
        assert 2 * shape.threshold > invited + colluding, "at most one sum of an attempt is learned"
        assert shape.num_honest <= max(survivors - idle, shape.least_weighted) - colluding


@pytest.mark.parametrize("registered", [20, 50, 100, 200])
def test_a_session_of_all_corrupt_and_one_is_refused(registered):
    corrupt = math.ceil(0.1 * registered)
    for invited in range(2, corrupt + 2):
        shape = session_shape(layer2(), invited, registered=registered)
        assert shape.refusal(invited), "shares/cases/noise_shares_of_a_subset"
    assert session_shape(layer2(), corrupt + 1, registered=registered).num_honest <= 1
    with pytest.raises(ConfigError, match=f"of {corrupt} baskets of {registered}"):
        FederationPlan(config()).release(facts(corrupt), registered=registered)


@pytest.mark.parametrize(
    ("registered", "missing"),
    [(10, 7), (20, 15), (21, 13), (30, 22), (50, 36), (60, 43), (64, 44), (100, 71), (200, 141)],
)
def test_the_fewest_parties_suffice_with_all_above_and_one_fewer_does_not(registered, missing):
    fewest = fewest_parties(layer2(), registered)
    assert fewest == registered - missing
    for more in range(fewest, registered + 1):
        assert not session_shape(layer2(), more, registered=registered).refusal(more)
    assert session_shape(layer2(), fewest - 1, registered=registered).refusal(fewest - 1)
    assert fewest > math.ceil(0.1 * registered) + 1


def test_who_has_nothing_to_hide_is_not_counted():
    full = session_shape(layer2(), 20)
    some = session_shape(layer2(), 20, idle=8)
    assert (full.num_honest, some.num_honest) == (12, 4)
    assert session_shape(layer2(), 20, idle=17).refusal(3)
    plan = FederationPlan(config())
    idle = [replace(f, num_rows=0) for f in facts(20)[:8]]
    release = plan.release([*idle, *facts(20)[8:]])
    assert release.num_honest == 4, "the shares of the eight are extra"
    assert release.num_idle == 8
    sparse, thinned = session_shape(layer2(), 200), session_shape(layer2(), 200, idle=20)
    assert thinned.degree is None or thinned.degree > sparse.degree
    assert thinned.num_honest >= 2


def test_few_baskets_are_told_what_they_are_worth():
    two = masking_warning(Layer2Config(), 2)
    assert "with 2 baskets, of which 1 may be corrupt" in two
    assert "colludes with no basket;" in two
    assert "from 3 baskets on" in two
    assert "carries the whole noise" in masking_warning(layer2(), 2)
    assert session_shape(layer2(), 2).num_honest == 1
    for nothing in (
        masking_warning(Layer2Config(), 3),
        masking_warning(Layer2Config(assumed_corrupt_fraction=0.0), 2),
        masking_warning(Layer2Config(use_secure_aggregation=False), 2),
        masking_warning(Layer2Config(enabled=False), 2),
    ):
        assert nothing is None
    stubborn = Layer2Config(assumed_corrupt_fraction=0.45)
    assert "too low to count on more" in masking_warning(stubborn, 63)
    assert "too low to count on more" in masking_warning(stubborn)


def test_before_anybody_is_registered_it_is_said_of_those_fewer_than_enough():
    early = masking_warning(Layer2Config())
    assert early.startswith("until 3 baskets are registered, masking protects only against")
    assert "(layer2.assumed_corrupt_fraction = 0.1)" in early
    assert masking_warning(Layer2Config(min_baskets=3)) is None
    assert masking_warning(Layer2Config(use_secure_aggregation=False)) is None
    assert hides_from(Layer2Config(use_secure_aggregation=False)) == 2


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.2, 0.25, 0.3])
def test_from_so_many_on_every_federation_hides_its_baskets(fraction):
    settled = Layer2Config(assumed_corrupt_fraction=fraction)
    enough = hides_from(settled)
    assert all(session_shape(settled, n).hides for n in range(enough, 65))
    assert enough == 2 or not session_shape(settled, enough - 1).hides
