"""More baskets than one node can hold, and nodes that die with all theirs: a cluster of three nodes.

A node's processes are all sent SIGKILL (or SIGSTOP) at once. Ray takes about 14 s to find out with its own
settings; here it is told to look more often.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray

SCRIPT = """
import json, os, signal, sqlite3, sys, tempfile, threading, time
from collections import Counter
from pathlib import Path
import numpy as np
import ray
from ray.cluster_utils import Cluster
from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig
from scarcity_ray.config import load
from scarcity_ray.errors import ActorLost
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.federation import supervisor
from scarcity_ray.runtime import ray_runtime
from scarcity_ray.runtime.ray_runtime import find_actor

ledger, scenarios = sys.argv[1], sys.argv[2:]
switches = Path(tempfile.mkdtemp())
PHASES = ["mask", "unmask", "run_gossip", "submit"]

def stopping(phase):
    def method(self, *args):
        switch = switches / f"{phase}-{self._slot}"
        if switch.exists():
            switch.rename(switches / "stopped")
            time.sleep(120.0)
        return getattr(BasketHost, phase)(self, *args)
    return method

supervisor.BasketHost = type("Host", (BasketHost,), {phase: stopping(phase) for phase in PHASES})

often = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500,
         "health_check_timeout_ms": 500, "health_check_failure_threshold": 3}
places = {"spread_place": 2}
small = {"num_cpus": 1, "object_store_memory": 100_000_000, "resources": places}
roomy = {**small, "resources": {**places, "basket_place": 4}}
cluster = Cluster(initialize_head=True,
                  head_node_args={**small, "include_dashboard": False, "_system_config": often})
cluster.add_node(**roomy, labels={"region": "eu"})
cluster.add_node(**roomy)
cluster.wait_for_nodes()

def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = []
    for child in children.read_text().split() if children.exists() else ():
        found += [int(child), *descendants(int(child))]
    return found

def processes(node):
    roots = [info.process.pid for infos in node.all_processes.values() for info in infos]
    return [pid for root in roots for pid in (root, *descendants(root))]

def signalled(pids, how):
    for pid in pids:
        try:
            os.kill(pid, how)
        except ProcessLookupError:
            pass

def actors_among(pids):
    found = []
    for pid in pids:
        try:
            found += [pid] if b"ray::Host" in Path(f"/proc/{pid}/cmdline").read_bytes() else []
        except OSError:
            pass
    return found

def reap(node):
    # Workers of a raylet that is a zombie take it for alive.
    for infos in node.all_processes.values():
        for info in infos:
            info.process.poll()

def kill(node):
    signalled(processes(node), signal.SIGKILL)
    cluster.worker_nodes.discard(node)

def nodes_of(fed):
    ask = lambda self: ray.get_runtime_context().get_node_id()
    actors = {n: find_actor(fed._runtime._namespace, n) for n in fed._runtime.names()}
    return {n: ray.get(actor.__ray_call__.remote(ask)) for n, actor in actors.items()}

def node_of(fed, role):
    where = nodes_of(fed)[role]
    return next(node for node in cluster.worker_nodes if node.node_id == where)

def charges():
    with sqlite3.connect(f"file:{ledger}?mode=ro", uri=True) as connection:
        said = "SELECT charge_id FROM ledger WHERE record NOT LIKE '%void%' ORDER BY seq"
        return [row[0] for row in connection.execute(said) if row[0]]

clients = [(f"c{i:02d}", f"d{i // 3}") for i in range(12)]
names = [client for client, _ in clients]

def submit(fed, seed):
    rows = np.random.default_rng(seed).normal(size=(12, 16)).astype(np.float32)
    return [r.accepted for r in fed.submit_updates(names, rows)]

def budgets(fed):
    return [fed.get_privacy_budget(client)[0] for client in names]

def finish(fed, seed):
    submit(fed, seed)
    made = fed.force_aggregate() is not None
    return made and fed.force_aggregate() is None, fed.advance_round()

def mid_round(fed):
    finish(fed, 0)
    before = submit(fed, 1)
    fed.run_gossip_round()
    where, spent, rows = nodes_of(fed), budgets(fed), charges()
    victim = node_of(fed, "basket:0")
    lost = [where[f"basket:{i // 3}"] == victim.node_id for i in range(12)]
    kill(victim)
    stats = fed.get_stats()
    after = nodes_of(fed)
    again = submit(fed, 1)
    fed.run_gossip_round()
    unspent = [b == a for b, a in zip(spent, budgets(fed))]
    return {
        "before": before, "lost": lost, "again": again, "charged_once": unspent,
        "buffered": stats["n_updates_buffered"], "round": stats["current_round"],
        "faults": stats["faults"], "victims": sorted(n for n in where if where[n] == victim.node_id),
        "elsewhere": victim.node_id not in after.values() and sorted(after) == sorted(where),
        "ledger_goes_on": charges()[:len(rows)] == rows,
        "released": finish(fed, 1), "next": finish(fed, 2),
    }

