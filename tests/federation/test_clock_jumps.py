"""A clock that is set forward or back between any two calls: nothing waits for it or is counted twice."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks._deaths_driver import CLIENTS, IDS, Silence, config, row
from benchmarks._deaths_oracle import inside
from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.privacy.ledger.ledger import Ledger
from tests.operations.stopping import SETTINGS

YEARS = 10 * 365.0 * 86400.0


@pytest.mark.parametrize("jump", [YEARS, -YEARS])
def test_a_round_in_which_the_clock_jumps_before_each_call_is_as_any_other(
    tmp_path: Path, clock: Any, jump: float
) -> None:
    """With masks and a journal; the federation is restored at another time than it stopped at."""
    clock.now = 2.0 * YEARS

    def jumped() -> HierarchicalFederation:
        clock.advance(jump / 20.0)
        return fed

    fed = HierarchicalFederation(config(tmp_path), runtime="local", noise=Silence(), clock=clock)
    fed.register_clients(CLIENTS)
    found: Counter[tuple[int, str]] = Counter()
    for round_id in range(4):
        rows = np.stack([row(client, round_id) for client in IDS])
        for half in (slice(8), slice(8, 16)):
            assert all(r.accepted for r in jumped().submit_updates(IDS[half], rows[half], round_id))
        assert not any(r.accepted for r in jumped().submit_updates(IDS, rows, round_id))
        assert jumped().force_aggregate() is not None
        model = jumped().get_global_meta_model()
        assert model is not None
        found.update(inside(model))
        assert jumped().advance_round() == round_id + 1
        if round_id == 1:
            fed.terminate()
            fed.close()
            fed = HierarchicalFederation.restore(
                str(tmp_path / "state"), runtime="local", noise=Silence(), clock=clock
            )
    assert found == Counter({(r, c): 1 for r in range(4) for c in IDS})
    fed.terminate()
    fed.close()
    with closing(Ledger.read(str(tmp_path / "ledger.sqlite"))) as ledger:
        ledger.verify()


def test_what_waits_for_a_time_does_not_wait_for_a_clock_that_was_set_back(
    tmp_path: Path, clock: Any
) -> None:
    """One of three baskets never sends, so that only time makes a release due."""
    settings = {"layer2": {**SETTINGS["layer2"], "update_interval_seconds": 100.0}}
    changed = {"gossip_budget_share": 0.0, "ledger_path": str(tmp_path / "ledger.sqlite")}
    made = load(HierarchicalFederationConfig, {**SETTINGS, **settings, **changed})
    with HierarchicalFederation(made, runtime="local", noise=Silence(), clock=clock) as fed:
        fed.register_clients([(f"{domain}{i}", domain) for domain in "abc" for i in range(2)])
        versions = []
        for step in (0.0, -50.0, -50.0, -99.0, -1e6):
            clock.advance(step)
            fed.submit_updates(["a0", "a1", "b0", "b1"], np.eye(4, 16, dtype=np.float32))
            fed.maybe_aggregate()
            versions.append(fed.get_stats()["n_layer2_aggregations"])
            fed.advance_round()
        assert versions == [0, 0, 1, 1, 2]
