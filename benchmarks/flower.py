"""The same CNN, data and clients in Flower's simulation engine and in ours on Ray: speed, memory, bytes.

``python -m benchmarks flower [--peer-python PATH] [--rounds N] [--pairs N] [--format json]``, with PyTorch,
scikit-learn and mlxtend. Flower's simulation pins another Ray, so it runs in an environment of its own;
without ``--peer-python`` ours is measured alone. To make one:

    python3 -m venv /tmp/flower
    /tmp/flower/bin/pip install 'flwr[simulation]>=1.41,<2' torch==2.13.0 scikit-learn mlxtend

All train `examples/images/workload.py` on the same CPUs, one run after the other, ``--pairs`` times: 200
clients in each round, one CPU a client or task, evaluation on the driver after each round.

    flower: FedAvg, an actor a CPU, each of which trains one client after another;
    ours, one a task: `fit` as it is by default, four baskets' means, clipped, without noise;
    ours, 50 a task: the same with ``clients_per_task=50`` and the workload's ``train_many``;
    ours, protected: that with trimmed means of eight baskets, secure aggregation and noise.

``rounds/h`` is by the median round, without each run's first, in which workers start and read their data
(``first``). ``CPU s`` is the processor time of all living processes in such a round: other work on the
machine changes it less than the clock. Both Rays' workers run at their driver's priority here, not at Ray's
lower one, and our actors reserve no part of a CPU, as Flower's server reserves none, so that both train as
many clients at a time. ``GB`` is the peak memory of all processes together (proportional set size), ``driver
MB`` what a round brings to the driver: of Flower the arrays alone.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks._memory import cpu_seconds_below
from benchmarks._timing import progress
from scarcity_ray import RoundRecord

HERE = Path(__file__).parent
IMAGES = HERE.parent / "examples" / "images"
PAUSE_SECONDS = 0.5
Row = dict[str, Any]
OURS: dict[str, tuple[int, bool]] = {
    "one a task": (1, False),
    "50 a task": (50, False),
    "protected": (50, True),
}
"""Ways to run ours: clients a task, and whether protected."""


def measured(name: str, command: Sequence[str], paths: Sequence[Path]) -> Row:
    """One engine's run in a process of its own: what it says in its last line, its CPU time and peak memory.

    Raises:
        RuntimeError: If it fails; with the end of what it printed.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
    }
    progress(name)
    with tempfile.TemporaryFile("w+") as told:
        engine = subprocess.Popen(command, env=environment, stdout=told, stderr=subprocess.STDOUT)
        sampler = subprocess.Popen(
            [sys.executable, str(HERE / "_memory.py"), str(engine.pid), str(PAUSE_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            engine.wait()
        finally:
            engine.kill()
            output, _ = sampler.communicate()
        told.seek(0)
        lines = told.read().strip().splitlines()
    if engine.returncode != 0:
        raise RuntimeError(f"{name} failed:\n" + "\n".join(lines[-30:]))
    row: Row = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return row | {"name": name, "peak_bytes": int(output.split()[-2])}


def ours(rounds: int, cpus: int, per_task: int, protected: bool) -> Row:
    """A run of `fit` on a Ray of its own, in this process."""
    import ray
    from workload import Digits

    from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
    from scarcity_ray.config import load

    workload = Digits()
    size = len(workload.clients()) // (8 if protected else 4)
    plain: dict[str, Any] = {
        "vector_dim": workload.codec().dimension,
        "auto_aggregate": False,
        "gossip_budget_share": 0.0,
        "total_epsilon": 10.0 if protected else float("inf"),
        "basket": {"min_clients": size, "max_clients": size},
        "runtime": {"cpus_per_actor": 0},
        "layer1": {"aggregation_method": "trimmed_mean" if protected else "mean"},
        "layer2": {
            "use_secure_aggregation": protected,
            "central_dp_epsilon": 1.0 if protected else float("inf"),
        },
    }
    cpu_seconds: list[float] = []

    def note(_: RoundRecord) -> None:
        cpu_seconds.append(cpu_seconds_below(os.getpid()))

    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        config = load(HierarchicalFederationConfig, plain | {"ledger_path": f"{folder}/ledger.sqlite"})
        with HierarchicalFederation(config) as federation:
            result = federation.fit(workload, rounds=rounds, clients_per_task=per_task, on_round=note)
    ray.shutdown()
    return {
        "version": f"scarcity_ray {version('scarcity-ray')}, Ray {ray.__version__}, torch {version('torch')}",
        "seconds": [record.seconds for record in result.history],
        "phases": [dict(record.phases) for record in result.history],
        "driver_bytes": [record.driver_bytes for record in result.history],
        "accuracy": result.history[-1].evaluation.get("accuracy"),
        "cpu_seconds": cpu_seconds,
    }


def runs(rounds: int, pairs: int, cpus: int, peer_python: str | None) -> Iterator[Row]:
    """Each engine once in each pair, so that what else the machine does falls on all alike."""
    paths = [HERE.parent, HERE.parent / "client", IMAGES]
    for _ in range(pairs):
        if peer_python is not None:
            command = [peer_python, str(HERE / "_flower_peer.py"), str(rounds), str(cpus)]
            yield measured("flower", command, paths)
        for name in OURS:
            command = [
                sys.executable,
                "-m",
                "benchmarks.flower",
                "--run",
                name,
                f"--rounds={rounds}",
                f"--cpus={cpus}",
            ]
            yield measured(f"ours, {name}", command, paths)


def summary(found: Sequence[Row]) -> Iterator[Row]:
    """A row for each engine, over all of its runs."""
    flower = flower_cpu = 0.0
    for name in dict.fromkeys(row["name"] for row in found):
        mine = [row for row in found if row["name"] == name]
        seconds = statistics.median(second for row in mine for second in row["seconds"][1:])
        cpu = statistics.median(
            after - before for row in mine for before, after in pairwise(row["cpu_seconds"])
        )
        if name == "flower":
            flower, flower_cpu = seconds, cpu
        yield {
            "name": name,
            "seconds": seconds,
            "rounds_per_hour": 3600 / seconds,
            "versus": "flower" if flower else "",
            "ratio": flower / seconds if flower else None,
            "first": statistics.median(row["seconds"][0] for row in mine),
            "cpu_seconds": cpu,
            "cpu_ratio": flower_cpu / cpu if flower_cpu else None,
            "GB": max(row["peak_bytes"] for row in mine) / 2**30,
            "driver_MB": statistics.median(row["driver_bytes"][-1] for row in mine) / 1e6,
            "accuracy": mine[-1]["accuracy"],
            "version": mine[0]["version"],
        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", help="of an environment that has Flower's simulation")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--cpus", type=int, default=os.cpu_count())
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--run", choices=OURS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if arguments.run is not None:
        print(json.dumps(ours(arguments.rounds, arguments.cpus, *OURS[arguments.run])))
        return 0
    if arguments.rounds < 2:
        parser.error("--rounds: 2 at least, as the first does not count")
    found = []
    for row in runs(arguments.rounds, arguments.pairs, arguments.cpus, arguments.peer_python):
        progress(f"{row['name']}: {' '.join(f'{second:.2f}' for second in row['seconds'])} s")
        found.append(row)
    for row in summary(found):
        if arguments.format == "json":
            print(json.dumps(row))
            continue
        ratio = f"{row['ratio']:.2f} x flower" if row["ratio"] else ""
        cpu_ratio = f"(1 / {row['cpu_ratio']:.2f})" if row["cpu_ratio"] else ""
        print(
            f"{row['name']:<18} {row['rounds_per_hour']:>7.0f} rounds/h {ratio:<14}"
            f" first {row['first']:>6.1f} s"
            f"  {row['cpu_seconds']:>5.2f} CPU s {cpu_ratio:<10}"
            f" {row['GB']:>5.2f} GB {row['driver_MB']:>7.3f} driver MB"
            f"  accuracy {row['accuracy']:.3f}  {row['version']}"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
