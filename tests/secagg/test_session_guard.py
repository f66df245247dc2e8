"""A party's memory across sessions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.secagg import Participant, SessionGuard


def test_an_attempt_is_admitted_once(context_of):
    guard = SessionGuard("tests")
    guard.admit(context_of(attempt=0))
    guard.admit(context_of(attempt=2))
    for attempt in (0, 1, 2):
        with pytest.raises(ProtocolViolation, match="begun before"):
            guard.admit(context_of(attempt=attempt))
    guard.admit(context_of(attempt=3))


def test_a_session_stays_in_its_round(context_of):
    guard = SessionGuard("tests")
    guard.admit(context_of(round_id=3, attempt=0))
    with pytest.raises(ProtocolViolation, match="begun before"):
        guard.admit(context_of(round_id=4, attempt=1))


def test_nothing_is_admitted_after_a_release(context_of):
    guard = SessionGuard("tests")
    guard.admit(context_of(attempt=0))
    guard.mark_released(context_of(attempt=0))
    with pytest.raises(ProtocolViolation, match="released"):
        guard.admit(context_of(attempt=1))
    with pytest.raises(ProtocolViolation, match="released"):
        guard.mark_released(context_of(attempt=0))
    guard.admit(context_of(session_id=b"another session!"))


def test_only_the_newest_attempt_is_released(context_of):
    guard = SessionGuard("tests")
    guard.admit(context_of(attempt=0))
    guard.admit(context_of(attempt=1))
    with pytest.raises(ProtocolViolation, match="newest"):
        guard.mark_released(context_of(attempt=0))


@settings(max_examples=40, deadline=None)
@given(rounds=st.lists(st.integers(0, 6), min_size=1, max_size=30), capacity=st.integers(1, 5))
def test_forgotten_sessions_stay_refused(context_of, rounds, capacity):
    guard = SessionGuard("tests", capacity=capacity)
    admitted = set()
    for number, round_id in enumerate(rounds):
        context = context_of(round_id=round_id, session_id=number.to_bytes(16, "big"))
        try:
            guard.admit(context)
        except ProtocolViolation:
            continue
        admitted.add((number, round_id))
    assert len(guard._seen) <= capacity
    for number, round_id in admitted:
        with pytest.raises(ProtocolViolation):
            guard.admit(context_of(round_id=round_id, session_id=number.to_bytes(16, "big")))


def test_a_released_input_joins_no_second_sum(session_of, identity_of):
    """Small-group differencing: the same input over another set of survivors."""
    guard = SessionGuard("tests")
    session = session_of(4)
    session.participants["basket_0"] = Participant(session.context, "basket_0", identity_of(0), guard=guard)
    session.run()
    with pytest.raises(ProtocolViolation, match="released"):
        Participant(session_of(4, attempt=1).context, "basket_0", identity_of(0), guard=guard)


def test_an_older_attempt_cannot_be_unmasked_once_a_newer_began(session_of, identity_of):
    guard = SessionGuard("tests")
    session = session_of(4)
    session.participants["basket_0"] = Participant(session.context, "basket_0", identity_of(0), guard=guard)
    session.until("unmask")
    Participant(session_of(4, attempt=1).context, "basket_0", identity_of(0), guard=guard)
    with pytest.raises(ProtocolViolation, match="newest"):
        session.participants["basket_0"].unmask(session.coordinator.confirmations())
