"""What only a runtime with processes can get wrong."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError

from scarcity_ray.errors import ActorLost
from scarcity_ray.runtime import RoleSpec
from scarcity_ray.runtime.ray_runtime import is_death
from scarcity_ray.runtime.rpc import IdempotencyKey

pytestmark = pytest.mark.ray
ray_runtime = pytest.importorskip("scarcity_ray.runtime.ray_runtime")

_spec = importlib.util.spec_from_file_location("ray_probe", Path(__file__).with_name("probe.py"))
assert _spec is not None
assert _spec.loader is not None
probe = importlib.util.module_from_spec(_spec)
sys.modules["ray_probe"] = probe
_spec.loader.exec_module(probe)


@pytest.fixture(scope="module")
def place(ray_cluster: None) -> Iterator[ray_runtime.RayRuntime]:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(probe)
    runtime = ray_runtime.RayRuntime("ray-only")
    yield runtime
    for name in runtime.names():
        runtime.kill(name)


def test_a_role_whose_name_still_stands_for_a_dying_process_is_started_again(place) -> None:
    """Between SIGKILL and Ray's noticing it, starting the role must not hand out the corpse."""
    handle = place.peers.handle("dying")
    for _ in range(3):
        place.start([RoleSpec("dying", probe.Probe)])
        os.kill(handle.call("pid").result(), signal.SIGKILL)
        place.start([RoleSpec("dying", probe.Probe)])
        assert handle.call("all").result() == []
    place.kill("dying")


def test_a_call_in_flight_of_a_killed_process_is_lost(place) -> None:
    place.start([RoleSpec("victim", probe.Probe)])
    handle = place.peers.handle("victim")
    pid = handle.call("pid").result()
    running = handle.call("sleep", 60.0)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ActorLost, match="victim") as lost:
        running.result()
    assert lost.value.retryable
    assert not place.is_alive("victim")


def test_a_busy_role_is_alive(place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_runtime, "DEATH_TIMEOUT_SECONDS", 0.3)
    place.start([RoleSpec("busy", probe.Probe)])
    place.peers.handle("busy").call("sleep", 2.0)
    assert place.is_alive("busy")
    monkeypatch.undo()
    place.kill("busy")


def test_a_role_that_no_node_can_hold_is_lost_for_good(
    place, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(ray_runtime, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(ray_runtime, "START_TIMEOUT_SECONDS", 0.2)
    with pytest.raises(ActorLost, match=r"no node offered GPU 2, gold 1") as lost:
        place.start([RoleSpec("rich", probe.Probe, resources={"gold": 1.0}, spread=True, gpus=2.0)])
    assert not lost.value.retryable
    assert "gold" in caplog.text
    assert place.names() == ()


def test_a_role_is_given_the_part_of_a_gpu_that_it_asks_for(place) -> None:
    """This cluster claims to have one, which its machine need not."""
    place.start([RoleSpec("half", probe.Probe, gpus=0.5)])
    assert place.peers.handle("half").call("gpus").result() == {"GPU": 0.5}
    place.kill("half")


def test_a_slow_start_is_not_taken_for_a_node_that_is_missing(
    place, monkeypatch: pytest.MonkeyPatch, caplog
) -> None:
    monkeypatch.setattr(ray_runtime, "PATIENCE_SECONDS", 0.1)
    slow = [
        RoleSpec("slow", probe.Slow, {"seconds": 0.5}),
        RoleSpec("paid", probe.Slow, {"seconds": 0.5}, 0.1),
    ]
    place.start(slow)
    assert "slow has not started yet: its process was slow to start" in caplog.text
    assert "paid has not started yet: it waited for a node with CPU 0.1 free, or its process" in caplog.text
    assert "no node" not in caplog.text
    place.kill("slow")
    place.kill("paid")


def test_an_actor_that_met_a_death_is_not_taken_for_dead() -> None:
    """To be forgotten is to be killed: only the actor called may be, and only if it is it that died."""
    met = RayTaskError("ask", "its traceback", ActorDiedError()).as_instanceof_cause()
    assert isinstance(met, ActorDiedError)
    assert not is_death(met)
    assert is_death(ActorDiedError())
    assert not is_death(ActorUnavailableError("busy", b"0" * 16))


def test_where_ray_does_not_tell_who_is_dead_a_call_finds_out_once(
    place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scarcity_ray.runtime.ray_runtime._is_known_dead", lambda actor: False)
    handle = place.peers.handle("mortal")
    place.start([RoleSpec("mortal", probe.Probe)])
    os.kill(handle.call("pid").result(), signal.SIGKILL)
    assert not place.is_alive("mortal")
    place.start([RoleSpec("mortal", probe.Probe)])
    os.kill(handle.call("pid").result(), signal.SIGKILL)
    with pytest.raises(ActorLost):
        handle.call("sleep", 60.0).result()
    place.start([RoleSpec("mortal", probe.Probe)])
    assert handle.call("all").result() == []
    place.kill("mortal")


def test_roles_that_a_node_takes_start_beside_those_that_none_takes(
    place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_runtime, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(ray_runtime, "START_TIMEOUT_SECONDS", 4.0)
    rich = [RoleSpec(f"rich{i}", probe.Probe, resources={"gold": 1.0}, spread=True) for i in range(20)]
    poor = [RoleSpec("poor", probe.Probe, {"start": 7})]
    begin = time.monotonic()
    with pytest.raises(ActorLost, match=r"rich0 .*no node offered .*gold"):
        place.start([*rich, *poor])
    assert time.monotonic() - begin < 60.0, "they are given up together, not one after the other"
    assert place.names() == ("poor",)
    assert place.peers.handle("poor").call("all").result() == [7]
    place.kill("poor")


def test_a_role_whose_node_is_gone_is_lost_for_good(place) -> None:
    with pytest.raises(ActorLost, match="not in the cluster") as lost:
        place.start([RoleSpec("pinned", probe.Probe, node="ab" * 28)])
    assert not lost.value.retryable


def test_a_task_whose_process_dies_is_run_again(place, tmp_path: Path) -> None:
    assert place.compute.submit(probe.die, str(tmp_path / "died")).result() == "done"


def test_rays_tools_show_which_method_was_called(place) -> None:
    place.start([RoleSpec("shown:3", probe.Once)])
    handle = place.peers.handle("shown:3")
    assert handle.call("task_name").result() == "shown.task_name"
    assert handle.call("once", IdempotencyKey("driver", 1), "task_name").result() == "shown.task_name"
    place.kill("shown:3")


def test_a_fault_that_nobody_foresaw_keeps_its_traceback(place) -> None:
    place.start([RoleSpec("faulty", probe.Probe)])
    with pytest.raises(KeyError) as caught:
        place.peers.handle("faulty").call("fail", KeyError("a")).result()
    (note,) = caught.value.__notes__
    assert "in faulty" in note
    assert "def fail" in note or "in fail" in note
    place.kill("faulty")
