"""A forecast's numbers against derivations that share no code with it, and against what a release does."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast import Forecast, solve_for_rounds
from scarcity_ray.layers.layer2 import Layer2Aggregator
from scarcity_ray.layers.models import BasketModel
from scarcity_ray.plan import BasketFacts
from scarcity_ray.robust import least_rows
from scarcity_ray.secagg.messages import session_volume

FACTS = BasketFacts("b", "", 13, 13, 2)


def config_of(**changes):
    given = {
        "vector_dim": 250,
        "basket": {"min_clients": 13, "max_clients": 13},
        "layer1": {"aggregation_method": "trimmed_mean", "byzantine_fraction": 0.2},
        "total_delta": 1e-5,
        "gossip": {"local_dp_epsilon": 0.2},
    }
    return HierarchicalFederationConfig(**(given | changes))


def forecast_of(sizes=(13,) * 20, rounds=60, **changes):
    return Forecast(config_of(**changes), sizes, rounds)


def test_no_release_is_noisier_than_forecast_while_everybody_takes_part():
    forecast = forecast_of()
    models = [BasketModel(f"b{k}", np.zeros(250, np.float32), 13, 0, 0.0, 1.0, 2, 13) for k in range(20)]
    released = Layer2Aggregator(forecast.config).aggregate(models)
    assert released.noise_sigma == pytest.approx(forecast.sigma, rel=1e-12)
    assert forecast.noise_norm == pytest.approx(released.noise_sigma * math.sqrt(250))


def rows_noised(row_epsilon, dimension=20):
    """40 clients of 50 persons, each of which noises its own rows."""
    return HierarchicalFederationConfig(
        vector_dim=dimension,
        total_epsilon=3.0,
        total_delta=1e-6,
        gossip_budget_share=0.0,
        basket={"min_clients": 10},
        layer1={"aggregation_method": "mean", "byzantine_fraction": 0.0, "clip_norm": 1000.0},
        privacy={
            "unit": "person",
            "noise": "site",
            "min_persons": 50,
            "row_epsilon": row_epsilon,
            "person_clip_norm": 1.0,
        },
    )


def test_the_mean_of_noised_rows_is_as_noisy_as_forecast():
    forecast = Forecast(rows_noised(0.3), (10,) * 4, 20)
    noise = forecast.plan.site_noise
    means = [noise.noised(np.zeros((40, 20)), 50).mean(axis=0) for _ in range(100)]
    assert np.sqrt(np.mean(np.sum(np.square(means), axis=1))) == pytest.approx(forecast.noise_norm, rel=0.1)
    assert forecast.row_noise_norm == pytest.approx(math.sqrt(40) * forecast.noise_norm)
    assert forecast.signal_bound == 1.0
    costs = {cost.noise_norm for cost in forecast.rules if cost.fits}
    assert max(costs) == pytest.approx(min(costs)) == pytest.approx(forecast.noise_norm)


def test_signal_and_noise_by_hand():
    forecast = forecast_of(layer2={"clip_norm": 2.0})
    mu = forecast.plan.mu_release
    noise = 2 * 1.0 / (13 - 2 * 2) / 20 / mu * math.sqrt(250)
    assert forecast.signal_bound == 1.0
    assert forecast.sensitivity == pytest.approx(2 / 9 / 20, rel=1e-5)
    assert forecast.noise_norm == pytest.approx(noise, rel=1e-2)
    assert forecast.signal_to_noise == pytest.approx(1 / noise, rel=1e-2)
    rounds = min(60, forecast.plan.num_releases)
    assert forecast.signal_to_noise_over_all_rounds == pytest.approx(math.sqrt(rounds) / noise, rel=1e-2)


def test_with_the_least_rows_a_trimmed_mean_needs_as_much_noise_as_a_median():
    forecast = forecast_of()
    (median,) = (cost for cost in forecast.rules if cost.rule is AggregationMethod.MEDIAN)
    assert forecast.noise_norm_at_least_rows == pytest.approx(median.noise_norm, rel=1e-5)


def test_every_rule_is_priced_and_a_trimmed_mean_is_cheaper_than_bulyan_by_the_rows_that_it_keeps():
    rules = {cost.rule: cost for cost in forecast_of().rules}
    assert set(rules) == set(AggregationMethod)
    trimmed, bulyan = rules[AggregationMethod.TRIMMED_MEAN], rules[AggregationMethod.BULYAN]
    assert bulyan.noise_norm / trimmed.noise_norm == pytest.approx(13 - 2 * 2, rel=1e-3)
    assert bulyan.least_rows == 4 * 2 + 3
    mean, weighted = rules[AggregationMethod.MEAN], rules[AggregationMethod.WEIGHTED]
    assert mean.sensitivity == weighted.sensitivity == pytest.approx(2 / 13, rel=1e-5)


@pytest.mark.parametrize("rule", list(AggregationMethod))
def test_a_rule_costs_what_it_costs_once_it_is_configured(rule):
    (cost,) = (cost for cost in forecast_of().rules if cost.rule is rule)
    layer1 = {"aggregation_method": rule, "byzantine_fraction": 0.2}
    if not cost.fits:
        assert (cost.sensitivity, cost.noise_norm, cost.signal_to_noise) == (None, None, None)
        with pytest.raises(ConfigError):
            forecast_of(layer1=layer1)
        return
    configured = forecast_of(layer1=layer1)
    assert configured.noise_norm == pytest.approx(cost.noise_norm, rel=1e-12)
    assert configured.signal_to_noise == pytest.approx(cost.signal_to_noise, rel=1e-12)


def test_a_clipping_radius_bounds_the_signal_of_its_own_rule_and_no_other():
    layer1 = {"aggregation_method": "centered_clipping", "byzantine_fraction": 0.0, "clipping_radius": 0.1}
    forecast = forecast_of(layer1=layer1)
    rules = {cost.rule: cost for cost in forecast.rules}
    assert forecast.signal_bound == 0.1
    own, mean = rules[AggregationMethod.CENTERED_CLIPPING], rules[AggregationMethod.MEAN]
    assert own.sensitivity == pytest.approx(0.1 * mean.sensitivity, rel=1e-4)
    assert own.signal_to_noise == pytest.approx(mean.signal_to_noise, rel=1e-2)


def test_a_pre_aggregation_costs_the_whole_ball():
    layer1 = {"aggregation_method": "trimmed_mean", "byzantine_fraction": 0.2, "pre": ["nnm"]}
    assert forecast_of(layer1=layer1).noise_norm == pytest.approx(9 * forecast_of().noise_norm, rel=1e-3)


def test_a_rule_that_the_baskets_are_too_small_for_has_no_price():
    rules = {cost.rule: cost for cost in forecast_of(sizes=(13, 9)).rules}
    assert rules[AggregationMethod.BULYAN].fits
    rules = {cost.rule: cost for cost in forecast_of(sizes=(13, 10)).rules}
    assert not rules[AggregationMethod.BULYAN].fits
    assert rules[AggregationMethod.BULYAN].noise_norm is None


@given(
    rule=st.sampled_from(["mean", "trimmed_mean", "krum"]),
    epsilon=st.floats(0.3, 3.0),
    dimension=st.integers(1, 300),
    noise=st.sampled_from(["gaussian", "distributed_discrete_gaussian"]),
)
def test_as_many_baskets_as_it_says_and_no_fewer_keep_the_noise_within_the_signal(
    rule, epsilon, dimension, noise
):
    changes = {
        "layer1": {"aggregation_method": rule, "byzantine_fraction": 0.2},
        "layer2": {"central_dp_epsilon": epsilon, "noise": noise},
        "vector_dim": dimension,
        "total_epsilon": 50.0,
    }
    needed = forecast_of(**changes).baskets_at_equal_noise
    assume(needed is not None)  # no session is so large
    assert forecast_of(sizes=(13,) * needed, **changes).signal_to_noise >= 1.0 - 1e-9
    if needed > 1:
        assert forecast_of(sizes=(13,) * (needed - 1), **changes).signal_to_noise < 1.0


@pytest.mark.parametrize("rule", ["trimmed_mean", "mean"])
def test_rounds_at_equal_noise_are_those_that_the_solved_noise_leaves_the_signal_above(rule):
    config = config_of(layer1={"aggregation_method": rule, "byzantine_fraction": 0.2})
    rounds = int(Forecast(config, (13,) * 20, 60).rounds_at_equal_noise)
    quiet = Forecast(solve_for_rounds(config, rounds), (13,) * 20, rounds)
    assert quiet.signal_to_noise >= 1.0 - 1e-5
    loud = Forecast(solve_for_rounds(config, rounds + 1), (13,) * 20, rounds + 1)
    assert loud.signal_to_noise < 1.0


@given(
    epsilon=st.floats(1e-6, 3.0),
    baskets=st.integers(2, 12),
    rule=st.sampled_from(["krum", "mean"]),
    dimension=st.sampled_from([1, 1000, 10**7]),
)
def test_the_ring_is_the_narrower_one_with_headroom(epsilon, baskets, rule, dimension):
    forecast = forecast_of(
        sizes=(13,) * baskets,
        layer1={"aggregation_method": rule},
        layer2={"central_dp_epsilon": epsilon, "clip_norm": 0.3},
        vector_dim=dimension,
    )
    assert forecast.headroom_bits > 0
    if forecast.release.ring_bits == 64:
        assert forecast.headroom_bits <= 32


@pytest.mark.parametrize(
    ("rule", "fraction", "least", "sizes"),
    [
        ("bulyan", 0.2, 3, (5, 6, 10)),
        ("krum", 0.3, 3, (4,)),
        ("krum", 0.2, 3, ()),
        ("bulyan", 0.2, 7, (10,)),
    ],
)
def test_known_stuck_sizes(rule, fraction, least, sizes):
    forecast = forecast_of(
        sizes=(40,) * 4,
        basket={"min_clients": least, "max_clients": 40},
        layer1={"aggregation_method": rule, "byzantine_fraction": fraction},
    )
    assert forecast.stuck_sizes == sizes


@given(
    rule=st.sampled_from(["bulyan", "krum", "median", "trimmed_mean", "mean", "multi_krum"]),
    hundredths=st.integers(0, 49),
    least_updates=st.integers(1, 6),
)
def test_stuck_sizes_are_those_at_which_the_rule_waits_for_ever(rule, hundredths, least_updates):
    try:
        forecast = forecast_of(
            basket={"min_clients": 2, "max_clients": 60},
            layer1={
                "aggregation_method": rule,
                "byzantine_fraction": hundredths / 100,
                "min_updates": least_updates,
            },
        )
    except ConfigError:
        reject()
    brute = [n for n in range(2, 61) if n < max(least_updates, least_rows(rule, hundredths * n // 100))]
    assert list(forecast.stuck_sizes) == brute


def test_traffic_by_hand():
    traffic = forecast_of().traffic
    assert traffic.updates == 260 * 1000
    assert traffic.gossip_most == 260 * 5 * 1000
    assert traffic.model == 20 * 1000
    volume = session_volume(20, degree=None, dimension=250, ring_bits=32, id_bytes=17)
    assert traffic.secure_sum == 20 * (volume.sent + volume.received)
    plain = forecast_of(layer2={"use_secure_aggregation": False, "distribute_to_baskets": False}).traffic
    assert (plain.secure_sum, plain.model) == (20 * 1000, 0)
    assert forecast_of(gossip_budget_share=0.0).traffic.gossip_most == 0


def test_above_64_baskets_a_basket_has_fewer_neighbours_and_moves_fewer_bytes_than_with_all():
    forecast = forecast_of(sizes=(13,) * 200)
    complete = session_volume(200, degree=None, dimension=250, ring_bits=32, id_bytes=17)
    assert forecast.traffic.secure_sum < 200 * (complete.sent + complete.received)


def test_without_noise_nothing_limits():
    forecast = forecast_of(
        total_epsilon=math.inf, layer2={"central_dp_epsilon": math.inf}, gossip={"local_dp_epsilon": math.inf}
    )
    assert forecast.noise_norm == 0.0
    assert forecast.signal_to_noise == forecast.rounds_at_equal_noise == math.inf
    assert forecast.baskets_at_equal_noise == 1


def test_what_adaptive_clipping_costs_is_the_bits_share():
    adaptive = HierarchicalFederationConfig(layer2={"adaptive_clipping": True, "central_dp_epsilon": 0.9})
    forecast = Forecast(adaptive, (13,) * 20, 60)
    assert forecast.adaptation_factor == pytest.approx((1 - 0.04) ** -0.5, rel=1e-4)
    # Andrew et al.: sigma_b = 2.5 z on the sum of 260 bits, z = 2 / mu.
    assert forecast.share_noise == pytest.approx(5 / forecast.plan.mu_release / 260, rel=1e-4)
    fixed = Forecast(HierarchicalFederationConfig(), (13,) * 20, 60)
    assert (fixed.adaptation_factor, fixed.share_noise) == (1.0, 0.0)


def test_what_meta_parameters_cost_and_how_well_they_are_known():
    alone = HierarchicalFederationConfig(layer2={"central_dp_epsilon": 0.9})
    both = replace(alone, meta_parameters={"loss": (0.0, 4.0), "rate": (0.0, 1.0)})
    forecast = Forecast(both, (13,) * 20, 60)
    assert forecast.meta_factor == pytest.approx((1 - 0.04) ** -0.5, rel=1e-4)
    # A fifth of mu is theirs, so the sum of 260 reports of norm sqrt(2) has sigma 2 sqrt(2) / (mu / 5).
    known = 2 * math.sqrt(2) * 5 / forecast.plan.mu_release / 260 / 2
    assert forecast.meta_noise == pytest.approx(known, rel=1e-4)
    fixed = Forecast(alone, (13,) * 20, 60)
    assert (fixed.meta_factor, fixed.meta_noise) == (1.0, 0.0)


def test_where_noise_falls_the_first_release_is_the_noisiest_and_all_are_added_up():
    constant, falling = forecast_of(), forecast_of(privacy={"noise_decay": 0.5})
    plan, bought = falling.plan, int(falling.plan.num_releases)
    assert bought == constant.plan.num_releases
    sigmas = [falling.sigma * falling.release.mu / plan.after(k).release([FACTS]).mu for k in range(bought)]
    assert sigmas[-1] == pytest.approx(falling.sigma_of_last)
    assert sigmas[-1] / sigmas[0] == pytest.approx(0.5)
    assert sigmas[-1] < constant.sigma < sigmas[0]
    rounds = int(falling.rounds_possible)
    noise = math.sqrt(250 * math.fsum(sigma**2 for sigma in sigmas[:rounds]))
    assert falling.signal_to_noise_over_all_rounds == pytest.approx(rounds / noise, rel=1e-6)
    solved = solve_for_rounds(falling.config, 20)
    assert Forecast(solved, (13,) * 20, 20).plan.num_releases == 20
