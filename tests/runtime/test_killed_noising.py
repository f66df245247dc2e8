"""The worker that noises a client's row is killed after it has drawn: the row is lost, its charge stays."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.privacy import Ledger, SeededNoise
from scarcity_ray.privacy.ledger.replay import export
from scarcity_ray_client import Client, Trained, Workload

DIMENSION = 8
SETTINGS: dict[str, Any] = {
    "vector_dim": DIMENSION,
    "total_epsilon": 8.0,
    "total_delta": 1e-6,
    "gossip_budget_share": 0.0,
    "basket": {"min_clients": 3, "max_clients": 3},
    "layer1": {"aggregation_method": "mean", "min_updates": 2, "clip_norm": 4.0},
    "layer2": {"use_secure_aggregation": False, "noise": "discrete_gaussian", "clip_norm": 4.0},
    "privacy": {"unit": "person", "noise": "site", "person_clip_norm": 1.0, "min_persons": 100},
    "runtime": {"baskets_per_actor": 2, "cpus_per_actor": 0.01},
}


class Killed:
    """Seeded noise, of which each draw is written down; after one of them its process is killed."""

    def __init__(self, log: Path, fatal: str) -> None:
        self.log, self.fatal = log, fatal

    def uniform_words(self, stream: str) -> Any:
        words = SeededNoise(1).uniform_words(stream)

        def drawn(count: int) -> Any:
            found = words(count)
            with self.log.open("a") as log:
                log.write(f"{stream}\n")
                log.flush()
                os.fsync(log.fileno())
            if stream == self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

        return drawn

    def standard_normal(self, shape: Any, stream: str) -> Any:
        raise AssertionError(f"nothing but rows is noised, and {stream} is none")


class Zeros(Workload[dict[str, Any]]):
    def clients(self) -> list[Client]:
        return [Client(f"c{i}", f"domain{i // 3}", num_persons=100, num_cpus=0.5) for i in range(6)]

    def initial_model(self) -> dict[str, Any]:
        return {"w": np.zeros(DIMENSION, np.float32)}

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        return Trained(delta={"w": np.zeros(DIMENSION)}, num_persons=100)

    def evaluate(self, model: dict[str, Any]) -> dict[str, float]:
        return {"norm": float(np.linalg.norm(model["w"]))}


@pytest.mark.ray
def test_a_worker_killed_after_the_draw_loses_the_row_and_never_the_charge(
    ray_cluster: None, tmp_path: Path
) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ledger, log = tmp_path / "ledger.sqlite", tmp_path / "draws"
    privacy = {**SETTINGS["privacy"], "row_epsilon": 1.0}
    config = load(HierarchicalFederationConfig, {**SETTINGS, "privacy": privacy, "ledger_path": str(ledger)})
    noise = Killed(log, "row/c1/0")
    with HierarchicalFederation(config, runtime="ray", noise=noise) as fed:  # type: ignore[arg-type]
        first, second = fed.fit(Zeros(), rounds=2).history
        spent = fed.get_stats()["privacy_consumed_epsilon"]
        left = {name: fed.get_privacy_budget(name) for name in ("c0", "c1")}
    assert (first.refusals, second.refusals) == ({"lost": 1}, {})
    assert (first.num_accepted, second.num_accepted) == (5, 6)
    assert len(first.versions) == len(second.versions) == 1
    calls = log.read_text().splitlines()
    assert calls.count("row/c1/0") == 1, "its words were asked for once more: the task was run again"
    rows = [line for line in export(Ledger.read(ledger)) if line["kind"] == "row"]
    charged = Counter(client for line in rows for client in line["clients"])
    assert charged == {f"c{i}": 2 for i in range(6)}
    assert left["c1"] == left["c0"]
    assert spent == pytest.approx(fed.plan.accounting.epsilon_of(fed.plan.mu_row * np.sqrt(2), 1e-6))
