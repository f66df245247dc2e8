"""Accuracy by gossip alone over local epsilon (``configs/decentralised.yaml``), for `benchmarks.gossip`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.config import load_run
from scarcity_ray.workloads.gossip_training import simulate_gossip
from scarcity_ray.workloads.population import make_scene

CONFIG = Path(__file__).parents[1] / "configs" / "decentralised.yaml"
EPSILONS = (0.5, 8.0, 64.0, 512.0, 2048.0, 8192.0, 32768.0, math.inf)


def decentralised(quick: bool) -> Iterator[dict[str, Any]]:
    """A row a basket: its honest members' mean accuracy on their domain's digits, over without gossip."""
    run = load_run(CONFIG, ["workload.rounds=10"] if quick else [])
    try:
        scene = make_scene(run)
    except UsageError as missing:
        yield {"name": "decentralised", "n": None, "d": None, "seconds": 0.0} | {
            "versus": f"skipped: {missing}",
            "ratio": None,
        }
        return
    federation, attack = run.federation, run.workload.attack
    alone = simulate_gossip(scene, attack, federation, gossip=False).standings
    for epsilon in EPSILONS[-2:] if quick else EPSILONS:
        local = replace(federation.gossip, local_dp_epsilon=epsilon)
        start = time.process_time()
        standings = simulate_gossip(scene, attack, replace(federation, gossip=local)).standings
        seconds = time.process_time() - start
        for basket, standing in standings.items():
            domain = scene.population.domains[int(np.argmax(scene.baskets == int(basket)))]
            without = alone[basket].members_at_home
            yield {
                "name": f"decentralised, epsilon {epsilon:g}, {domain}: "
                f"{100 * standing.members_at_home:.1f} % after {100 * without:.1f}",
                "n": standing.clients,
                "d": federation.vector_dim,
                "seconds": seconds,
                "versus": "accuracy without gossip",
                "ratio": standing.members_at_home / without,
            }
