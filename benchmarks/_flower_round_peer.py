"""Flower's half of ``python -m benchmarks round``, run by the peer's Python: one line of JSON at the end.

``PYTHON benchmarks/_flower_round_peer.py ROUNDS CPUS CLIENTS DIMENSION``. A client's reply is a float32
vector that it has ready; nothing is trained. It needs neither this package nor its Ray.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from itertools import pairwise

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from benchmarks._memory import cpu_seconds_below

ROUNDS, CPUS, CLIENTS, DIMENSION = map(int, sys.argv[1:5])
ROW = np.random.default_rng(0).standard_normal(DIMENSION).astype(np.float32)
client_app, server_app = ClientApp(), ServerApp()
ends: list[float] = []
cpu_seconds: list[float] = []


@client_app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    content = {"arrays": ArrayRecord([ROW]), "metrics": MetricRecord({"num-examples": 1})}
    return Message(RecordDict(content), reply_to=message)


@server_app.main()  # type: ignore[untyped-decorator]
def serve(grid: Grid, context: Context) -> None:
    def note(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        ends.append(time.monotonic())
        cpu_seconds.append(cpu_seconds_below(os.getpid()))
        return MetricRecord({"round": server_round})

    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    strategy.start(grid=grid, initial_arrays=ArrayRecord([ROW]), num_rounds=ROUNDS, evaluate_fn=note)


run_simulation(
    server_app,
    client_app,
    num_supernodes=CLIENTS,
    backend_config={
        "init_args": {"num_cpus": CPUS},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    },
)
print(
    json.dumps(
        {
            "version": f"flwr {version('flwr')}, Ray {version('ray')}",
            "rounds": [
                {"round": {"seconds": seconds, "cpu_seconds": cpu}}
                for seconds, cpu in zip(
                    [after - before for before, after in pairwise(ends)],
                    [after - before for before, after in pairwise(cpu_seconds)],
                    strict=True,
                )
            ],
        }
    )
)
