"""A party's memory across sessions."""

from __future__ import annotations

import pytest
from hypothesis import given
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


def session_id(number):
    return number.to_bytes(16, "big")


@given(
    sessions=st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40),
    capacity=st.integers(1, 5),
)
def test_released_sessions_stay_refused(context_of, sessions, capacity):
    guard = SessionGuard("tests", capacity=capacity)
    released = []
    for number, (round_id, releases) in enumerate(sessions):
        context = context_of(round_id=round_id, session_id=session_id(number))
        try:
            guard.admit(context)
        except ProtocolViolation:
            continue
        if releases:
            guard.mark_released(context)
            released.append((number, round_id))
    assert len(guard._begun) <= capacity
    newest = max((round_id for _, round_id in released), default=0)
    assert len(guard._released) <= max(capacity, sum(at == newest for _, at in released))
    for number, round_id in released:
        for attempt in (0, 1, 10**6):
            with pytest.raises(ProtocolViolation):
                guard.admit(context_of(round_id=round_id, session_id=session_id(number), attempt=attempt))


@pytest.mark.parametrize("again", [False, True], ids=["new sessions", "attempts of one session"])
def test_aborts_use_nothing_up(context_of, again):
    """Beyond any capacity, in one round; neither the next session nor one that waited is refused for it."""
    guard = SessionGuard("tests", capacity=4)
    released = context_of(session_id=b"the released one")
    guard.admit(released)
    guard.mark_released(released)
    for number in range(100):
        guard.admit(context_of(session_id=session_id(0 if again else number), attempt=number))
    last = context_of(session_id=session_id(1000), attempt=100)
    guard.admit(last)
    guard.mark_released(last)
    with pytest.raises(ProtocolViolation, match="released"):
        guard.admit(context_of(session_id=b"the released one", attempt=1))
    assert len(guard._begun) <= 4


def test_releases_beyond_its_memory_close_earlier_rounds_and_never_the_present_one(context_of):
    guard = SessionGuard("tests", capacity=2)
    for number in range(6):
        context = context_of(round_id=3 + number // 5, session_id=session_id(number))
        guard.admit(context)
        guard.mark_released(context)
    assert len(guard._released) == 1
    with pytest.raises(ProtocolViolation, match="too old"):
        guard.admit(context_of(round_id=3, session_id=session_id(77)))
    guard.admit(context_of(round_id=4, session_id=session_id(78)))


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
