"""Meta-parameters: what one client can move, and that what is learned is in range."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.config import HierarchicalFederationConfig, Layer2Config
from scarcity_ray.errors import UsageError
from scarcity_ray.layers import BasketModel, Layer2Aggregator
from scarcity_ray.layers.meta_parameters import decode_mean, encode_report, mean_reports

RANGES = {"rate": (0.0, 1.0), "decay": (-3.0, 7.0), "wide": (-8e307, 8e307)}
ANYTHING = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.integers(-(10**400), 10**400), st.booleans()
)


@given(report=st.dictionaries(st.sampled_from(sorted(RANGES)), ANYTHING))
def test_a_report_becomes_coordinates_between_minus_one_and_one(report):
    coordinates = encode_report(report, RANGES)
    assert coordinates.shape == (3,)
    assert (np.abs(coordinates) <= 1.0).all()


@given(
    reports=st.lists(st.dictionaries(st.sampled_from(sorted(RANGES)), ANYTHING), min_size=1, max_size=8),
    replaced=st.dictionaries(st.sampled_from(sorted(RANGES)), ANYTHING),
)
def test_one_client_moves_a_mean_by_at_most_two_over_the_number_of_clients(reports, replaced):
    before = mean_reports([encode_report(r, RANGES) for r in reports], 3)
    after = mean_reports([encode_report(r, RANGES) for r in [replaced, *reports[1:]]], 3)
    assert (np.abs(before - after) <= 2 / len(reports) + 1e-15).all()


@given(mean=st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3))
def test_what_is_learned_lies_in_the_declared_range(mean):
    learned = decode_mean(np.array(mean), RANGES)
    assert list(learned) == list(RANGES)
    for name, (low, high) in RANGES.items():
        assert low <= learned[name] <= high


@given(rate=st.floats(0, 1), decay=st.floats(-3, 7))
def test_a_single_report_comes_back(rate, decay):
    learned = decode_mean(encode_report({"rate": rate, "decay": decay}, RANGES), RANGES)
    assert learned["rate"] == pytest.approx(rate, abs=1e-12)
    assert learned["decay"] == pytest.approx(decay, abs=1e-11)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "0.9", 1j, [0.9], np.float32("nan")])
def test_what_is_not_a_finite_number_counts_as_not_reported(value):
    assert encode_report({"rate": value}, RANGES).tolist() == encode_report({}, RANGES).tolist() == [0, 0, 0]


def test_an_undeclared_name_is_refused_and_numpy_numbers_are_welcome():
    with pytest.raises(UsageError, match="beta"):
        encode_report({"beta": 1.0}, RANGES)
    for one in (1, 1.0, np.float32(1), np.int16(1)):
        assert encode_report({"rate": one}, RANGES)[0] == 1.0
    assert encode_report(None, RANGES).tolist() == [0, 0, 0]


def test_no_reports_and_no_parameters_have_a_mean():
    assert mean_reports([], 2).tolist() == [0.0, 0.0]
    assert mean_reports([np.zeros(0)] * 3, 0).shape == (0,)


def test_what_clients_report_is_learned_through_the_release():
    ranges = {"rate": (0.0, 1.0), "decay": (-3.0, 7.0)}
    config = HierarchicalFederationConfig(
        vector_dim=2,
        meta_parameters=ranges,
        layer2=Layer2Config(central_dp_epsilon=math.inf, weight_by_size=False),
        total_epsilon=math.inf,
    )
    models = [
        BasketModel(b, np.zeros(2, np.float32), 3, 0, 0.0, 1.0, meta=encode_report(report, ranges))
        for b, report in (("a", {"rate": 0.2, "decay": 1.0}), ("b", {"rate": 0.6, "decay": 5.0}))
    ]
    learned = Layer2Aggregator(config).aggregate(models).meta_params
    assert learned == pytest.approx({"rate": 0.4, "decay": 3.0}, abs=1e-5)
