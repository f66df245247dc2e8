"""Each push and pull rule as a property, on a clock that hypothesis moves."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, given, settings

DAY = 86_400.0
gaps = st.lists(st.floats(0.0, 40_000.0), min_size=1, max_size=12)
relaxed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@relaxed
@given(gaps, st.integers(1, 4))
def test_no_24_hours_hold_more_releases_than_the_daily_limit(make, gossip, waits, limit) -> None:
    protocol, now, times = make(max_messages_per_day=limit), 0.0, []
    for round_id, wait in enumerate(waits):
        now += wait
        released = gossip(protocol, {"a": np.ones(4), "b": np.ones(4)}, round_id, now).released
        within = [time for time in times if now - time < DAY]
        assert (released == ("a", "b")) == (len(within) < limit)
        times += [now] * bool(released)


@relaxed
@given(st.lists(st.floats(0.0, 6.0), min_size=1, max_size=12), st.floats(0.0, 10.0))
def test_a_client_pulls_at_most_once_in_an_interval_and_only_if_nobody_pushed_to_it(
    make, gossip, waits, interval
) -> None:
    protocol, now, last = make(push_drift_threshold=0.5, peers_per_round=1, pull_interval=interval), 0.0, None
    states = {"loud": np.eye(4)[0], "other": np.eye(4)[1], "quiet": np.zeros(4)}
    for wait in waits:
        now += wait
        before = protocol.get_stats()
        outcome = gossip(protocol, {**states}, 0, now)
        pulls = protocol.get_stats()["pulls"] - before["pulls"]
        assert outcome.sent <= 2 + pulls
        assert pulls <= 3
        if pulls and last is not None and interval > 0:
            assert protocol.get_stats()["pulls"] <= 3 * (1 + now // interval)
        last = now if pulls else last
    assert protocol.get_stats()["sent"] <= 4


@relaxed
@given(st.floats(1.0, 500.0), st.floats(0.0, 1000.0))
def test_a_message_is_delivered_within_its_time_to_live_and_never_after(make, gossip, ttl, wait) -> None:
    protocol = make(message_ttl=ttl, peers_per_round=5)
    gossip(protocol, {"a": np.ones(4)}, 0, 0.0, members=["a", "late"])
    outcome = gossip(protocol, {"late": np.zeros(4)}, 0, wait, members=["a", "late"])
    assert (outcome.delivered, outcome.expired) == ((1, 0) if wait <= ttl else (0, 1))


@relaxed
@given(st.integers(2, 6), st.integers(1, 6), st.integers(1, 5))
def test_a_partition_loses_nothing_that_has_not_expired(make, gossip, here, away, k) -> None:
    """Who is cut off has no state to mix into; what it was sent reaches it when it is back."""
    protocol = make(peers_per_round=k, message_ttl=100.0)
    near = {f"h{i}": np.eye(4)[i % 4] for i in range(here)}
    far = {f"z{i}": np.zeros(4) for i in range(away)}
    members = [*near, *far]
    for step in range(3):
        gossip(protocol, near, 0, 10.0 * step, members=members)
    stats = protocol.get_stats()
    assert stats["sent"] == stats["delivered"] + stats["pending"]
    outcome = gossip(protocol, far, 0, 30.0, members=members)
    assert outcome.delivered >= stats["pending"]
    after = protocol.get_stats()
    assert after["expired"] == after["dropped"] == 0


@relaxed
@given(st.sets(st.sampled_from("abcdef"), min_size=1, max_size=4), st.booleans())
def test_a_departure_drops_what_waits_from_and_for_it_and_nothing_else(make, gossip, leaving, move) -> None:
    protocol = make(peers_per_round=5)
    everybody = list("abcdef")
    gossip(protocol, {c: np.full(4, 0.1) for c in "ab"}, 0, 0.0, members=everybody)
    waiting = {(sender, receiver) for sender in "ab" for receiver in "cdef"}
    for client in sorted(leaving):
        gone = {pair for pair in waiting if client in pair}
        waiting -= gone
        if move:
            before = protocol.get_stats()["dropped"]
            protocol.take_client(client)
            assert protocol.get_stats()["dropped"] - before == len(gone)
        else:
            assert protocol.drop_client(client) == len(gone)
    assert protocol.get_stats()["pending"] == len(waiting)