def within(phase):
    def scenario(fed):
        seed = 10 + PHASES.index(phase)
        if phase != "submit":
            submit(fed, seed)
        before = charges()
        (switches / f"{phase}-0").touch()
        victim = node_of(fed, "basket:0")
        lost = sum(node == victim.node_id for node in nodes_of(fed).values())
        def when_stopped():
            while not (switches / "stopped").exists():
                time.sleep(0.01)
            (switches / "stopped").unlink()
            kill(victim)
        killer = threading.Thread(target=when_stopped)
        killer.start()
        said = {"submit": lambda: sum(submit(fed, seed)),
                "run_gossip": lambda: sorted(fed.run_gossip_round()),
                }.get(phase, lambda: fed.force_aggregate() is not None)()
        killer.join()
        charged = [c for c in charges()[len(before):] if c.startswith("layer2/")]
        next_rounds = finish(fed, 200 + seed if said is True else seed), finish(fed, 100 + seed)
        return {"said": said, "charged": len(charged), "next": next_rounds, "lost": lost,
                "faults": [f.split(" ")[0] for f in fed.get_stats()["faults"]]}
    return scenario

def frozen(fed):
    submit(fed, 20)
    victim = node_of(fed, "basket:0")
    pids = processes(victim)
    num_actors = len(actors_among(pids))
    signalled(pids, signal.SIGSTOP)
    fed.run_gossip_round()
    rows = charges()
    signalled(pids, signal.SIGCONT)
    submit(fed, 20)
    deadline = time.monotonic() + 30.0
    while actors_among(pids) and time.monotonic() < deadline:
        reap(victim)
        time.sleep(0.1)
    ended = not actors_among(pids)
    late = charges()[len(rows):]
    kill(victim)
    return {"actors": num_actors, "ended": ended, "late": late, "next": [finish(fed, 20), finish(fed, 21)],
            "elsewhere": victim.node_id not in nodes_of(fed).values()}

def no_room(fed):
    submit(fed, 30)
    fed.get_stats()
    ray_runtime.PATIENCE_SECONDS, ray_runtime.START_TIMEOUT_SECONDS = 0.5, 1.5
    for node in list(cluster.worker_nodes):
        kill(node)
    refused = []
    for call in (fed.get_stats, lambda: submit(fed, 30), fed.force_aggregate):
        try:
            call()
        except ActorLost as lost:
            refused.append([lost.role, lost.retryable, lost.detail])
    ray_runtime.START_TIMEOUT_SECONDS = 60.0
    budget = fed.get_privacy_budget()[0]
    cluster.add_node(**roomy)
    return {"refused": refused, "budget": budget > 0.0, "again": submit(fed, 30),
            "next": [finish(fed, 30), finish(fed, 31)]}

def spread():
    placement = {"d0": {"region": "eu"}, "lost": {"region": "moon"}}
    with HierarchicalFederation(config("spread_place", Path(ledger).with_name("spread.sqlite"), placement),
                                address=cluster.address) as fed:
        clients = [(f"c{i:02d}", f"d{i // 6}") for i in range(18)]
        fed.register_clients(clients[:6])
        fed.register_clients(clients)
        receipts = fed.submit_updates([c for c, _ in clients], np.ones((18, 16)) / 10)
        model = fed.maybe_aggregate()
        baskets, others = Counter(), Counter()
        where = nodes_of(fed)
        for name, node in where.items():
            (baskets if name.startswith("basket") else others)[node] += 1
        european = [node["NodeID"] for node in ray.nodes() if node.get("Labels", {}).get("region") == "eu"]
        placed = sorted(name for name, node in where.items() if node in european)
        routes = fed._driver.operations.locate([client for client, _ in clients[:6]])
        num_baskets, released = fed.get_stats()["n_baskets"], fed.get_global_meta_model()
        round_id = fed.advance_round()
        ray_runtime.PATIENCE_SECONDS, ray_runtime.START_TIMEOUT_SECONDS = 0.5, 0.5
        try:
            fed.register_client("far", "lost")
        except ActorLost as lost:
            refused = lost.detail
        ray_runtime.PATIENCE_SECONDS, ray_runtime.START_TIMEOUT_SECONDS = 10.0, 120.0
        return {
            "placed": placed == sorted({f"basket:{slot}" for _, slot in routes.values()}),
            "refused": refused,
            "baskets": num_baskets,
            "accepted": sum(r.accepted for r in receipts),
            "spread": sorted(baskets.values()),
            "others_with_the_driver": others == {fed._runtime.home: 3},
            "release": model is not None and bool(np.isfinite(model).all()),
            "n_baskets_released": released.n_baskets,
            "round": round_id,
        }

def config(place, ledger, placement=None):
    return load(HierarchicalFederationConfig, {
        "vector_dim": 16, "auto_aggregate": False, "ledger_path": str(ledger), "total_epsilon": 500.0,
        "gossip": {"push_drift_threshold": 0.0},
        "basket": {"min_clients": 3, "max_clients": 3}, "layer1": {"aggregation_method": "mean"},
        "runtime": {"baskets_per_actor": 1, "cpus_per_actor": 0.1, "resources_per_actor": {place: 1},
                    "placement": placement or {}},
    })

