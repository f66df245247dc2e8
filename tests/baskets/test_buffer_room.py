"""Clients that outrun Layer 1: what is buffered is bounded, and refused updates are taken later."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, Rejection
from scarcity_ray.baskets import buffer_room
from scarcity_ray.baskets.buffer_room import UPDATE_BYTES, BufferRoom
from scarcity_ray.config import load

D = 4
IDS = [f"c{i}" for i in range(8)]
FEW = 5
ROWS = np.random.default_rng(0).normal(size=(2, len(IDS), D)).astype(np.float32) / 4


def settings(num_updates: int | None, **changes: Any) -> HierarchicalFederationConfig:
    most = None if num_updates is None else num_updates * (4 * D + UPDATE_BYTES)
    content = {
        "vector_dim": D,
        "auto_aggregate": False,
        "gossip_budget_share": 0.0,
        "total_epsilon": 100.0,
        "buffer": {"max_bytes": most},
        "layer2": {"use_secure_aggregation": False},
    }
    return load(HierarchicalFederationConfig, content | changes)


def opened(config: HierarchicalFederationConfig) -> HierarchicalFederation:
    fed = HierarchicalFederation(config, runtime="local", clock=lambda: 1e9)
    fed.register_clients([(client_id, "ab"[i % 2]) for i, client_id in enumerate(IDS)])
    return fed


@given(sent=st.lists(st.tuples(st.sampled_from([0, 1]), st.integers(0, 7), st.integers(1, 8)), max_size=8))
def test_what_is_buffered_never_exceeds_the_room(sent: list[tuple[int, int, int]]) -> None:
    with opened(settings(FEW)) as fed:
        refused = 0
        for which, first, number in sent:
            chosen = slice(first, first + number)
            receipts = fed.submit_updates(IDS[chosen], ROWS[which, chosen])
            refused += sum(receipt.reason is Rejection.BUSY for receipt in receipts)
        stats = fed.get_stats()
        assert stats["n_updates_buffered"] <= FEW
        assert stats["rejections"].get("busy", 0) == refused


def test_room_is_there_again_once_an_aggregate_has_taken_what_waited() -> None:
    with opened(settings(FEW)) as fed:
        reasons = Counter(receipt.reason for receipt in fed.submit_updates(IDS, ROWS[0]))
        assert reasons == {None: FEW, Rejection.BUSY: len(IDS) - FEW}
        fed.force_aggregate()
        late = fed.submit_updates(IDS[FEW:], ROWS[0, FEW:])
        assert all(late), "a refused update is not a replay"


def test_where_the_submission_itself_aggregates_what_was_refused_is_sent_again() -> None:
    config = settings(FEW, auto_aggregate=True, buffer={**vars_of(FEW), "min_updates_trigger": 3})
    with opened(config) as fed:
        assert all(fed.submit_updates(IDS, ROWS[0]))
        assert fed.get_stats()["rejections"]["busy"] == len(IDS) - FEW


def vars_of(num_updates: int) -> dict[str, Any]:
    return {"max_bytes": num_updates * (4 * D + UPDATE_BYTES)}


def test_the_default_is_a_share_of_the_memory_and_never_less_than_an_aggregate_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(buffer_room, "CGROUP_LIMITS", (limit, tmp_path / "none"))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    whole = buffer_room.memory_bytes()
    limit.write_text("max\n")
    assert buffer_room.memory_bytes() == whole > 0
    limit.write_text("160000000\n")
    assert buffer_room.default_bytes() == 10_000_000
    assert BufferRoom(settings(None)).num_updates == 10_000_000 // (4 * D + UPDATE_BYTES)
    assert BufferRoom(settings(None, vector_dim=10**9)).num_updates == 3
