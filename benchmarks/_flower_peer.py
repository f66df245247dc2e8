"""Flower's half of ``python -m benchmarks flower``, run by the peer's Python: one line of JSON at the end.

``PYTHON benchmarks/_flower_peer.py ROUNDS CPUS``, with the folders of the workload and of
`scarcity_ray_client` on ``PYTHONPATH``. It needs neither this package nor its Ray.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from workload import Digits

from benchmarks._memory import cpu_seconds_below

ROUNDS, CPUS = int(sys.argv[1]), int(sys.argv[2])
WORKLOAD = Digits()
CLIENTS = WORKLOAD.clients()
client_app, server_app = ClientApp(), ServerApp()
ends: list[float] = []
cpu_seconds: list[float] = []
num_bytes: list[int] = []
accuracy: list[float] = []


@client_app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    client = CLIENTS[int(context.node_config["partition-id"])]
    model = WORKLOAD.initial_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    trained = WORKLOAD.train(model, client, int(message.content["config"]["server-round"]))
    metrics = MetricRecord({**trained.metrics, "num-examples": client.num_examples})
    arrays = ArrayRecord(trained.model.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


class Counted(FedAvg):  # type: ignore[misc]
    """FedAvg that adds up what its replies hold: the arrays alone, in bytes."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        held = list(replies)
        num_bytes.append(sum(len(array.data) for reply in held for array in reply.content["arrays"].values()))
        return super().aggregate_train(server_round, held)


@server_app.main()  # type: ignore[untyped-decorator]
def serve(grid: Grid, context: Context) -> None:
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = WORKLOAD.initial_model()
        model.load_state_dict(arrays.to_torch_state_dict())
        metrics = WORKLOAD.evaluate(model)
        ends.append(time.monotonic())
        accuracy.append(metrics["accuracy"])
        if server_round > 0:
            cpu_seconds.append(cpu_seconds_below(os.getpid()))
        return MetricRecord(dict(metrics))

    strategy = Counted(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=len(CLIENTS))
    start = ArrayRecord(WORKLOAD.initial_model().state_dict())
    strategy.start(grid=grid, initial_arrays=start, num_rounds=ROUNDS, evaluate_fn=evaluate)


run_simulation(
    server_app,
    client_app,
    num_supernodes=len(CLIENTS),
    backend_config={
        "init_args": {"num_cpus": CPUS},
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    },
)
print(
    json.dumps(
        {
            "version": f"flwr {version('flwr')}, Ray {version('ray')}, torch {version('torch')}",
            "seconds": [after - before for before, after in pairwise(ends)],
            "driver_bytes": num_bytes,
            "accuracy": accuracy[-1],
            "cpu_seconds": cpu_seconds,
        }
    )
)
