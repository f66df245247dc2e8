"""The coordinator's memory: the running sum, the vector that just came in, and small change."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from scarcity_ray.secagg import Participant, masking

DIMENSION = 500_000
VECTOR = 4 * DIMENSION


@pytest.mark.parametrize("num_parties", [4, 12])
def test_coordinator_holds_at_most_three_vectors_however_many_parties(session_of, num_parties):
    """Peak of each call beyond what was there before it, the sum and the incoming vector counted in."""
    vectors = {f"basket_{i}": np.full(DIMENSION, i, dtype=np.uint32) for i in range(num_parties)}
    drops = {"basket_0": "mask"}
    session = session_of(num_parties, vectors=vectors, dimension=DIMENSION, drops=drops).until("share_keys")
    session.share_keys()
    coordinator = session.coordinator

    def peak_of(call, *arguments):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        result = call(*arguments)
        return tracemalloc.get_traced_memory()[1] - before, result

    tracemalloc.start()
    try:
        grown, _ = peak_of(coordinator.sharers)
        assert grown < 1.5 * VECTOR
        for party in session.alive("mask"):
            participant: Participant = session.participants[party]
            message = participant.mask(coordinator.inbox(party), vectors[party])
            grown, _ = peak_of(coordinator.add_masked, message)
            assert grown < 0.5 * VECTOR
            del message
        session.confirm()
        session.unmask()
        grown, total = peak_of(coordinator.finish)
        assert grown < 2 * masking.BLOCK_BYTES + VECTOR // 2
    finally:
        tracemalloc.stop()
    assert (total == sum(range(1, num_parties))).all()


def test_masking_needs_its_result_and_two_blocks(session_of):
    vectors = {f"basket_{i}": np.full(DIMENSION, i, dtype=np.uint32) for i in range(4)}
    session = session_of(4, vectors=vectors, dimension=DIMENSION).until("mask")
    inbox = session.coordinator.inbox("basket_1")
    tracemalloc.start()
    try:
        session.participants["basket_1"].mask(inbox, vectors["basket_1"])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < VECTOR + 2 * masking.BLOCK_BYTES + VECTOR // 4
