"""Server optimisers on the quickstart's releases, simulated, with its attack, without and with its noise.

``python -m benchmarks optimizers [--format json] [--seeds 3]``. Accuracy on unseen digits after all rounds,
the mean over the seeds: of the last model, and of the polynomial average of all. No gossip.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from scarcity_ray.config import stream
from scarcity_ray.layers.server_optimizers import (
    CosineDecay,
    FedAdagrad,
    FedAdam,
    FedYogi,
    ServerOptimizer,
    ServerSGD,
    polynomial_average,
)
from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.attacks import craft
from scarcity_ray.workloads.config import RunConfig, load_run
from scarcity_ray.workloads.population import make_scene
from scarcity_ray.workloads.simulate import basket_rule, federated_delta
from scarcity_ray.workloads.softmax import accuracy, train_clients

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
OPTIMIZERS: dict[str, ServerOptimizer] = {
    **{f"sgd {rate:g}": ServerSGD(learning_rate=rate) for rate in (1.0, 2.0, 4.0, 8.0)},
    "sgd 2, cosine": ServerSGD(learning_rate=2.0, schedule=CosineDecay(rounds=60)),
    "sgd 0.2, momentum 0.9": ServerSGD(learning_rate=0.2, momentum=0.9),
    **{f"fedadam {rate:g}": FedAdam(learning_rate=rate) for rate in (0.01, 0.03, 0.1, 0.3)},
    **{f"fedyogi {rate:g}": FedYogi(learning_rate=rate) for rate in (0.01, 0.1)},
    **{f"fedadagrad {rate:g}": FedAdagrad(learning_rate=rate) for rate in (0.1, 0.3, 1.0)},
}


def accuracies(config: RunConfig, optimizer: ServerOptimizer, noisy: bool) -> Iterator[tuple[float, float]]:
    """Of the model and of the models' average, after each round."""
    scene, plan, attack = make_scene(config), make_plan(config.federation), config.workload.attack
    model = average = np.zeros(config.workload.dimension, np.float32)
    state, tested = optimizer.init(model.size), (scene.dataset.test_features, scene.dataset.test_labels)
    for number in range(config.workload.rounds):
        deltas = train_clients((0, scene.population.num_clients), scene.training(model, attack))
        rng = stream(scene.seed, "simulate", attack.name, number)
        sent = craft(attack, deltas, scene.population.byzantine, scene.baskets, rng, basket_rule(plan))
        made = federated_delta(sent, scene.baskets, plan)
        delta = made.delta + noisy * made.sigma * rng.standard_normal(made.delta.size)
        state, model = optimizer.step(state, model, delta, number)
        average = polynomial_average(average, model, number + 1, config.workload.averaging_decay)
        yield accuracy(model, *tested), accuracy(average, *tested)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    job = load_run(QUICKSTART)
    configs = [replace(job, federation=replace(job.federation, seed=seed)) for seed in range(arguments.seeds)]
    for name, optimizer in OPTIMIZERS.items():
        row: dict[str, str | int | float] = {"name": name, "n": arguments.seeds, "d": job.workload.dimension}
        for noisy in (False, True):
            finals = [list(accuracies(config, optimizer, noisy))[-1] for config in configs]
            last, averaged = np.mean(finals, axis=0)
            kind = "noisy" if noisy else "clear"
            row |= {kind: round(float(last), 4), f"{kind}_averaged": round(float(averaged), 4)}
        if arguments.format == "json":
            print(json.dumps(row), flush=True)
        else:
            print(f"{name:22}", *(f"{key} {row[key]:.4f}" for key in list(row)[3:]), sep="  ", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