RUN = {"mid_round": mid_round, "frozen": frozen, "no_room": no_room,
       **{phase: within(phase) for phase in PHASES}}
try:
    said = {}
    if scenarios[0] == "spread":
        said[scenarios.pop(0)] = spread()
    with HierarchicalFederation(config("basket_place", ledger), address=cluster.address) as fed:
        fed.register_clients(clients)
        for scenario in scenarios:
            while len(cluster.worker_nodes) < 2:
                cluster.add_node(**roomy)
            said[scenario] = RUN[scenario](fed)
        made = fed.get_stats()["n_layer2_aggregations"]
        said["charges"] = charges()
        said["made"] = made
        Path(ledger).with_suffix(".json").write_text(json.dumps(said))
finally:
    ray.shutdown()
    cluster.shutdown()
"""


def run(ledger: Path, *scenarios: str) -> dict[str, Any]:
    """What a federation says of the scenarios, one after the other on one cluster."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(ledger), *scenarios],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(ledger.with_suffix(".json").read_text())
    return said


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A round on three nodes, then a federation that loses one of them."""
    return run(tmp_path_factory.mktemp("nodes") / "ledger.sqlite", "spread", "mid_round")


def test_baskets_are_spread_or_placed_by_nodes_labels_and_a_round_completes(
    said: dict[str, Any],
) -> None:
    refused = said["spread"].pop("refused")
    assert "no node has the labels region=moon (ray start --labels region=moon)" in refused
    assert said["spread"] == {
        "baskets": 6,
        "accepted": 18,
        "spread": [2, 2, 2],
        "others_with_the_driver": True,
        "release": True,
        "n_baskets_released": 6,
        "placed": True,
        "round": 1,
    }


def test_a_node_killed_in_mid_round_loses_what_its_baskets_held_and_nothing_else(
    said: dict[str, Any],
) -> None:
    seen = said["mid_round"]
    assert all(seen["before"])
    assert 0 < sum(seen["lost"]) < 12
    assert seen["victims"] == sorted({f"basket:{i // 3}" for i, lost in enumerate(seen["lost"]) if lost})
    assert sorted(fault.split(" ")[0] for fault in seen["faults"]) == seen["victims"]
    assert all("send the updates of this round again" in fault for fault in seen["faults"])
    assert seen["elsewhere"], "they are back on the other node"
    assert seen["buffered"] == 12 - sum(seen["lost"])
    assert seen["again"] == seen["lost"], "what the others accepted is still there"
    assert seen["charged_once"] == [not lost for lost in seen["lost"]], "only what was drawn anew is charged"
    assert seen["ledger_goes_on"]
    assert seen["round"] == 1
    assert (seen["released"], seen["next"]) == ([True, 2], [True, 3])
    assert len(set(said["charges"])) == len(said["charges"])
    assert sum(charge.startswith("layer2/") for charge in said["charges"]) == said["made"] == 3


@pytest.mark.slow
def test_a_node_killed_within_any_call_or_frozen_or_without_another_to_go_to(tmp_path: Path) -> None:
    within = ("mask", "unmask", "run_gossip", "submit")
    said = run(tmp_path / "ledger.sqlite", *within, "frozen", "no_room")
    for phase in within:
        (made, _), (made_next, _) = said[phase]["next"]
        assert made, phase
        assert made_next, phase
        assert "basket:0" in said[phase]["faults"]
    mask, unmask = said["mask"], said["unmask"]
    assert mask["said"] is (mask["lost"] == 1), "three of four baskets are enough, two are not"
    assert unmask["said"] or unmask["lost"] > 1, "the others may have given their shares before they died"
    assert [said[phase]["charged"] for phase in within] == [int(mask["said"]), 1, 0, 0]
    assert said["run_gossip"]["said"] == ["d0", "d1", "d2", "d3"]
    assert said["submit"]["said"] == 12
    frozen = said["frozen"]
    assert frozen["actors"] > 0
    assert frozen["ended"], "a node that was given up for dead ends its actors when it comes back"
    assert frozen["elsewhere"]
    assert [made for made, _ in frozen["next"]] == [True, True]
    no_room = said["no_room"]
    assert len(no_room["refused"]) == 3
    for role, retryable, detail in no_room["refused"]:
        assert role.startswith("basket:")
        assert not retryable
        assert "no node offered" in detail
        assert "basket_place" in detail
    assert no_room["budget"], "the accountant answers all the while"
    assert no_room["again"] == [True] * 12
    assert [made for made, _ in no_room["next"]] == [True, True]
    assert len(set(said["charges"])) == len(said["charges"])
    released = sum(charge.startswith("layer2/") for charge in said["charges"])
    wasted = int(not unmask["said"])
    assert released == said["made"] + wasted, "charged, and the node died before the sum was known"
