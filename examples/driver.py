"""A driver as a Ray job: the hospitals train on a cluster, and the model is left in a file.

    ray job submit --working-dir . -- python examples/driver.py

Every machine needs scarcity_ray and what the workload imports. `--runtime local` trains in this process.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.config.yaml_text import read_yaml
from scarcity_ray_client import save_model
from scarcity_ray_client.loading import load_workload

HOSPITALS = Path(__file__).parent / "hospitals"


def main() -> None:
    """Train as hospitals/job.yaml says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", choices=("ray", "local"), default="ray")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--model", default="hospitals.npz")
    chosen = parser.parse_args()
    job = read_yaml(HOSPITALS / "job.yaml")
    workload = load_workload(job["workload"]["class"], job["workload"]["args"], HOSPITALS)
    config = load(HierarchicalFederationConfig, job["federation"], "federation")
    rounds = chosen.rounds or job["training"]["rounds"]
    with HierarchicalFederation(config, runtime=chosen.runtime) as federation:
        result = federation.fit(
            workload,
            rounds=rounds,
            deadline_seconds=600,
            on_round=lambda record: print(
                record.round_id, record.num_accepted, record.evaluation, flush=True
            ),
        )
    save_model(chosen.model, result.model)
    print(f"epsilon spent: {result.epsilon_spent:.3g} {result.explanation}")


if __name__ == "__main__":
    main()
