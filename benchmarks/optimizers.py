"""Server optimisers on the quickstart's releases, simulated, with its attack, without and with its noise.

``python -m benchmarks optimizers [--format json] [--seeds 3]``. Accuracy on unseen digits after all rounds,
the mean over the seeds: of the last model, and of the polynomial average of all. No gossip.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.config import Job, LabConfig, load_job
from scarcity_ray.workloads.scene import Scene
from scarcity_ray.workloads.simulate import Defence, simulate

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
SGD = {"name": "sgd", "learning_rate": 2.0}
OPTIMIZERS: dict[str, Mapping[str, Any]] = {
    **{f"sgd {rate:g}": {"name": "sgd", "learning_rate": rate} for rate in (1.0, 2.0, 4.0, 8.0)},
    "sgd 2, cosine": SGD | {"schedule": {"name": "cosine", "rounds": 60}},
    "sgd 0.2, momentum 0.9": SGD | {"learning_rate": 0.2, "momentum": 0.9},
    **{f"fedadam {rate:g}": {"name": "fedadam", "learning_rate": rate} for rate in (0.01, 0.03, 0.1, 0.3)},
    **{f"fedyogi {rate:g}": {"name": "fedyogi", "learning_rate": rate} for rate in (0.01, 0.1)},
    **{f"fedadagrad {rate:g}": {"name": "fedadagrad", "learning_rate": rate} for rate in (0.1, 0.3, 1.0)},
}


def reached(job: Job, optimizer: Mapping[str, Any], averaged: bool, noisy: bool) -> float:
    """Accuracy at the end, of the last model or of the models' average."""
    training = job.config.training
    decay = training.averaging_decay if averaged else None
    scene = replace(
        Scene.of(job, "accuracy"), training=replace(training, optimizer=optimizer, averaging_decay=decay)
    )
    defence = Defence(make_plan(job.config.federation), noisy)
    return simulate(scene, (job.config.lab or LabConfig()).attack, defence).metrics["accuracy"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    jobs = [
        load_job(QUICKSTART, [f"federation.seed={seed}", f"workload.args.seed={seed}"])
        for seed in range(arguments.seeds)
    ]
    for name, optimizer in OPTIMIZERS.items():
        row: dict[str, str | int | float] = {"name": name, "n": arguments.seeds, "d": jobs[0].codec.dimension}
        for noisy in (False, True):
            for averaged in (False, True):
                mean = np.mean([reached(job, optimizer, averaged, noisy) for job in jobs])
                row[("noisy" if noisy else "clear") + "_averaged" * averaged] = round(float(mean), 4)
        if arguments.format == "json":
            print(json.dumps(row), flush=True)
        else:
            print(f"{name:22}", *(f"{key} {row[key]:.4f}" for key in list(row)[3:]), sep="  ", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
