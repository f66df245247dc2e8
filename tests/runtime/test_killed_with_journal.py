"""Basket actors with a journal, killed by SIGKILL: before an aggregate, a release, and in a session.

The federation is without noise; the oracle is one on the local runtime, without a journal and without deaths.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.federation import supervisor

pytestmark = pytest.mark.ray


def host_that_dies(switches: Path) -> type[BasketHost]:
    """A basket actor that dies as it answers in a phase, once, where ``switches/<phase>-<slot>`` is there."""

    def dying(phase: str) -> Callable[..., Any]:
        @wraps(getattr(BasketHost, phase))
        def method(self: BasketHost, *args: Any) -> Any:
            answer = getattr(BasketHost, phase)(self, *args)
            switch = switches / f"{phase}-{self._slot}"
            if switch.exists():
                switch.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        return method

    return type("Host", (BasketHost,), {phase: dying(phase) for phase in ("submit", "mask", "unmask")})


def test_nothing_acknowledged_is_lost_and_nothing_counts_twice(
    open_harness: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "BasketHost", host_that_dies(tmp_path))
    exact = {
        "total_epsilon": math.inf,
        "layer2": {"central_dp_epsilon": math.inf},
        "gossip_budget_share": 0.0,
    }
    kept = {"journal_path": str(tmp_path / "journal"), "durability": "update"}
    harness, calm = open_harness("ray", **exact, **kept), open_harness("local", **exact)
    fed = harness.fed

    def undisturbed(seed: int, first: int = 0) -> Any:
        """What nobody's death disturbs, of the clients from the first on."""
        rows = np.random.default_rng(seed).normal(size=(12, 8)).astype(np.float32)
        assert all(calm.fed.submit_updates([c for c, _ in calm.clients[first:]], rows[first:]))
        model = calm.fed.force_aggregate()
        calm.fed.advance_round()
        return model

    # After the commit, before the answer: the call is made again, and answered as it was.
    (tmp_path / "submit-1").touch()
    assert all(harness.submit(1))
    # Between acknowledgement and aggregation.
    harness.kill("basket:0", "basket:2")
    assert not any(harness.submit(1)), "all are replays"
    assert fed.get_stats()["n_updates_buffered"] == 12
    fed._driver.run_layer1(None, True)
    # Between aggregation and release.
    harness.kill("basket:0", "basket:3")
    assert fed.get_stats()["n_layer1_aggregations"] == 4
    np.testing.assert_allclose(fed.force_aggregate(), undisturbed(1), atol=1e-5)
    assert all("nothing was lost" in fault for fault in fed.faults)
    assert len(fed.faults) == 5
    # In a session: as its shares leave, with its input in the sum; and as its masked input leaves, which
    # others count without it and which the next session takes.
    for seed, phase, first in ((2, "unmask", 0), (3, "mask", 3)):
        fed.advance_round()
        assert all(harness.submit(seed))
        (tmp_path / f"{phase}-0").touch()
        released = [model for _ in range(3) if (model := fed.force_aggregate()) is not None]
        assert not (tmp_path / f"{phase}-0").exists()
        assert len(released) == 1
        np.testing.assert_allclose(released[0], undisturbed(seed, first), atol=1e-5)
        assert fed.get_stats()["n_updates_buffered"] == 0
    assert len(fed.faults) == 7
