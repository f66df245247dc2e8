"""What would end the noise: each way is tried, and does what it says."""

from __future__ import annotations

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from scarcity_ray.config import AggregationMethod, HierarchicalFederationConfig
from scarcity_ray.errors import ConfigError
from scarcity_ray.forecast import HUGE_EPSILON, Forecast, remedies, weak_settings
from scarcity_ray.plan import make_plan


def forecast_of(sizes, **config):
    return Forecast(HierarchicalFederationConfig(**config), sizes, 40)


def test_the_specifications_defaults_have_three_ways_out_and_that_by_persons():
    found = remedies(forecast_of((5, 5)))
    assert [remedy.kinds for remedy in found] == [
        ("rule", "clients"),
        ("baskets",),
        ("rule", "rounds", "clients"),
        ("rule", "unit"),
    ]
    assert found[0].change == (
        "layer1.aggregation_method: trimmed_mean and 48 clients in each of the 2 baskets"
    )
    assert forecast_of((47, 47), layer1={"aggregation_method": "trimmed_mean"}).signal_to_noise < 1.0


def test_persons_are_offered_with_the_fewest_that_do():
    forecast = forecast_of((5,) * 4, layer1={"aggregation_method": "median"}, gossip_budget_share=0.1)
    found = remedies(forecast)[-1]
    privacy = found.config.privacy
    assert found.change.startswith(
        f"privacy: {{unit: person, min_persons: {privacy.min_persons}}} with gossip_budget_share: 0, if each"
    )
    assert found.noise_norm <= 1.0
    fewer = replace(found.config, privacy=replace(privacy, min_persons=privacy.min_persons - 1))
    told = remedies(Forecast(fewer, (5,) * 4, 40))[-1]
    assert told.change == f"privacy.min_persons: {privacy.min_persons}, if enough clients have so many"
    krum = forecast_of((13,) * 20, layer1={"aggregation_method": "krum"})
    assert "unit" not in {kind for remedy in remedies(krum) for kind in remedy.kinds}


def test_another_rule_comes_first_where_it_suffices():
    first = remedies(forecast_of((13,) * 20, vector_dim=250))[0]
    assert first.kinds == ("rule",)
    assert first.config.layer1.aggregation_method is AggregationMethod.TRIMMED_MEAN


def test_without_liars_the_mean_is_offered_and_with_them_never():
    assert "mean" in remedies(forecast_of((30, 30), layer1={"byzantine_fraction": 0.0}))[0].change
    for remedy in remedies(forecast_of((10,) * 5)):
        assert remedy.config.layer1.aggregation_method is not AggregationMethod.MEAN


def test_a_larger_epsilon_keeps_the_rounds_and_stays_below_the_huge_ones():
    federation = {"layer1": {"aggregation_method": "mean", "byzantine_fraction": 0.0}, "total_epsilon": 2.0}
    federation["layer2"] = {"central_dp_epsilon": 0.3}
    forecast = forecast_of((13,) * 4, gossip_budget_share=0.0, **federation)
    (epsilon,) = (r for r in remedies(forecast, most=9) if r.kinds == ("epsilon",))
    assert make_plan(epsilon.config).num_releases == pytest.approx(forecast.plan.num_releases, rel=0.05)
    assert all(r.config.total_epsilon <= HUGE_EPSILON for r in remedies(forecast_of((5, 5)), most=9))


def test_without_noise_there_is_nothing_to_mend():
    assert (
        remedies(forecast_of((5, 5), layer2={"central_dp_epsilon": math.inf}, total_epsilon=math.inf)) == ()
    )


@given(
    rule=st.sampled_from(["krum", "trimmed_mean", "median", "mean"]),
    size=st.integers(5, 40),
    baskets=st.integers(2, 8),
    epsilon=st.floats(0.2, 3.0),
    dimension=st.sampled_from([1, 64, 250, 10**5]),
    noise=st.sampled_from(["gaussian", "distributed_discrete_gaussian"]),
)
def test_every_remedy_does_what_it_says(rule, size, baskets, epsilon, dimension, noise):
    try:
        forecast = forecast_of(
            (size,) * baskets,
            layer1={"aggregation_method": rule},
            layer2={"central_dp_epsilon": epsilon, "noise": noise},
            vector_dim=dimension,
        )
        make_plan(forecast.config)
    except ConfigError:
        return
    found = remedies(forecast)
    assert (found == ()) or forecast.signal_to_noise < 1.0
    for remedy in found:
        tried = Forecast(make_plan(remedy.config).config, remedy.sizes, 1)
        assert tried.noise_norm == remedy.noise_norm
        assert tried.noise_norm <= tried.signal_bound * (1 + 2e-5)


def test_a_careful_config_is_not_called_weak():
    careful = HierarchicalFederationConfig(expose_basket_models=False, total_delta=1e-6)
    assert weak_settings(careful, 1000) == ()
