"""What is warned of, and how loudly."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.forecast import Forecast, solve_for_rounds, warnings_of

QUIET = {
    "total_epsilon": math.inf,
    "layer2": {"central_dp_epsilon": math.inf},
    "gossip": {"local_dp_epsilon": math.inf},
}


def warned(sizes, rounds=10, **config):
    config = HierarchicalFederationConfig(**config)
    return {warning.code: warning for warning in warnings_of(Forecast(config, sizes, rounds))}


def test_without_noise_and_stuck_sizes_there_is_no_warning():
    assert warned((10, 10, 10), **QUIET) == {}


def test_two_baskets_are_told_what_masking_is_worth_to_them():
    found = warned((10, 10), **QUIET)["weak_masking"]
    assert found.loud
    assert "only against a global aggregator that colludes with no basket" in found.message


def test_noise_above_the_signal_is_loud_and_says_what_would_change_it():
    found = warned((13,) * 20, vector_dim=250)["noise_drowns_signal"]
    assert found.loud
    for words in (
        "times the greatest",
        "spending this budget in at most",
        "baskets like these",
        "trimmed_mean",
    ):
        assert words in found.message
    by_trimming = warned((13,) * 20, vector_dim=250, layer1={"aggregation_method": "trimmed_mean"})
    assert "noise_drowns_signal" not in by_trimming


def test_a_warning_names_no_impossible_way_out():
    found = warned((13,) * 20, vector_dim=10**6, layer2={"central_dp_epsilon": 0.1})["noise_drowns_signal"]
    assert "at most 0 rounds" not in found.message
    found = warned((13,) * 20, vector_dim=250, total_epsilon=math.inf)["noise_drowns_signal"]
    assert "spending this budget" not in found.message
    assert "baskets like these" in found.message


def test_stuck_sizes_are_listed_as_runs_and_loud_where_a_basket_has_one():
    bulyan = {**QUIET, "layer1": {"aggregation_method": "bulyan"}}
    elsewhere = warned((12, 12), **bulyan)["rule_never_aggregates"]
    assert "baskets of 5 to 6, 10, so these never aggregate" in elsewhere.message
    assert not elsewhere.loud
    here = warned((12, 10), **bulyan)["rule_never_aggregates"]
    assert here.loud
    assert "of these baskets, those of 10" in here.message


def test_a_budget_that_ends_before_the_rounds_is_noted():
    found = warned((13,) * 20, rounds=1000)["budget_ends_early"]
    assert "of the 1000 rounds" in found.message
    assert not found.loud


def test_noise_that_falls_too_late_is_noted():
    falling = {"privacy": {"noise_decay": 0.5}}
    found = warned((13,) * 20, rounds=5, **falling)["noise_falls_too_late"]
    assert "the 5 that are wanted are the noisiest" in found.message
    assert "noise_falls_too_late" not in warned((13,) * 20, rounds=10_000, **falling)


def test_gossip_that_says_nothing_is_noted():
    assert not warned((13,) * 20)["gossip_noise_drowns_signal"].loud
    assert "gossip_noise_drowns_signal" not in warned((13,) * 20, gossip_budget_share=0.0)


def test_a_share_of_norms_lost_in_noise_is_noted_with_what_would_change_it():
    adaptive = {"layer2": {"adaptive_clipping": True}}
    found = warned((3, 3), **adaptive)["clip_norm_wanders"]
    assert not found.loud
    assert "more clients" in found.message
    assert "clip_norm_wanders" not in warned((13,) * 20, **adaptive)
    assert "clip_norm_wanders" not in warned((3, 3))


def noised(rounds=10, **privacy):
    """A forecast of twenty clients that noise their own rows, which the budget pays for `rounds` times."""
    config = HierarchicalFederationConfig(
        vector_dim=31,
        total_epsilon=3.0,
        total_delta=1e-6,
        gossip_budget_share=0.0,
        privacy={
            "unit": "person",
            "noise": "site",
            "person_clip_norm": 1.0,
            "min_persons": 400,
            "row_epsilon": 1.0,
            **privacy,
        },
        layer1={"aggregation_method": "trimmed_mean", "clip_norm": 500.0},
        layer2={"clip_norm": 500.0},
    )
    return Forecast(solve_for_rounds(config, rounds), (8, 12), rounds)


def test_where_clients_noise_their_rows_the_forecast_is_of_these():
    """Against rows drawn by the mechanism itself: of one, and of the mean of all."""
    forecast = noised()
    drawn = forecast.plan.site_noise.noised(np.zeros((40_000, 31), np.float32), 400).astype(np.float64)
    assert forecast.row_noise_norm == pytest.approx(np.sqrt((drawn**2).sum(-1).mean()), rel=0.01)
    means = drawn.reshape(2000, 20, 31)
    first, second = forecast.release.weights.values()
    mean = first * means[:, :8].mean(1) + second * means[:, 8:].mean(1)
    assert forecast.noise_norm == pytest.approx(np.sqrt((mean**2).sum(-1).mean()), rel=0.03)
    assert forecast.signal_bound == 1.0, "of a row before it is noised"
    assert forecast.rules == ()
    # As many rounds as that have rows whose mean is as noisy as its signal.
    at_most = noised(int(forecast.rounds_at_equal_noise))
    assert at_most.noise_norm == pytest.approx(1.0, rel=1e-3)
    assert noised(1000).baskets_at_equal_noise == math.ceil(2 * noised(1000).noise_norm ** 2)


def test_row_noise_that_exceeds_the_signal_is_told_with_what_would_change_it():
    code = "row_noise_exceeds_signal"
    assert not any(warning.code == code for warning in warnings_of(noised()))
    found = next(warning for warning in warnings_of(noised(2000)) if warning.code == code)
    assert not found.loud, "the mean of all rows is within it"
    assert (
        noised(2000, min_persons=int(re.findall(r"min_persons: (\d+)", found.message)[0])).row_noise_norm
        <= 1.01
    )
    assert noised(int(re.findall(r"--rounds (\d+)", found.message)[0])).row_noise_norm <= 1.01
    drowned = next(warning for warning in warnings_of(noised(50_000)) if warning.code == code)
    assert drowned.loud
    assert "still more than the signal" in drowned.message
