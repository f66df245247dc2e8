"""More baskets than one node can hold are spread over a cluster's nodes, and a round makes its release."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

SCRIPT = """
import json, sys
from collections import Counter
import numpy as np
import ray
from ray.cluster_utils import Cluster
from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load

node = {"num_cpus": 1, "resources": {"basket_place": 2}, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
for _ in range(2):
    cluster.add_node(**node)
cluster.wait_for_nodes()
try:
    config = load(HierarchicalFederationConfig, {
        "vector_dim": 16, "auto_aggregate": False, "ledger_path": sys.argv[1],
        "basket": {"min_clients": 3, "max_clients": 3}, "layer1": {"aggregation_method": "mean"},
        "runtime": {"baskets_per_actor": 1, "cpus_per_actor": 0.1,
                    "resources_per_actor": {"basket_place": 1}},
    })
    with HierarchicalFederation(config, address=cluster.address) as fed:
        clients = [(f"c{i:02d}", f"d{i % 3}") for i in range(18)]
        fed.register_clients(clients)
        receipts = fed.submit_updates([c for c, _ in clients], np.ones((18, 16)) / 10)
        model = fed.maybe_aggregate()
        from scarcity_ray.runtime.ray_runtime import find_actor
        nodes = Counter()
        for name in fed._runtime.names():
            actor = find_actor(fed._runtime._namespace, name)
            where = ray.get(actor.__ray_call__.remote(lambda self: ray.get_runtime_context().get_node_id()))
            nodes[(name.split(":")[0] == "basket", where)] += 1
        print(json.dumps({
            "baskets": fed.get_stats()["n_baskets"],
            "accepted": sum(r.accepted for r in receipts),
            "spread": sorted(n for (basket, _), n in nodes.items() if basket),
            "others_with_the_driver": [n for (basket, w), n in nodes.items() if not basket]
                == [3] and (False, fed._runtime.home) in nodes,
            "release": model is not None and bool(np.isfinite(model).all()),
            "n_baskets_released": fed.get_global_meta_model().n_baskets,
            "round": fed.advance_round(),
        }))
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def test_baskets_are_spread_over_nodes_and_a_round_completes(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "ledger.sqlite")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "baskets": 6,
        "accepted": 18,
        "spread": [2, 2, 2],
        "others_with_the_driver": True,
        "release": True,
        "n_baskets_released": 6,
        "round": 1,
    }
