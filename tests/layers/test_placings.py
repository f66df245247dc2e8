"""What Layer 1 says of each client beside the aggregate."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray.config import AggregationMethod, Layer1Config
from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input

NAMES = [f"c{i:02d}" for i in range(24)]


def rows_of(rng: np.random.Generator) -> np.ndarray:
    rows = 0.02 + 0.01 * rng.standard_normal((24, 500))
    rows[3] *= -30
    return rows


@pytest.mark.parametrize("pre", [[], ["nnm"], ["bucketing"]])
@pytest.mark.parametrize("method", list(AggregationMethod))
def test_the_aggregate_is_bitwise_the_same_with_and_without_a_report(
    method: AggregationMethod, pre: list[str]
) -> None:
    if pre and method is AggregationMethod.WEIGHTED:
        return
    config = Layer1Config(aggregation_method=method, pre=pre, num_byzantine=1)
    rows = rows_of(np.random.default_rng(0))
    plain = Layer1Aggregator(config).aggregate_basket(Layer1Input(rows, client_ids=NAMES))
    told = Layer1Aggregator(config).aggregate_basket(Layer1Input(rows, client_ids=NAMES), report=True)
    assert plain.placings == {}
    assert told.aggregate.tobytes() == plain.aggregate.tobytes()
    assert list(told.placings) == NAMES
    assert {c for c, place in told.placings.items() if place.selected} == set(told.selected)
    if not pre and method not in (
        AggregationMethod.FEDAVG,
        AggregationMethod.WEIGHTED,
    ):
        assert told.placings["c03"].agreement == 0.0
        assert np.mean([place.agreement for place in told.placings.values()]) > 0.8


def test_what_was_trimmed_is_said_of_rules_that_trim() -> None:
    rows = rows_of(np.random.default_rng(0))
    for method, trims in (("trimmed_mean", True), ("median", True), ("bulyan", True), ("krum", False)):
        config = Layer1Config(aggregation_method=method, num_byzantine=1)
        placings = (
            Layer1Aggregator(config)
            .aggregate_basket(Layer1Input(rows, client_ids=NAMES), report=True)
            .placings
        )
        assert {place.trimmed is not None for place in placings.values()} == {trims}
        if trims:
            assert placings["c03"].trimmed > 0.9
