"""Answers that are lost on their way, and requests, by roles that are alive: nothing is done twice.

The oracle is the same federation without a loss: all that its driver is told, to the last bit of each model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.errors import ActorLost
from scarcity_ray.federation.client import RECOVERIES
from scarcity_ray.privacy.sampling.noise import SeededNoise

DIM = 8
HOW = ["answer", "request", "late"]
CLIENTS = [(f"c{i:02d}", f"d{i // 4}") for i in range(12)]


def open_one(ledger: Path, runtime: Any, **place: Any) -> HierarchicalFederation:
    settings = {
        "vector_dim": DIM,
        "auto_aggregate": False,
        "total_epsilon": 80.0,
        "ledger_path": str(ledger),
        "basket": {"min_clients": 2, "max_clients": 4},
        "layer1": {"aggregation_method": "mean", "min_updates": 2},
        "gossip": {"push_drift_threshold": 0.0},
        "runtime": {"cpus_per_actor": 0.01},
    }
    config = load(HierarchicalFederationConfig, settings)
    noise = SeededNoise(7)
    return HierarchicalFederation(config, runtime=runtime, noise=noise, clock=lambda: 1e6, **place)


def told(fed: HierarchicalFederation) -> list[Any]:
    """All that a driver is told which does everything that changes something."""
    said: list[Any] = [tuple(fed.register_clients(CLIENTS))]

    def submit(seed: int) -> None:
        rows = np.random.default_rng(seed).normal(size=(12, DIM)).astype(np.float32)
        receipts = fed.submit_updates([c for c, _ in CLIENTS], rows)
        said.append([(r.accepted, r.reason, r.basket_id, r.round_id) for r in receipts])

    def look() -> None:
        stats = fed.get_stats()
        kept = {k: v for k, v in stats.items() if k not in ("ledger", "ledger_path", "ledger_head", "faults")}
        said.append(kept)
        said.append([fed.get_client(client) for client, _ in CLIENTS])
        model = fed.get_global_model()
        said.append(None if model is None else model.tolist())

    submit(0)
    submit(1)
    said.append(fed.run_gossip_round())
    look()
    said.append([fed.get_basket_model("d0"), fed.force_aggregate().tolist()])
    said.append(fed.advance_round())
    submit(2)
    said.append(fed.split_basket("d0"))
    look()
    said.append([fed.unregister_client("c05"), fed.unregister_client("c05")])
    said.append(fed.register_client("c05", "d1"))
    said.append(fed.disband_basket("d2"))
    said.append(fed.run_gossip_round())
    look()
    said.append(fed.force_aggregate().tolist())
    fed.renew_budget(90.0, 1e-4, operator="test")
    said.append(fed.advance_round())
    submit(3)
    said.append(fed.force_aggregate().tolist())
    look()
    return json.loads(json.dumps(said, default=str))


class Lossy:
    """The driver's line to a role, on which the first tries of each call get lost.

    Args:
        handle: The role.
        how: Of each loss in turn. ``answer``: it is done, and its answer lost. ``request``: it never arrives.
            ``late``: it is given up, and arrives after the try that is answered.
    """

    def __init__(
        self, handle: Any, how: Iterator[str], tried: dict[tuple[Any, ...], int], late: list[Any]
    ) -> None:
        self.handle, self.how, self.tried, self.late = handle, how, tried, late

    def call(self, method: str, *args: Any) -> Any:
        key = (self.handle.name, method, *args[:2]) if method == "once" else (self.handle.name, method)
        self.tried[key] = self.tried.get(key, 0) + 1
        if self.tried[key] > RECOVERIES or (method != "once" and self.tried[key] % 2 == 0):
            answered = self.handle.call(method, *args)
            while self.late:
                handle, message = self.late.pop()
                handle.call(*message)
            return answered
        how = next(self.how)
        if how == "answer":
            self.handle.call(method, *args)
        if how == "late":
            self.late.append((self.handle, (method, *args)))
        return _Lost(self.handle.name)


class _Lost:
    def __init__(self, name: str) -> None:
        self.name = name

    def result(self) -> Any:
        raise ActorLost(self.name, "the actor is temporarily unavailable")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], int]:
    with open_one(tmp_path_factory.mktemp("undisturbed") / "ledger.sqlite", "local") as fed:
        said = told(fed)
        assert not fed.get_stats()["faults"]
        return said, fed._driver.budget().period


@pytest.mark.parametrize(
    ("runtime", "losses"),
    [
        *(("local", [how]) for how in HOW),
        ("local", HOW),
        pytest.param("ray", HOW, marks=pytest.mark.ray),
    ],
    ids=lambda given: given if isinstance(given, str) else "+".join(given),
)
def test_a_call_whose_answer_is_lost_is_done_once(
    runtime: str,
    losses: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    undisturbed: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if runtime == "ray":
        request.getfixturevalue("ray_cluster")
    with open_one(tmp_path / "ledger.sqlite", runtime) as fed:
        parts = fed._driver.supervisor
        handle: Callable[[str], Any] = parts.peers.handle
        tried: dict[tuple[Any, ...], int] = {}
        late: list[Any] = []
        how = cycle(losses)
        lossy = SimpleNamespace(handle=lambda name: Lossy(handle(name), how, tried, late))
        monkeypatch.setattr(parts, "peers", lossy)
        monkeypatch.setattr(parts.runtime, "is_alive", lambda name: True)
        said = told(fed)
        lost = {key[2] for key in tried if key[1] == "once"}
        assert {"register", "submit", "run", "take", "put", "renew", "advance_round"} <= {
            key[3] for key in tried if key[1] == "once"
        }
        assert len(lost) > 30
        assert (said, fed._driver.budget().period) == undisturbed
        monkeypatch.undo()


SCRIPT = """
import json, os, sys
from pathlib import Path
from ray.cluster_utils import Cluster
from ray.exceptions import ActorUnavailableError

head = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
os.environ["RAY_testing_rpc_failure"] = json.dumps(
    {"CoreWorkerService.grpc_client.PushTask": {"num_failures": 3, **json.loads(sys.argv[2])}}
)
import ray
from scarcity_ray.runtime import ray_runtime
import test_lost_answers as here

count, translated = [0], ray_runtime.translated
def counted(name, error):
    count[0] += isinstance(error, ActorUnavailableError)
    return translated(name, error)
ray_runtime.translated = counted
try:
    with here.open_one(Path(sys.argv[1]), "ray", address=cluster.address) as fed:
        said = here.told(fed)
        print("SAID", json.dumps([said, fed._driver.budget().period, count[0]]), flush=True)
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("how", ["resp_failure_prob", "in_flight_failure_prob"])
def test_connections_that_break_change_nothing(how: str, tmp_path: Path, undisturbed: Any) -> None:
    """Ray's own fault injection: three of the driver's calls, at random, end as `ActorUnavailableError`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = os.pathsep.join([str(Path(__file__).parent), environment.get("PYTHONPATH", "")])
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "ledger.sqlite"), json.dumps({how: 15})],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("SAID ")]
    said, period, count = json.loads(line.removeprefix("SAID "))
    assert (said, period) == undisturbed
    assert count > 0
