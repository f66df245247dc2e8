"""A round on 1 to 4 test nodes against what `forecast.scale` predicts: seconds by role, wall time, memory.

``python -m benchmarks nodes [--nodes 1 2 4] [--case NAME ...] [--rounds N] [--format json]``. The nodes are
raylets of this machine and share its cores, so that more nodes bring more actors and no more cores. Each
driver is a process of its own. Processor seconds of the roles hardly depend on what else the machine does;
wall seconds do (``load``: its load average at that time). Each figure is the least of the rounds, but for
memory, which is the greatest. ``ratio`` is measured over predicted; the plan promises 0.7 to 1.3. With
``--measure`` the prediction is by this machine's own speed, as ``scarcity-ray plan --scale --measure`` has
it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.forecast import MEASURED, Rates, Scale, probe, scale_of, scaled

CASES = {
    "few": (400, 20, 64),
    "clients": (10_000, 100, 64),
    "large": (160, 20, 100_000),
    "middle": (800, 20, 10_000),
    "long": (120, 20, 1_000_000),
}
"""Clients, clients of a basket, coordinates."""
CPUS_OF_A_NODE = 2
MEMORY = ("driver", "directory", "aggregator", "actor")


def settings(ledger: Path, size: int, d: int) -> HierarchicalFederationConfig:
    plain = {
        "vector_dim": d,
        "auto_aggregate": False,
        "total_epsilon": 1e5,
        "gossip_budget_share": 0.0,
        "ledger_path": str(ledger),
        "basket": {"max_clients": size},
        "layer1": {"aggregation_method": "trimmed_mean", "byzantine_fraction": 0.1},
    }
    return load(HierarchicalFederationConfig, plain)


def usage(federation: HierarchicalFederation) -> dict[str, tuple[float, int]]:
    """Processor seconds, and bytes (proportional set size), of each role, and of this driver."""
    import ray

    from scarcity_ray.runtime.ray_runtime import find_actor

    def look(role: object) -> tuple[float, int]:
        said = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return time.process_time(), next(1024 * int(line.split()[1]) for line in said if line[:4] == "Pss:")

    place: Any = federation._runtime
    asked = {name: find_actor(place._namespace, name).__ray_call__.remote(look) for name in place.names()}
    return {"driver": look(None), **{name: ray.get(answer) for name, answer in asked.items()}}


def measured(case: str, address: str, rounds: int) -> dict[str, float]:
    """Figures of a round, by name."""
    clients, size, d = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        config = settings(Path(folder) / "ledger.sqlite", size, d)
        with HierarchicalFederation(config, address=address) as federation:
            ids = [f"client_{i}" for i in range(clients)]
            federation.register_clients([(client, f"domain_{i % 4}") for i, client in enumerate(ids)])
            rows = (0.01 * np.random.default_rng(0).standard_normal((clients, d))).astype(np.float32)
            made, peak = list[dict[str, float]](), dict[str, float]()
            for round_id in range(rounds + 1):
                before, began = usage(federation), time.perf_counter()
                if not all(federation.submit_updates(ids, rows, round_id)):
                    raise RuntimeError("an update was refused")
                if federation.force_aggregate() is None:
                    raise RuntimeError("nothing was released")
                federation.advance_round()
                wall, after = time.perf_counter() - began, usage(federation)
                spent = {"driver": 0.0, "singles": 0.0, "baskets": 0.0, "wall": wall}
                for name, (seconds, num_bytes) in after.items():
                    kind = name.partition(":")[0]
                    part = {"driver": "driver", "basket": "baskets"}.get(kind, "singles")
                    spent[part] += seconds - before[name][0]
                    role = {"basket": "actor", "global": "aggregator"}.get(kind, kind) + "_bytes"
                    peak[role] = max(peak.get(role, 0.0), float(num_bytes))
                if round_id:  # the first warms up
                    made.append(spent)
    return {
        **{name: min(each[name] for each in made) for name in made[0]},
        **peak,
    }


def predicted(case: str, nodes: int, rates: Rates) -> Scale:
    clients, size, d = CASES[case]
    cores = len(os.sched_getaffinity(0)) / nodes
    config = settings(Path("ledger.sqlite"), size, d)
    return scale_of(config, clients, nodes, cores_per_node=cores, actors=nodes * CPUS_OF_A_NODE, rates=rates)


def rows(nodes: list[int], cases: list[str], rounds: int, rates: Rates) -> Iterator[dict[str, Any]]:
    import ray
    from ray.cluster_utils import Cluster

    for count in nodes:
        small = {"num_cpus": CPUS_OF_A_NODE, "object_store_memory": 400_000_000}
        cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
        try:
            for _ in range(count - 1):
                cluster.add_node(**small)
            cluster.wait_for_nodes()
            for case in cases:
                with ProcessPoolExecutor(1, get_context("spawn")) as driver:
                    found = driver.submit(measured, case, cluster.address, rounds).result()
                due = predicted(case, count, rates)
                expected = {
                    "driver": due.driver_seconds,
                    "singles": due.singles_seconds,
                    "baskets": due.baskets_seconds,
                    "wall": due.seconds,
                }
                for name, seconds in expected.items():
                    yield row(case, count, name, "s", found[name], seconds)
                for name in MEMORY:
                    yield row(
                        case, count, name, "bytes", found[f"{name}_bytes"], getattr(due, f"{name}_bytes")
                    )
        finally:
            ray.shutdown()
            cluster.shutdown()


def row(case: str, nodes: int, name: str, unit: str, found: float, due: float) -> dict[str, Any]:
    clients, _, d = CASES[case]
    return {
        "name": f"{case}, {name}",
        "nodes": nodes,
        "n": clients,
        "d": d,
        "unit": unit,
        "measured": found,
        "versus": due,
        "ratio": found / due,
        "load": os.getloadavg()[0],
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--case", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    arguments = parser.parse_args()
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    rates = scaled(probe(time.process_time)) if arguments.measure else MEASURED
    for made in rows(arguments.nodes, arguments.case, arguments.rounds, rates):
        if arguments.format == "json":
            print(json.dumps(made), flush=True)
            continue
        unit, factor = ("s", 1.0) if made["unit"] == "s" else ("MiB", 2.0**-20)
        print(
            f"{made['name']:<20} {made['nodes']} nodes {made['n']:>6} x {made['d']:<6}"
            f" {factor * made['measured']:>8.3f} of {factor * made['versus']:>8.3f} {unit:<3}"
            f" {made['ratio']:>5.2f}  load {made['load']:.1f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
