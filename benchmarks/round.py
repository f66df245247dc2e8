"""A whole round on Ray, phase by phase, and a round of Flower's simulation engine with vectors of that size.

``python -m benchmarks round [--peers PYTHON] [--baskets 20] [--clients 10] [--dimension 100000] [--rounds 6]
[--pairs 2] [--format json]``. PYTHON is that of an environment with Flower's simulation (`benchmarks.flower`
says how to make one); without it ours is measured alone. Each engine runs in a process and on a Ray of its
own, one after the other, ``--pairs`` times, and the first round of each run, in which workers start, does not
count.

    ours, matrix: `submit_updates` of one float32 matrix a round, gossip, Layer 1 (Krum), and Layer 2 with
        secure aggregation and central noise;
    ours, pipelined: the same with `submit_update_async`, one client a call, and then all receipts;
    ours, single: the same with `offer_update`, one client a call that waits for its receipt;
    flower: FedAvg of as many clients, each of which replies with a vector that it has ready. Flower moves the
        model to each client, too, and has neither gossip, nor robust rules, nor masks, nor noise here.

``seconds`` are by the median round. ``CPU s`` is the processor time of the engine's process and all that live
below it. ``GB`` is the peak memory of all of them together (proportional set size).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from benchmarks._memory import cpu_seconds_below
from benchmarks.flower import HERE, Row, measured

PHASES = ("submit", "gossip", "layer1", "layer2")
WAYS = ("matrix", "pipelined", "single")


def ours(way: str, rounds: int, cpus: int, baskets: int, clients: int, dimension: int) -> Row:
    """Rounds on a Ray of its own, in this process: seconds and processor time of each phase."""
    import ray

    from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
    from scarcity_ray.actors.global_aggregator import Layer2Outcome
    from scarcity_ray.config import load

    plain: dict[str, Any] = {
        "vector_dim": dimension,
        "auto_aggregate": False,
        "total_epsilon": 1000.0,
        "basket": {"min_clients": clients, "max_clients": clients},
        "gossip": {"local_dp_epsilon": 0.5},
        "layer2": {"use_secure_aggregation": True},
    }
    ids = [f"client_{i}" for i in range(baskets * clients)]
    rows = (0.1 * np.random.default_rng(0).standard_normal((len(ids), dimension))).astype(np.float32)
    told: list[dict[str, dict[str, float]]] = []

    def submit(federation: HierarchicalFederation) -> None:
        each = zip(ids, rows, strict=True)
        if way == "matrix":
            receipts = federation.submit_updates(ids, rows)
        elif way == "pipelined":
            pending = [federation.submit_update_async(client_id, row) for client_id, row in each]
            receipts = [one.result() for one in pending]
        else:
            receipts = [federation.offer_update(client_id, row) for client_id, row in each]
        if not all(receipts):
            raise RuntimeError(f"refused: {next(r for r in receipts if not r).reason}")

    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        config = load(HierarchicalFederationConfig, plain | {"ledger_path": f"{folder}/ledger.sqlite"})
        with HierarchicalFederation(config) as federation:
            federation.register_clients([(client_id, "domain") for client_id in ids])
            driver = federation._driver
            acts: dict[str, Callable[[], object]] = {
                "submit": lambda: submit(federation),
                "gossip": federation.run_gossip_round,
                "layer1": lambda: driver.run_layer1(None, force=False),
                "layer2": lambda: driver.run_layer2(force=False),
            }
            done: object = None
            for _ in range(rounds):
                phases: dict[str, dict[str, float]] = {}
                for name, act in acts.items():
                    start, cpu = time.monotonic(), cpu_seconds_below(os.getpid())
                    done = act()
                    phases[name] = {
                        "seconds": time.monotonic() - start,
                        "cpu_seconds": cpu_seconds_below(os.getpid()) - cpu,
                    }
                if not isinstance(done, Layer2Outcome) or done.model is None:
                    raise RuntimeError(f"nothing was released: {done}")
                told.append(phases)
                federation.advance_round()
    ray.shutdown()
    return {"version": f"scarcity_ray {version('scarcity-ray')}, Ray {ray.__version__}", "rounds": told}


def runs(arguments: argparse.Namespace) -> Iterator[Row]:
    """Each engine once in each pair, so that what else the machine does falls on all alike."""
    paths = [HERE.parent, HERE.parent / "client"]
    sizes = [str(arguments.baskets * arguments.clients), str(arguments.dimension)]
    for _ in range(arguments.pairs):
        if arguments.peers is not None:
            run = [str(arguments.rounds), str(arguments.cpus), *sizes]
            command = [arguments.peers, str(HERE / "_flower_round_peer.py"), *run]
            yield measured("flower", command, paths)
        for way in WAYS:
            options = [f"--{name}={vars(arguments)[name]}" for name in SIZES]
            command = [sys.executable, "-m", "benchmarks.round", "--run", way, *options]
            yield measured(f"ours, {way}", command, paths)


SIZES = ("rounds", "cpus", "baskets", "clients", "dimension")


def summary(found: Sequence[Row]) -> Iterator[Row]:
    """A row for each engine and phase, over all of its runs."""
    whole = {
        name: statistics.median(
            sum(phase["seconds"] for phase in told.values())
            for row in found
            if row["name"] == name
            for told in row["rounds"][1:]
        )
        for name in dict.fromkeys(row["name"] for row in found)
    }
    flower = whole.get("flower")
    for name, seconds in whole.items():
        mine = [row for row in found if row["name"] == name]
        told = [one for row in mine for one in row["rounds"][1:]]
        yield {
            "name": name,
            "phase": "round",
            "seconds": seconds,
            "cpu_seconds": statistics.median(sum(p["cpu_seconds"] for p in one.values()) for one in told),
            "versus": "flower" if flower else "",
            "ratio": flower / seconds if flower else None,
            "GB": max(row["peak_bytes"] for row in mine) / 2**30,
            "version": mine[0]["version"],
        }
        for phase in PHASES if name != "flower" else ():
            yield {
                "name": name,
                "phase": phase,
                "seconds": statistics.median(one[phase]["seconds"] for one in told),
                "cpu_seconds": statistics.median(one[phase]["cpu_seconds"] for one in told),
            }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", metavar="PYTHON", help="of an environment that has Flower's simulation")
    parser.add_argument("--baskets", type=int, default=20)
    parser.add_argument("--clients", type=int, default=10, help="of each basket")
    parser.add_argument("--dimension", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--run", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.run is not None:
        sizes = [vars(arguments)[name] for name in SIZES]
        print(json.dumps(ours(arguments.run, *sizes)))
        return 0
    if arguments.rounds < 2:
        parser.error("--rounds: 2 at least, as the first does not count")
    for row in summary(list(runs(arguments))):
        if arguments.format == "json":
            print(json.dumps(row), flush=True)
            continue
        ratio = f"{row['ratio']:6.1f} of flower's speed" if row.get("ratio") else ""
        memory = f"{row['GB']:6.2f} GB" if "GB" in row else ""
        print(
            f"{row['name']:<15} {row['phase']:<8} {row['seconds']:8.3f} s {row['cpu_seconds']:8.2f} CPU s "
            f"{memory} {ratio} {row.get('version', '')}".rstrip(),
            flush=True,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
