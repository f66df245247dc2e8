"""Layer 1 with pre-aggregation and the rules that have numbers of their own."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray import ConfigError, HierarchicalFederationConfig, Layer1Aggregator, Layer1Config, make_plan
from scarcity_ray.layers import Layer1Input
from scarcity_ray.plan import BasketFacts
from scarcity_ray.robust import Bucketing, CenteredClipping, aggregate

ROWS = np.random.default_rng(3).normal(size=(11, 6)).astype(np.float32) * 0.1
ROWS[:2] *= -10.0


def of(**settings) -> np.ndarray:
    return Layer1Aggregator(Layer1Config(clip_norm=100.0, num_byzantine=2, **settings)).aggregate_basket(
        Layer1Input(ROWS), seed=5
    )


@pytest.mark.parametrize("method", ["mean", "trimmed_mean", "krum", "geometric_median"])
@pytest.mark.parametrize("pre", [("nnm",), ("arc",), ("arc", "nnm")])
def test_pre_aggregation_is_what_robust_does(method, pre):
    expected = aggregate(ROWS, method=method, num_byzantine=2, pre=pre).vector
    np.testing.assert_array_equal(of(aggregation_method=method, pre=pre).aggregate, expected)


def test_bucketing_takes_its_size_from_the_config_and_its_seed_from_the_caller():
    expected = aggregate(ROWS, method="median", num_byzantine=2, pre=[Bucketing(2, 5)]).vector
    np.testing.assert_array_equal(of(aggregation_method="median", pre=("bucketing",)).aggregate, expected)


def test_centred_clipping_clips_at_its_radius_or_the_clip_norm():
    settings = {"aggregation_method": "centered_clipping", "num_byzantine": 1}
    for radius, config in (
        (0.3, Layer1Config(clip_norm=100.0, clipping_radius=0.3, **settings)),
        (0.2, Layer1Config(clip_norm=0.2, **settings)),
    ):
        expected = aggregate(ROWS, method=CenteredClipping(radius=radius), num_byzantine=1).vector
        np.testing.assert_allclose(Layer1Aggregator(config).aggregate(ROWS).aggregate, expected, atol=1e-7)


def sensitivity(**layer1):
    plan = make_plan(HierarchicalFederationConfig(layer1=Layer1Config(num_byzantine=0, **layer1)))
    return plan.sensitivity(BasketFacts("b", "d", 10, num_rows=10))


def test_a_pre_aggregation_spreads_one_row_over_others_and_costs_the_whole_diameter():
    assert sensitivity(aggregation_method="mean") == pytest.approx(0.2, rel=1e-5)
    assert sensitivity(aggregation_method="mean", pre=("nnm",)) == pytest.approx(2.0, rel=1e-5)
    assert sensitivity(aggregation_method="centered_clipping") == pytest.approx(0.2, rel=1e-5)
    narrow = sensitivity(aggregation_method="centered_clipping", clipping_radius=0.5)
    assert narrow == pytest.approx(0.1, rel=1e-4)


@pytest.mark.parametrize(
    ("layer1", "path"),
    [
        ({"clipping_radius": 1.0}, "layer1.clipping_radius"),
        ({"aggregation_method": "weighted", "pre": ("nnm",)}, "layer1.pre"),
    ],
)
def test_settings_of_another_rule_are_refused(layer1, path):
    with pytest.raises(ConfigError) as refusal:
        make_plan(HierarchicalFederationConfig(layer1=Layer1Config(**layer1)))
    assert refusal.value.path == path
