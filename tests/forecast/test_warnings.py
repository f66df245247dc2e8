"""What is warned of, and how loudly."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from scarcity_ray.config import HierarchicalFederationConfig
from scarcity_ray.forecast import Forecast, remedies, warnings_of
from scarcity_ray.forecast.warnings import weak_settings
from tests.forecast.test_feasibility import rows_noised

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


def test_drowned_rows_are_said_with_remedies_that_work_for_rows():
    config = rows_noised(0.02)
    forecast = Forecast(config, (10,) * 4, 20)
    drowned, rows, *_ = warnings_of(forecast)
    assert (drowned.code, rows.code) == ("noise_drowns_signal", "rows_are_noise")
    assert (drowned.loud, rows.loud) == (True, False)
    assert any("privacy.row_epsilon" in way for way in drowned.remedies)
    assert not any("central_dp_epsilon" in way for way in drowned.remedies)
    ways = remedies(forecast)
    assert {kind for way in ways for kind in way.kinds} >= {"rounds", "clients", "unit"}
    for way in ways:
        assert way.noise_norm <= forecast.signal_bound * 1.001
        assert Forecast(way.config, way.sizes, 20).noise_norm == pytest.approx(way.noise_norm)
    assert "sqrt(40) = 6.32" in rows.message
    quiet = Forecast(replace(config, privacy=replace(config.privacy, min_persons=10**5)), (10,) * 4, 20)
    assert not {"noise_drowns_signal", "rows_are_noise"} & {each.code for each in warnings_of(quiet)}


def test_where_clients_noise_their_rows_nobody_counts_on_masks():
    """A basket's aggregate is made of noised rows: who sees it, sees nothing beyond the claim."""
    person = {"unit": "person", "person_clip_norm": 1.0, "min_persons": 400}
    site = {**person, "noise": "site", "row_epsilon": 0.3}
    for privacy, told in ((person, {"weak_masking", "secure_aggregation_off"}), (site, set())):
        found = set()
        for masks in (True, False):
            config = HierarchicalFederationConfig(
                vector_dim=31,
                total_epsilon=3.0,
                gossip_budget_share=0.0,
                privacy=privacy,
                layer1={"clip_norm": 9.0},
                layer2={"use_secure_aggregation": masks},
            )
            told_of = (*weak_settings(config), *warnings_of(Forecast(config, (10, 10), 10)))
            found |= {warning.code for warning in told_of}
        assert found & {"weak_masking", "secure_aggregation_off"} == told
