"""Metrics reach Ray's own Prometheus endpoint, and the command tells a named federation's status."""

from __future__ import annotations

import json
import time
import urllib.request
import uuid
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from scarcity_ray import HierarchicalFederation
from scarcity_ray.cli.main import main
from scarcity_ray.monitoring.metrics import ABORTS, METRICS, ROUND
from scarcity_ray.runtime.samples import Sample
from tests.monitoring.test_status import config_of

pytestmark = pytest.mark.ray


def test_metrics_reach_rays_own_endpoint(ray_cluster: None, tmp_path: Any) -> None:
    """Within the ten seconds in which a node's agent hears of them: all of them, counters risen."""
    import ray

    name = f"town-{uuid.uuid4().hex}"
    labels = {metric: {**dict.fromkeys(metric.labels, "x"), "federation": name} for metric in METRICS}
    with HierarchicalFederation(config_of(tmp_path), name=name) as fed:
        fed.register_clients([(f"w{n}", f"r{n % 3}") for n in range(15)])
        for value in (3.0, 5.0, 5.0, 2.0):
            fed.publish_metrics([Sample(metric, value, labels[metric]) for metric in METRICS])
        before = fed.get_stats()
        told = CliRunner().invoke(main, ["status", name, "--format", "json"], catch_exceptions=False)
        assert json.loads(told.stdout)["sites"]["by_state"]["never_seen"] == 15
        assert fed.get_stats() == before
        (node,) = ray.nodes()
        place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        wanted, deadline = {f"ray_{metric.name}" for metric in METRICS}, time.monotonic() + 60
        while True:
            with urllib.request.urlopen(place, timeout=10) as answer:
                families = list(text_string_to_metric_families(answer.read().decode()))
            found = {
                s.name: s.value for f in families for s in f.samples if s.labels.get("federation") == name
            }
            if wanted <= found.keys() or time.monotonic() > deadline:
                break
            time.sleep(0.5)
    assert wanted <= found.keys()
    assert found[f"ray_{ROUND.name}"] == 2.0
    assert found[f"ray_{ABORTS.name}"] == 7.0, "3, then 2 more, then begun anew with 2"
