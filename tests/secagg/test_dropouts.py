"""The sum is exact whatever parties drop and when, down to the threshold; below it nothing comes out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.errors import SecureAggregationAborted, UsageError

STEPS = ("advertise", "share_keys", "mask", "confirm", "unmask")


@st.composite
def patterns(draw):
    num_parties = draw(st.integers(2, 8))
    threshold = draw(st.integers(max(2, num_parties // 2 + 1), num_parties))
    drops = draw(
        st.dictionaries(
            st.integers(0, num_parties - 1).map("basket_{}".format),
            st.sampled_from(STEPS),
            max_size=num_parties,
        )
    )
    return num_parties, threshold, drops


@given(pattern=patterns(), dimension=st.integers(1, 40), ring_bits=st.sampled_from([32, 64]))
def test_sum_is_exact_for_every_dropout_pattern_down_to_the_threshold(
    session_of, pattern, dimension, ring_bits
):
    num_parties, threshold, drops = pattern
    session = session_of(
        num_parties, drops=drops, threshold=threshold, dimension=dimension, ring_bits=ring_bits
    )
    left = num_parties
    aborts_at = None
    for step in STEPS:
        left -= sum(at == step for at in drops.values())
        if left < threshold:
            aborts_at = step
            break
    if aborts_at is not None:
        with pytest.raises(SecureAggregationAborted) as caught:
            session.run()
        assert f"phase {aborts_at}" in caught.value.reason
        assert caught.value.retryable is (aborts_at != "unmask")
        return
    total = session.run()
    in_sum = [p for p in session.vectors if drops.get(p) not in ("advertise", "share_keys", "mask")]
    assert session.coordinator.survivors() == tuple(sorted(in_sum))
    expected = np.sum([session.vectors[p] for p in in_sum], axis=0, dtype=total.dtype)
    np.testing.assert_array_equal(total, expected)


@pytest.mark.parametrize("step", STEPS)
def test_aborts_below_the_threshold_in_every_phase(session_of, step):
    drops = {f"basket_{i}": step for i in range(3)}
    session = session_of(5, drops=drops, threshold=3)
    with pytest.raises(SecureAggregationAborted, match="below the threshold of 3"):
        session.run()
    assert session.coordinator.phase == "aborted"
    assert session.coordinator._sum is None
    with pytest.raises(SecureAggregationAborted):
        session.coordinator.finish()


@pytest.mark.parametrize("step", STEPS)
def test_abort_is_retryable_until_confirmations_are_handed_out(session_of, step):
    session = session_of(4, drops={f"basket_{i}": step for i in range(2)}, threshold=3)
    with pytest.raises(SecureAggregationAborted) as caught:
        session.run()
    assert caught.value.retryable is (step != "unmask")


def test_another_attempt_with_fresh_keys_succeeds_after_an_abort(session_of):
    first = session_of(4, drops={"basket_0": "mask", "basket_1": "mask"}, threshold=3)
    with pytest.raises(SecureAggregationAborted):
        first.run()
    again = session_of(4, vectors=first.vectors, attempt=1, threshold=3)
    expected = np.sum(list(first.vectors.values()), axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(again.run(), expected)


def test_closing_the_coordinator_releases_nothing(session_of):
    session = session_of(4).until("confirm")
    session.coordinator.close()
    assert session.coordinator._sum is None
    with pytest.raises(SecureAggregationAborted) as caught:
        session.coordinator.survivors()
    assert caught.value.retryable


def test_the_sum_is_handed_over_once(session_of):
    session = session_of(3)
    session.run()
    with pytest.raises(UsageError, match="handed over before"):
        session.coordinator.finish()


@pytest.mark.parametrize("closing", ["sharers", "survivors", "confirmations", "finish"])
def test_phases_are_closed_in_order(session_of, closing):
    with pytest.raises(UsageError, match="comes after phase"):
        getattr(session_of(3).coordinator, closing)()


def test_awaited_names_the_silent(session_of):
    session = session_of(4, drops={"basket_2": "mask"}).until("mask")
    assert len(session.coordinator.awaited()) == 4
    session.mask()
    assert session.coordinator.awaited() == ("basket_2",)


def test_a_party_that_masked_and_died_stays_in_the_sum(session_of):
    session = session_of(5, drops={"basket_0": "confirm", "basket_1": "unmask"}, threshold=3)
    total = session.run()
    expected = np.sum(list(session.vectors.values()), axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(total, expected)
