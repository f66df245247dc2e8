"""Finding clusters, and federations that outlive their drivers: a head of its own, and drivers beside it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

PRELUDE = """
import logging, os, signal, sys
import numpy as np
import ray
from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.errors import ActorLost, UsageError
from scarcity_ray.privacy.sampling.noise import SeededNoise

def refused(make):
    try:
        make()
    except UsageError as error:
        return str(error)
    raise SystemExit("not refused")

def config(ledger):
    return load(HierarchicalFederationConfig, {
        "vector_dim": 4, "auto_aggregate": False, "ledger_path": ledger, "total_epsilon": 50.0,
        "layer1": {"aggregation_method": "mean"}, "runtime": {"baskets_per_actor": 9, "cpus_per_actor": 0.01},
    })

def pid(fed, name):
    from scarcity_ray.runtime.ray_runtime import find_actor
    actor = find_actor(fed._runtime._namespace, name)
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))

clients = [(f"c{i}", f"d{i % 2}") for i in range(6)]
rows = np.arange(24.0).reshape(6, 4) / 50
"""


@dataclass(frozen=True)
class Head:
    address: str
    dashboard: str
    environment: dict[str, str]

    def run(self, script: str, *arguments: str, **environment: str) -> list[str]:
        """Run a driver in a process of its own; the lines that it printed."""
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + script, self.address, *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def descendants(pid: int) -> list[int]:
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        found += [int(child), *descendants(int(child))]
    return found


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """``ray start --head`` on ports and in a folder of its own, ended by its own process ids."""
    folder = tempfile.mkdtemp(prefix="sr_", dir="/tmp")
    port, dashboard = free_port(), free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [
        *("ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"),
        *(f"--port={port}", "--node-ip-address=127.0.0.1", f"--temp-dir={folder}"),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
        *(f"--ray-client-server-port={free_port()}", f"--dashboard-agent-listen-port={free_port()}"),
        "--object-store-memory=200000000",
    ]
    log = Path(folder) / "head.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + 90.0
    while "Ray runtime started" not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", environment)
    mine = descendants(process.pid)
    process.terminate()
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
    for pid in mine:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    shutil.rmtree(folder, ignore_errors=True)


def test_a_federation_outlives_its_driver_and_is_attached_by_name(head: Head, tmp_path: Path) -> None:
    first = """
fed = HierarchicalFederation(config(sys.argv[2]), address=sys.argv[1], name="town", noise=SeededNoise(1))
fed.register_clients(clients)
fed.submit_updates([c for c, _ in clients[:3]], rows[:3])
print(fed.get_stats()["ledger_path"])
"""
    ledger = str(tmp_path / "town.sqlite")
    assert head.run(first, ledger) == [ledger]

    second = """
print(refused(lambda: HierarchicalFederation(config(sys.argv[2]), name="town")))
print(refused(lambda: HierarchicalFederation.attach("nowhere")))
with HierarchicalFederation.attach("town") as fed:
    stats = fed.get_stats()
    print(stats["n_clients"], stats["n_updates_buffered"], fed.config.vector_dim)
    fed.submit_updates([c for c, _ in clients[3:]], rows[3:])
    print(fed.maybe_aggregate().shape, fed.advance_round())
    os.kill(pid(fed, "directory"), signal.SIGKILL)
print(refused(fed.get_stats))
"""
    running, nowhere, *said, closed = head.run(second, ledger, RAY_ADDRESS=head.address)
    assert "'town' is running" in running
    assert "attach('town')" in running
    assert "no federation named 'nowhere'" in nowhere
    assert said == ["6 3 4", "(4,) 1"]
    assert "closed" in closed

    third = """
print("directory killed:", refused(lambda: HierarchicalFederation(config(sys.argv[2]), name="town")))
fed = HierarchicalFederation.attach("town")
stats = fed.get_stats()
print(stats["n_clients"], stats["current_round"], stats["n_layer2_aggregations"], len(stats["faults"]))
fed.submit_updates([c for c, _ in clients], rows)
print(fed.maybe_aggregate() is not None, fed.get_stats()["privacy_consumed_epsilon"] > 1.0)
fed.terminate()
fed.close()
ray.init(address=sys.argv[1])
print(ray.util.list_named_actors(all_namespaces=True))
print(refused(lambda: HierarchicalFederation.attach("town")))
with HierarchicalFederation(config(sys.argv[2]), name="town") as fed:
    print(fed.get_stats()["privacy_consumed_epsilon"] > 1.0)
print(ray.util.list_named_actors(all_namespaces=True))
"""
    running, *said = head.run(third, ledger, RAY_ADDRESS=head.address)
    assert "'town' is running" in running
    assert said[:3] == ["6 1 1 1", "True True", "[]"]
    assert "no federation named 'town'" in said[3]
    assert said[4:] == ["True", "[]"], "the ledger remembers; nothing is left behind"


def test_the_address_is_found_or_refused_in_plain_words(head: Head, tmp_path: Path) -> None:
    script = """
import time
from scarcity_ray.runtime.connect import connect
begin = time.monotonic()
for address in ("127.0.0.1:9", sys.argv[2], "http://127.0.0.1:8265", "nonsense", "no.such.host.invalid:6379"):
    print(refused(lambda: HierarchicalFederation(address=address)))
os.environ["RAY_ADDRESS"] = "127.0.0.1:9"
print(refused(HierarchicalFederation))
print(time.monotonic() - begin < 30.0, ray.is_initialized())
os.environ["RAY_ADDRESS"] = sys.argv[1]
print(connect(None), ray.get_runtime_context().gcs_address.endswith(sys.argv[1].split(":")[1]))
os.environ["RAY_ADDRESS"] = "127.0.0.1:9"
print(connect(None), connect(sys.argv[1]), connect("auto"), "a connection that exists is used")
print(refused(lambda: HierarchicalFederation(address="127.0.0.1:9")))
fed = HierarchicalFederation(config(sys.argv[3]))
ray.shutdown()
try:
    fed.get_stats()
except ActorLost as lost:
    print(lost.retryable, lost)
fed.close()
fed.close()
print(ray.is_initialized())
"""
    dashboard = head.dashboard.removeprefix("http://")
    said = head.run(script, dashboard, str(tmp_path / "ledger.sqlite"))
    assert "no Ray cluster answers at '127.0.0.1:9'" in said[0]
    assert "no Ray cluster (is it the dashboard's port?)" in said[1]
    assert "HOST:PORT" in said[2]
    assert "HOST:PORT" in said[3]
    assert "no Ray cluster answers at 'no.such.host.invalid:6379'" in said[4]
    assert "'127.0.0.1:9'" in said[5]
    assert said[6:9] == ["True False", "True True", "False False False a connection that exists is used"]
    assert "this process is connected to the cluster at" in said[9]
    assert said[10].startswith("False ")
    assert "not connected to Ray" in said[10]
    assert said[11:] == ["False"]


def test_without_an_address_a_cluster_is_started_and_ended(head: Head, tmp_path: Path) -> None:
    """Never the one that happens to run on this machine, which ``ray.init()`` alone would take."""
    script = """
with HierarchicalFederation(config(sys.argv[2])) as fed:
    port = sys.argv[1].split(":")[1]
    print(ray.get_runtime_context().gcs_address.split(":")[1] != port, fed.register_client("c", "d"))
print(ray.is_initialized())
"""
    assert head.run(script, str(tmp_path / "ledger.sqlite")) == ["True d_basket_0", "False"]
