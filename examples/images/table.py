"""The README's table: ``python table.py [ROW ...] [--rounds N]``, without Ray; a line of JSON a run.

A row is RULE:ATTACK:EPSILON[:TRAIN[:START]], such as ``ours:backdoor:10``, or ``centralised`` or ``local``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from workload import Digits

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.layers import server_optimizer
from scarcity_ray_client import Update, train_clients

Rows = NDArray[np.float32]
ATTACKERS = 30
"""Of 200 clients, drawn at random."""
PER_TASK = 50
RELEASE_EPSILON = 1.6
"""Of one release; an epsilon of 10 pays for 20."""
GRID = [
    "centralised",
    "local",
    *(
        f"{rule}:{attack}:inf"
        for attack in ("none", "scaled", "label_flip", "backdoor")
        for rule in ("fedavg", "ours")
    ),
    *(
        f"ours:{attack}:10:{train}:public"
        for train in ("head", "all")
        for attack in ("none", "scaled", "backdoor")
    ),
]


class Attackers:
    """Clients that send ten times the opposite of their update, or what `Digits.poison` gives."""

    def __init__(self, client_ids: Sequence[str], attack: str) -> None:
        drawn = np.random.default_rng(0).choice(len(client_ids), ATTACKERS, replace=False)
        self.byzantine = frozenset(client_ids[place] for place in drawn) if attack != "none" else frozenset()
        self.poisons = attack in ("label_flip", "backdoor")
        self.scale = -10.0 if attack == "scaled" else 1.0

    def sent(
        self,
        round_id: int,
        client_ids: Sequence[str],
        basket_ids: Sequence[str],
        rows: Rows,
        clip_norm: float,
    ) -> Rows:
        """What the baskets get."""
        scales = [self.scale if client in self.byzantine else 1.0 for client in client_ids]
        return np.float32(scales)[:, None] * rows


def fedavg(workload: Digits, attackers: Attackers, rounds: int) -> Mapping[str, float]:
    """Plain FedAvg: the mean of what all send."""
    codec, clients = workload.codec(), workload.clients()
    vector = codec.encode(workload.initial_model())
    for round_id in range(rounds):
        outcomes = train_clients(workload, codec, vector, clients, round_id, attackers.byzantine)
        updates = [update for update in outcomes if isinstance(update, Update)]
        rows = np.stack([update.delta for update in updates])
        sent = attackers.sent(round_id, [update.client_id for update in updates], (), rows, 0.0)
        vector = vector + sent.mean(axis=0)
        if not np.isfinite(vector).all():
            break
    return workload.evaluate(codec.decode(np.nan_to_num(vector, posinf=0.0, neginf=0.0)))


def ours(workload: Digits, attackers: Attackers, rounds: int, epsilon: float) -> Mapping[str, float]:
    """Trimmed means of eight baskets, added under noise that spends `epsilon` in all rounds together."""
    noisy = np.isfinite(epsilon)
    with tempfile.TemporaryDirectory() as folder:
        plain = {
            "vector_dim": workload.codec().dimension,
            "ledger_path": str(Path(folder) / "ledger.sqlite"),
            "auto_aggregate": False,
            "gossip_budget_share": 0.0,
            "total_epsilon": epsilon,
            "basket": {"min_clients": 25, "max_clients": 25},
            "layer1": {"aggregation_method": "trimmed_mean", "byzantine_fraction": 0.24},
            "layer2": {"central_dp_epsilon": RELEASE_EPSILON if noisy else float("inf")},
        }
        with HierarchicalFederation(load(HierarchicalFederationConfig, plain), runtime="local") as federation:
            result = federation.fit(
                workload,
                rounds=rounds,
                clients_per_task=PER_TASK,
                adversary=attackers if attackers.byzantine else None,
                averaging_decay=3.0 if noisy else None,
                optimizer=server_optimizer("sgd", learning_rate=1.0),
            )
            return dict(workload.evaluate(result.model)) | {
                "epsilon": result.epsilon_spent,
                "rounds": sum(bool(record.versions) for record in result.history),
            }


def local(workload: Digits, rounds: int) -> Mapping[str, float]:
    """Each client alone, for as many rounds; the mean over twenty of them."""
    codec, clients = workload.codec(), workload.clients()[:20]
    vectors = np.tile(codec.encode(workload.initial_model()), (len(clients), 1))
    for round_id in range(rounds):
        outcomes = train_clients(workload, codec, vectors, clients, round_id)
        vectors = vectors + np.stack([update.delta for update in outcomes if isinstance(update, Update)])
    measured = [workload.evaluate(codec.decode(vector)) for vector in vectors]
    return {name: float(np.mean([metrics[name] for metrics in measured])) for name in measured[0]}


def measured(row: str, rounds: int) -> Mapping[str, float]:
    """The metrics of one row."""
    rule, attack, epsilon, train, start = (
        *row.split(":"),
        *("none", "inf", "all", "random")[row.count(":") :],
    )
    poison = "backdoor" if attack == "backdoor" else "label_flip"
    workload = Digits(train=train, start=start, poison=poison)
    if rule == "centralised":
        return workload.evaluate(workload.centralised())
    if rule == "local":
        return local(workload, rounds)
    attackers = Attackers([client.client_id for client in workload.clients()], attack)
    if rule == "fedavg":
        return fedavg(workload, attackers, rounds)
    return ours(workload, attackers, rounds, float(epsilon))


def main() -> None:
    """Print the rows that are asked for; all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=GRID)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for row in arguments.rows:
        begun = time.process_time()
        metrics = {name: round(number, 3) for name, number in measured(row, arguments.rounds).items()}
        print(
            json.dumps({"row": row, **metrics, "cpu_seconds": round(time.process_time() - begun)}), flush=True
        )


if __name__ == "__main__":
    main()
