"""Training as tasks: on Ray a process may die or hang, results stay in the store, resources are kept to."""

from __future__ import annotations

import importlib
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import IdentityKeyPair, UsageError
from scarcity_ray.federation.fit_terms import FitTerms
from scarcity_ray.federation.fitting import Fitting
from scarcity_ray.federation.task_cohort import TaskCohort
from scarcity_ray.runtime.base import TaskEnd, TaskSpec
from scarcity_ray_client import Cause, Client, PrivateEvaluation, Trained, Workload, load_workload

DIMENSION = 300_000
SETTINGS: dict[str, Any] = {
    "vector_dim": DIMENSION,
    "layer2": {"central_dp_epsilon": 8.0, "use_secure_aggregation": False, "min_baskets": 2},
    "total_epsilon": 200.0,
    "gossip_budget_share": 0.0,
    "gossip": {},
    "layer1": {"aggregation_method": "mean", "min_updates": 2},
    "runtime": {"baskets_per_actor": 2, "cpus_per_actor": 0.01},
}


class Ones(Workload[dict[str, Any]]):
    """Each client adds one, and measures a share."""

    def __init__(self, dimension: int = DIMENSION) -> None:
        self.dimension = dimension

    def clients(self) -> list[Client]:
        return [Client(f"c{i:02d}", f"domain{i // 3}", num_cpus=0.5) for i in range(12)]

    def initial_model(self) -> dict[str, Any]:
        return {"w": np.zeros(self.dimension, np.float32)}

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        model["w"] += 1 / self.dimension
        return Trained(model=model)

    def evaluate(self, model: dict[str, Any]) -> dict[str, float]:
        return {"mean": float(model["w"].mean())}

    def evaluate_client(self, model: dict[str, Any], client: Client) -> dict[str, float]:
        return {"share": 0.75 + float(model["w"].mean())}


@pytest.fixture
def open_ray(open_harness: Callable[..., Any]) -> Callable[..., Any]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return lambda **changes: open_harness("ray", **{**SETTINGS, **changes}).fed


HOSTILE = """
import os
import time

import numpy as np
from sr_ward_data import step

from scarcity_ray_client import Client, Trained, Workload


class Wards(Workload):
    def __init__(self, faults):
        self.faults = faults

    def clients(self):
        needs = {"c02": {"resources": {"hospital_a": 1.0}}, "c03": {"labels": {"region": "nowhere"}}}
        needs = needs if self.faults else {}
        return [
            Client(client_id, f"domain{int(client_id[1:]) // 3}", num_cpus=0.5, **needs.get(client_id, {}))
            for client_id in [f"c{i:02d}" for i in range(12)]
        ]

    def initial_model(self):
        return {"w": np.zeros(8, np.float32)}

    def train(self, model, client, round_id):
        fault = self.faults.get(client.client_id)
        if fault == "exits":
            os._exit(1)
        if fault == "hangs":
            time.sleep(600)
        if fault == "raises":
            raise RuntimeError("no data")
        if fault == "nan":
            return Trained(delta=np.full(8, np.nan))
        if fault == "shape":
            return Trained(model={"w": np.zeros(9)})
        if fault == "prints":
            for _ in range(4):
                print("x" * 2**20)
        model["w"] += step()
        return Trained(delta=model) if fault == "model" else Trained(model=model)

    def evaluate(self, model):
        return {"mean": model["w"].mean()}

    def evaluate_client(self, model, client):
        return {"mean": model["w"].mean()}
"""


@pytest.fixture
def ward_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job's folder with a workload, and a module beside it whose function cannot be pickled by value."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "sr_wards.py").write_text(HOSTILE)
    (folder / "sr_ward_data.py").write_text(
        "from functools import lru_cache\n\n@lru_cache\ndef step():\n    return 1 / 8\n"
    )
    return folder


