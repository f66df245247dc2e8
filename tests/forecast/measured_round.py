"""A round in one process: the bytes that it added at most, and those that its rows were predicted to take."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from scarcity_ray import HierarchicalFederation
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.forecast.memory import memory_of_roles
from scarcity_ray_client import Client, Trained, Workload


class Constant(Workload):
    """Deltas of the same numbers everywhere, in a vector of d."""

    def __init__(self, dimension: int, clients: int) -> None:
        self.dimension, self.count = dimension, clients

    def clients(self) -> list[Client]:
        return [Client(f"c{i}", "d") for i in range(self.count)]

    def initial_model(self) -> dict[str, np.ndarray]:
        return {"w": np.zeros(self.dimension, np.float32)}

    def train(self, model: dict[str, np.ndarray], client: Client, round_id: int) -> Trained:
        return Trained(delta={"w": np.full(self.dimension, 1e-3, np.float32)})

    def evaluate(self, model: dict[str, np.ndarray]) -> dict[str, float]:
        return {"first": float(model["w"][0])}


def config_of(dimension: int, clients: int) -> HierarchicalFederationConfig:
    basket = {"max_clients": -(-clients // 3)}
    more = {"auto_aggregate": False, "gossip_budget_share": 0.0, "basket": basket}
    return load(HierarchicalFederationConfig, {"vector_dim": dimension, "total_epsilon": 1e6, **more})


def held(dimension: int, clients: int) -> float:
    config = config_of(dimension, clients)
    return memory_of_roles(config, clients, 1, is_one_process=True)["this process"][1]


def most_resident_bytes() -> int:
    """Of this program alone: `getrusage` begins with what the process that started it had."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def main(dimension: int, clients: int) -> None:
    with HierarchicalFederation(config_of(dimension, clients), runtime="local") as fed:
        before = most_resident_bytes()
        (record,) = fed.fit(Constant(dimension, clients), rounds=1).history
        assert record.versions, record.waiting_for
    print(most_resident_bytes() - before, held(dimension, clients) - held(1, clients))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
