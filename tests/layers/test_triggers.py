from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from scarcity_ray.config import BufferConfig, Layer2Config
from scarcity_ray.layers import TriggerEngine, TriggerReason, basket_due, global_due

CONFIG = BufferConfig(max_staleness=3, time_trigger_seconds=60.0)


@pytest.mark.parametrize(
    ("n_updates", "seconds", "facts", "reason"),
    [
        (5, 0, {"n_active": 5}, TriggerReason.COUNT),
        (4, 0, {"n_active": 5}, None),
        (4, 59.9, {"n_active": 5, "oldest_staleness": 2}, None),
        (4, 60, {"n_active": 5}, TriggerReason.TIME),
        (4, 0, {"n_active": 5, "oldest_staleness": 3}, TriggerReason.STALENESS),
        (4, 0, {}, None),
        (0, 1e9, {"n_active": 0, "oldest_staleness": 9}, None),
    ],
)
def test_all_members_or_time_or_staleness_make_layer_1_due(
    n_updates: int, seconds: float, facts: dict, reason: TriggerReason | None
) -> None:
    assert basket_due(CONFIG, n_updates, seconds, **facts) is reason


@pytest.mark.parametrize(
    ("n_updates", "seconds", "facts", "reason"),
    [
        (5, 0, {"n_active": 5}, None),
        (5, 60, {"n_active": 5}, TriggerReason.TIME),
        (5, 0, {"n_active": 5, "oldest_staleness": 3}, TriggerReason.STALENESS),
    ],
)
def test_that_all_have_sent_waits_for_gossip_and_nothing_else_does(
    n_updates: int, seconds: float, facts: dict, reason: TriggerReason | None
) -> None:
    assert basket_due(CONFIG, n_updates, seconds, **facts, gossip_to_come=True) is reason


def test_an_explicit_count_does_not_wait_for_gossip() -> None:
    config = BufferConfig(min_updates_trigger=2)
    assert basket_due(config, 2, 0, n_active=50, gossip_to_come=True) is TriggerReason.COUNT


def test_min_updates_trigger_replaces_all_members() -> None:
    config = BufferConfig(min_updates_trigger=2)
    assert basket_due(config, 2, 0, n_active=50) is TriggerReason.COUNT
    assert basket_due(config, 1, 0, n_active=1) is None


def test_staleness_never_triggers_where_only_the_current_round_counts() -> None:
    assert basket_due(BufferConfig(max_staleness=0), 2, 0, n_active=3, oldest_staleness=0) is None


@given(st.integers(0, 9), st.floats(0, 1e6), st.integers(0, 9), st.integers(1, 10), st.integers(0, 9))
def test_layer_1_always_waits_for_the_rules_least_rows(
    n_updates: int, seconds: float, n_active: int, least: int, staleness: int
) -> None:
    reason = basket_due(
        CONFIG, n_updates, seconds, n_active=n_active, least=least, oldest_staleness=staleness
    )
    if n_updates < least:
        assert reason is None
    else:
        assert reason == basket_due(CONFIG, n_updates, seconds, n_active=n_active, oldest_staleness=staleness)


@given(
    st.integers(0, 8), st.integers(0, 8), st.floats(0, 100), st.integers(2, 5), st.none() | st.integers(1, 6)
)
def test_layer_2_is_due_exactly_when_the_contract_says(
    fresh: int, active: int, seconds: float, least: int, trigger: int | None
) -> None:
    config = Layer2Config(min_baskets=least, min_baskets_trigger=trigger, update_interval_seconds=50.0)
    due = fresh >= least and (fresh >= (trigger or active) or seconds >= 50.0)
    assert (global_due(fresh, active, seconds, config) is not None) == due


def test_a_fired_trigger_is_given_once() -> None:
    engine = TriggerEngine(CONFIG)
    assert engine.check_and_clear("b") is None
    assert engine.should_trigger("b", 3, 0.0, n_active=3) is TriggerReason.COUNT
    assert engine.should_trigger("c", 3, 99.0) is TriggerReason.TIME
    assert engine.check_and_clear("b") is TriggerReason.COUNT
    assert engine.check_and_clear("b") is None
    assert engine.should_trigger("c", 0, 99.0) is None
    assert engine.check_and_clear("c") is None