@pytest.mark.ray
def test_whatever_a_workload_does_is_counted_and_the_round_goes_on(open_ray: Any, ward_folder: Path) -> None:
    """Its module lies in a folder that no worker has, and the driver was connected before it was loaded."""
    fed = open_ray(vector_dim=8, basket={"min_clients": 3, "max_clients": 6})
    faults = ["exits", "hangs", "raises", "nan", "shape", "prints", "model"]
    given = dict(zip(("c01", "c04", "c05", "c06", "c07", "c08", "c09"), faults, strict=True))
    workload = load_workload("sr_wards:Wards", {"faults": given}, ward_folder)
    terms = FitTerms(rounds=1, deadline_seconds=20.0)
    fitting = Fitting(fed._driver, partial(TaskCohort, fed._runtime.tasks()), workload, terms)
    ward_folder.rename(ward_folder.with_name("gone"))
    result = fitting.run()
    assert result.refusals == {
        "c01": {"lost": 1},
        "c02": {"timed_out": 1},
        "c03": {"timed_out": 1},
        "c04": {"timed_out": 1},
        "c05": {"raised": 1},
        "c06": {"not_finite": 1},
        "c07": {"wrong_model": 1},
        "c09": {"wrong_result": 1},
    }
    (first,) = result.history
    assert first.num_accepted == 4
    assert first.seconds >= 20.0
    told = {refusal.client_id: str(refusal) for refusal in first.first_refusals}
    assert all(told[client_id].startswith(f"client '{client_id}', round 0: ") for client_id in told)
    assert "had not ended at the deadline" in told["c04"]
    assert "no node offered CPU 0.5, hospital_a 1" in told["c02"]
    assert "region=nowhere" in told["c03"]
    assert "no data" in told["c05"]

    ward_folder.with_name("gone").rename(ward_folder)
    workload = load_workload("sr_wards:Wards", {"faults": {}}, ward_folder)
    tricks, progress = Doubling(), list[Any]()
    (second,) = fed.fit(
        workload,
        rounds=1,
        clients_per_task=4,
        evaluate_clients=True,
        adversary=tricks,
        on_progress=progress.append,
    ).history
    assert second.num_accepted == 12
    assert second.versions
    assert second.seconds < 60.0, "the process that hung is gone"
    assert tricks.rows.tolist() == [[1 / 8] * 8] * 12
    assert second.driver_bytes > 12 * 8 * 4
    assert progress[-1].num_done == progress[-1].num_due == 12
    means = [found.metrics["mean"] for found in second.clients.values()]
    assert means == pytest.approx([second.evaluation["mean"]] * 4)


class Doubling:
    """An adversary that notes what it sees."""

    byzantine, poisons = frozenset({"c01"}), False

    def sent(self, round_id: int, client_ids: Any, basket_ids: Any, rows: Any, clip_norm: float) -> Any:
        self.rows = rows
        return 2 * rows


