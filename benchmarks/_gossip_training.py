"""Accuracy by gossip alone over local epsilon (``configs/decentralised.yaml``), for `benchmarks.gossip`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.config import LabConfig, load_job
from scarcity_ray.workloads.gossip_training import simulate_gossip
from scarcity_ray.workloads.scene import Scene

CONFIG = Path(__file__).parents[1] / "configs" / "decentralised.yaml"
EPSILONS = (0.5, 8.0, 64.0, 512.0, 2048.0, 8192.0, 32768.0, math.inf)


def decentralised(quick: bool) -> Iterator[dict[str, Any]]:
    """A row a basket: its honest members' mean accuracy on their domain's digits, over without gossip."""
    try:
        job = load_job(CONFIG, ["training.rounds=10"] if quick else [])
    except UsageError as missing:
        yield {"name": "decentralised", "n": None, "d": None, "seconds": 0.0} | {
            "versus": f"skipped: {missing}",
            "ratio": None,
        }
        return
    scene, federation = Scene.of(job, "accuracy"), job.config.federation
    attack = (job.config.lab or LabConfig()).attack
    alone = simulate_gossip(scene, attack, federation, gossip=False)[1]
    for epsilon in EPSILONS[-2:] if quick else EPSILONS:
        local = replace(federation.gossip, local_dp_epsilon=epsilon)
        start = time.process_time()
        standings = simulate_gossip(scene, attack, replace(federation, gossip=local))[1]
        seconds = time.process_time() - start
        for basket, standing in standings.items():
            domain = scene.clients[scene.baskets.tolist().index(basket)].domain_id
            reached, without = standing.members_at_home or 0.0, alone[basket].members_at_home or 0.0
            yield {
                "name": f"decentralised, epsilon {epsilon:g}, {domain}: "
                f"{100 * reached:.1f} % after {100 * without:.1f}",
                "n": standing.clients,
                "d": federation.vector_dim,
                "seconds": seconds,
                "versus": "accuracy without gossip",
                "ratio": reached / without,
            }
