"""What a federation holds in memory does not grow with its rounds: objects are counted, not the process."""

from __future__ import annotations

import gc
import sqlite3
import types
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.actors import directory
from scarcity_ray.actors.global_aggregator import GlobalAggregator
from scarcity_ray.config import load
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.secagg import SessionGuard

ROUNDS = 24
CLIENTS = [f"c{i}" for i in range(12)]
NOT_COUNTED = (
    *(types.ModuleType, type, types.FunctionType, types.BuiltinFunctionType, types.CodeType),
    *(int, float, sqlite3.Connection),
)
"""What all of the process shares; numbers, which are objects of their own above 256 alone; and connections of
sqlite3, which keep up to 200 dead references to their cursors."""


class Clock:
    """A day a round, so that what is remembered for a day is so for one."""

    now = 1e9

    def __call__(self) -> float:
        return self.now


def num_live(federation: HierarchicalFederation) -> int:
    """The objects that are reached from the driver and from the roles, and what is in their containers."""
    place: Any = federation._runtime
    seen, waiting, num_items = set[int](), deque[object]([federation, *place._peers.roles.values()]), 0
    while waiting:
        found = waiting.popleft()
        if id(found) not in seen and not isinstance(found, NOT_COUNTED):
            seen.add(id(found))
            num_items += len(found) if isinstance(found, list | dict | set | deque | bytearray) else 0
            waiting.extend(gc.get_referents(found))
    return len(seen) + num_items


def growth_a_round(folder: Path) -> float:
    """Live objects more a round, from the last 4 of `ROUNDS` to the last 4 of twice as many."""
    plain = {
        "vector_dim": 3,
        "seed": 1,
        "auto_aggregate": False,
        "total_epsilon": 1e6,
        "receipts": True,
        "ledger_path": str(folder / "ledger.sqlite"),
        "storage_path": str(folder / "state"),
        "journal_path": str(folder / "journal"),
        "basket": {"max_clients": 6},
        "buffer": {"max_staleness": 1},
        "layer2": {"central_dp_delta": 1e-9},
        "gossip": {"local_dp_delta": 1e-9},
    }
    config, clock, rng = load(HierarchicalFederationConfig, plain), Clock(), np.random.default_rng(0)
    counts = []
    with HierarchicalFederation(config, runtime="local", clock=clock, noise=SeededNoise(1)) as federation:
        federation.register_clients([(c, "ab"[i % 2]) for i, c in enumerate(CLIENTS)])
        for _ in range(2 * ROUNDS):
            assert all(federation.submit_updates(CLIENTS, 0.1 * rng.standard_normal((len(CLIENTS), 3))))
            assert federation.offer_update("c0", [np.nan, 0, 0]).reason
            federation.run_gossip_round()
            assert federation.force_aggregate() is not None
            federation.unregister_client("c0")
            federation.register_client("c0", "a")
            federation.advance_round()
            federation.get_stats()
            clock.now += 86_400.0
            counts.append(num_live(federation))
    first, last = (float(np.mean(counts[end - 4 : end])) for end in (ROUNDS, 2 * ROUNDS))
    return (last - first) / ROUNDS


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a federation is kept; what it remembers up to a number, it remembers up to a small one."""
    monkeypatch.setattr(SessionGuard.__init__, "__defaults__", (4,))
    monkeypatch.setattr(directory, "REMEMBERED", 4)
    return tmp_path


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_live_objects_do_not_grow_with_the_rounds(folder: Path) -> None:
    assert growth_a_round(folder) < 0.5


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_a_few_things_a_round_that_are_kept_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `GlobalAggregator` did once: it kept the ledger's head at each release.

    Three of them, since other parts of this process may let go of one a round.
    """
    at_release, kept = GlobalAggregator.run, list[str]()

    def run(self: Any, *args: Any) -> Any:
        self._kept_for_ever = kept
        kept.extend(["", "", ""])
        return at_release(self, *args)

    monkeypatch.setattr(GlobalAggregator, "run", run)
    assert growth_a_round(folder) > 1.0