@pytest.mark.ray
def test_updates_never_come_to_the_driver(open_ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 12 updates of 1.2 MB each, it receives some hundred bytes; what it signs is their digest.

    What clients measure privately lies behind their updates, and comes back in the release.
    """
    import ray

    from scarcity_ray.runtime.ray_tasks import RayTasks

    asked = PrivateEvaluation({"share": (0.0, 1.0)}, max_examples=2)
    layer2 = {**SETTINGS["layer2"], "central_dp_epsilon": math.inf}
    meta = {"meta_parameters": asked.meta_parameters(), "total_epsilon": math.inf, "layer2": layer2}
    fed, ends = open_ray(**meta), list[TaskEnd]()
    fed.register_client("c00", "domain0")
    fed.unregister_client("c00")
    fed.register_client("c00", "domain0", identity_keypair=IdentityKeyPair.generate())
    ended = RayTasks.ended

    def noted(self: RayTasks, timeout: float | None) -> list[TaskEnd]:
        found = ended(self, timeout)
        ends.extend(found)
        return found

    monkeypatch.setattr(RayTasks, "ended", noted)
    result = fed.fit(Ones(), rounds=1, private_evaluation=asked)
    found = result.history[0].private_evaluation["share"]
    assert (found.mean, found.examples) == pytest.approx((0.75, 1.0), abs=1e-5)
    assert result.history[0].num_accepted == 12
    assert result.history[0].versions == (1,)
    assert all(isinstance(end.stored, ray.ObjectRef) for end in ends)
    assert 0 < result.history[0].driver_bytes == sum(end.num_bytes for end in ends) < 12 * 1000
    assert fed.get_stats()["rejections"] == {}


@pytest.mark.ray
def test_a_workload_that_no_worker_can_import_is_an_error_that_says_so(
    open_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here_module.py").write_text(
        "from tests_of_training import Ones\nclass Mine(Ones):\n    pass\n"
    )
    monkeypatch.setitem(sys.modules, "tests_of_training", sys.modules[__name__])
    monkeypatch.syspath_prepend(str(tmp_path))
    mine = importlib.import_module("only_here_module").Mine(8)
    with pytest.raises(UsageError, match="only_here_module"):
        open_ray(vector_dim=8).fit(mine, rounds=1)


@pytest.mark.ray
def test_a_client_has_its_cpus_to_itself(ray_cluster: None) -> None:
    """Two CPUs, and 1.5 for each: one trains after the other."""
    from scarcity_ray.runtime.ray_tasks import RayTasks

    tasks = RayTasks(2)
    for key in ("a", "b", "c"):
        tasks.start(TaskSpec(key, span, (0.3,), cpus=1.5))
    ends = collected(tasks, 3)
    spans = sorted(end.answer for end in ends)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.ray
def test_a_task_that_the_actors_leave_no_cpu_for_says_so(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each node has the CPUs, and none has them free: nobody would ever end."""
    import ray

    from scarcity_ray.runtime import ray_tasks

    monkeypatch.setattr(ray_tasks, "PATIENCE_SECONDS", 1.0)
    all_cpus = ray.cluster_resources()["CPU"]
    actor = ray.remote(list).options(num_cpus=0.1).remote()
    ray.get(actor.__ray_ready__.remote())
    tasks = ray_tasks.RayTasks(2)
    tasks.start(TaskSpec("greedy", span, (0.0,), cpus=all_cpus))
    assert tasks.ended(1.0) == []
    assert f"greedy waits: no node has CPU {all_cpus:g} free beside the actors" in caplog.text
    ray.kill(actor)
    assert len(collected(tasks, 1)) == 1


@pytest.mark.ray
def test_a_row_that_is_lost_on_its_way_is_refused_alone(open_ray: Any) -> None:
    """Its process dies with what it held after it has said that it trained."""
    import ray

    fed = open_ray(vector_dim=8)
    fitting = Fitting(fed._driver, partial(TaskCohort, fed._runtime.tasks()), Ones(8), FitTerms(rounds=1))
    submit = fed._driver.submit

    def losing(batch: Any, **given: Any) -> Any:
        bad = ray.remote(max_retries=0)(lost).remote()
        ray.wait([bad])
        for row in batch.rows[:1]:
            object.__setattr__(row, "reference", bad)
        return submit(batch, **given)

    fed._driver.submit = losing
    result = fitting.run()
    assert [set(counts) for counts in result.refusals.values()] == [{"lost"}]
    assert result.history[0].num_accepted == 11


def test_tasks_keep_their_contract(runtime: str) -> None:
    from scarcity_ray.runtime import LocalRuntime

    if runtime == "local":
        tasks = LocalRuntime().tasks()
    else:
        from ray import cloudpickle

        from scarcity_ray.runtime.ray_tasks import RayTasks

        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        tasks = RayTasks(2)
    assert tasks.ended(None) == []
    shared = tasks.put(np.ones(3))
    for key in ("a", "b"):
        tasks.start(TaskSpec(key, add, (shared, key)))
    tasks.start(TaskSpec("bad", add, (shared, 3)))
    if runtime == "ray":
        tasks.start(TaskSpec("odd", add, (shared, "odd"), resources={"CPU": 1.0}))
        (refused,) = collected(tasks, 1)
        assert (refused.key, refused.cause) == ("odd", Cause.RAISED)
        assert "Use the 'num_cpus'" in refused.detail
    ends = {end.key: end for end in collected(tasks, 3)}
    assert {key: ends[key].answer for key in "ab"} == {"a": "a3.0", "b": "b3.0"}
    assert ends["bad"].cause is Cause.RAISED
    assert "TypeError" in ends["bad"].detail + ends["bad"].traceback
    assert ends["a"].cause is None
    stored, num_bytes = tasks.fetch(ends["a"].stored)
    assert (stored.tolist(), num_bytes) == ([1.0, 1.0, 1.0], 0), "so small a value came with its answer"
    assert tasks.ended(None) == []
    tasks.start(TaskSpec("slow", span, (60.0,)))
    tasks.stop(["slow", "unknown"])
    assert tasks.ended(0.5) == []


def collected(tasks: Any, count: int) -> list[TaskEnd]:
    ends: list[TaskEnd] = []
    deadline = time.monotonic() + 60
    while len(ends) < count and time.monotonic() < deadline:
        ends += tasks.ended(5.0)
    return ends


def span(seconds: float) -> tuple[tuple[float, float], None]:
    begun = time.time()
    time.sleep(seconds)
    return (begun, time.time()), None


def add(shared: Any, key: str) -> tuple[str, Any]:
    return key + str(shared.sum()), shared


def lost() -> None:
    os._exit(1)
