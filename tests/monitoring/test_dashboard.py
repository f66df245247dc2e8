"""The Grafana dashboard, and a real Prometheus that scrapes the console and answers its queries."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from scarcity_ray import HierarchicalFederation
from scarcity_ray.cli.main import main
from scarcity_ray.gateway.operators import OperatorRole, Operators
from scarcity_ray.monitoring.dashboard import ROWS
from scarcity_ray.monitoring.metrics import METRICS
from scarcity_ray.monitoring.status import Enrolment
from tests.gateway.watched import WatchedFederation, served
from tests.monitoring.test_status import DAY, NOW, config_of

QUERIES = [query.expr for _, panels in ROWS for panel in panels for query in panel.queries]
NAMED = re.compile(r'__name__=~"\(ray_\)\?(\w+)"')


def test_every_query_names_a_metric_that_exists() -> None:
    names = {metric.name for metric in METRICS}
    for query in QUERIES:
        assert set(NAMED.findall(query)) <= names
        assert len(NAMED.findall(query)) == 1
        by = re.search(r"max by \(([^)]*)\)", query)
        assert by is not None
        (metric,) = (metric for metric in METRICS if metric.name in NAMED.findall(query))
        assert by[1].split(", ") == list(metric.labels)


def test_every_metric_is_on_the_dashboard() -> None:
    assert {name for query in QUERIES for name in NAMED.findall(query)} == {metric.name for metric in METRICS}


def test_the_dashboard_has_the_form_of_rays_own() -> None:
    """As Ray's factory makes its own: the keys of a panel, of a target, and what Grafana is told beside."""
    from ray.dashboard.modules.metrics.grafana_dashboard_factory import generate_train_grafana_dashboard

    told = CliRunner().invoke(main, ["dashboard"], catch_exceptions=False)
    ours, rays = json.loads(told.stdout), json.loads(generate_train_grafana_dashboard()[0])
    panels, like = ours["panels"], {panel["type"]: panel for panel in rays["panels"]}
    assert {panel["type"] for panel in panels} == {"row", "graph"}
    drawn = [panel for panel in like.values() if panel["type"] == "graph"] or [
        panel for panel in like["row"]["panels"] if panel["type"] == "graph"
    ]
    graph = next(panel for panel in panels if panel["type"] == "graph")
    assert graph.keys() == drawn[0].keys()
    assert graph["targets"][0].keys() == drawn[0]["targets"][0].keys()
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {"title", "uid", "schemaVersion", "templating", "panels", "time"} <= rays.keys() & ours.keys()
    squares = [
        (panel["gridPos"]["x"] + x, panel["gridPos"]["y"] + y)
        for panel in panels
        for x in range(panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["h"])
    ]
    assert len(squares) == len(set(squares)), "panels overlap"


@pytest.mark.long
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus; Debian's package has one")
def test_a_real_prometheus_scrapes_a_gateway_and_answers_the_dashboard(tmp_path: Path) -> None:
    operators, clients = Operators(tmp_path / "operators.json"), [(f"w{n}", f"r{n % 3}") for n in range(15)]
    (tmp_path / "token").write_text(operators.add("prometheus", OperatorRole.READ))
    counts = {"open_requests": 1, "bytes_received": 9, "bytes_sent": 9, "answers": {"201": 3}}
    seen = {"enrolments": {"w0": Enrolment(NOW + DAY)}, "gateway": counts, "name": 'a "town"'}
    with HierarchicalFederation(config_of(tmp_path), runtime="local", clock=lambda: NOW) as fed:
        fed.register_clients(clients)
        source = WatchedFederation(fed, NOW, **seen)
        source.make_rounds(clients, 3)
        with served(source, operators) as address, socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            scrape = {
                "job_name": "gateways",
                "scrape_interval": "300ms",
                "authorization": {"credentials_file": str(tmp_path / "token")},
                "static_configs": [{"targets": [urllib.parse.urlsplit(address).netloc]}],
            }
            (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
            taken.close()
            options = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
            server = subprocess.Popen(
                ["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"],
                stderr=(tmp_path / "log").open("w"),
            )
            try:
                found = _answers(port, "scarcity_ray_round", least=2)
                assert found[0]["metric"]["federation"] == 'a "town"'
                silent = []
                for query in QUERIES:
                    if not _answers(port, query.replace("$federation", ".*"), seconds=0.0):
                        silent.append(query)
                assert silent == []
            finally:
                server.send_signal(signal.SIGTERM)
                server.wait(20)


def _answers(port: int, query: str, *, least: int = 1, seconds: float = 20.0) -> list[Any]:
    """What a query gives, once there are as many samples of it in the last minute."""
    deadline = time.monotonic() + seconds
    asked = f"count_over_time(({query})[1m:300ms]) >= {least}" if least > 1 else query
    while True:
        try:
            place = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': asked})}"
            with urllib.request.urlopen(place, timeout=10) as answer:
                told = json.load(answer)
            assert told["status"] == "success"
            if told["data"]["result"] or seconds == 0.0:
                return list(told["data"]["result"])
        except OSError:
            pass
        assert time.monotonic() < deadline, f"no answer to {query}"
        time.sleep(0.1)
