"""The contract of a runtime (`runtime.base`) and of a call (`runtime.rpc`), held on every runtime."""

from __future__ import annotations

import gc
import importlib.util
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import errors
from scarcity_ray.runtime import LocalRuntime, RoleSpec, Runtime
from scarcity_ray.runtime.rpc import TasksBeside, gather, map_tasks

_spec = importlib.util.spec_from_file_location("runtime_probe", Path(__file__).with_name("probe.py"))
assert _spec is not None
assert _spec.loader is not None
probe = importlib.util.module_from_spec(_spec)
sys.modules["runtime_probe"] = probe
_spec.loader.exec_module(probe)

ERRORS = [
    errors.ConfigError("a.b", 3, "a string"),
    errors.UsageError("mend it"),
    errors.ConfigFileError("nope.yaml", "No such file or directory", "a readable YAML file"),
    errors.TooFewUpdates("krum", 3, 5),
    errors.RuleFailed("my_module:MyRule", "it raised", "ValueError"),
    errors.PrivacyBudgetExhausted("spent"),
    errors.LedgerError("no"),
    errors.LedgerCorrupted("torn"),
    errors.LedgerMissing("gone"),
    errors.LedgerRolledBack("older"),
    errors.LedgerHeld("by another"),
    errors.StorageError("/disk/x: torn"),
    errors.LedgerTakenOver("by another"),
    errors.SecureAggregationAborted("too few", False),
    errors.ProtocolViolation("forged"),
    errors.MessageRefused("torn", "it ends early"),
    errors.ActorLost("accountant", "it died", False),
    KeyError("an ordinary error"),
]


def local_runtime() -> Iterator[Runtime]:
    yield LocalRuntime()


def ray_runtime(namespace: str) -> Iterator[Runtime]:
    from ray import cloudpickle

    from scarcity_ray.runtime.ray_runtime import RayRuntime

    cloudpickle.register_pickle_by_value(probe)
    runtime = RayRuntime(namespace)
    yield runtime
    for name in runtime.names():
        runtime.kill(name)
    runtime.close()


@pytest.fixture(scope="module", params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def place(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    if request.param == "local":
        yield from local_runtime()
    else:
        request.getfixturevalue("ray_cluster")
        yield from ray_runtime("contract")


@pytest.fixture
def role(place: Runtime) -> str:
    """A role that has seen nothing yet."""
    place.start([spec_of(place, "probe:0")])
    call(place, "probe:0", "reset")
    return "probe:0"


def spec_of(place: Runtime, name: str) -> RoleSpec:
    return RoleSpec(name, probe.Probe, {"peers": place.peers, "compute": place.compute})


def call(place: Runtime, name: str, method: str, *args: object) -> Any:
    return place.peers.handle(name).call(method, *args).result()


def test_every_error_of_the_package_is_in_the_suite() -> None:
    tree = {
        cls
        for cls in vars(errors).values()
        if isinstance(cls, type) and issubclass(cls, errors.ScarcityError)
    }
    assert tree - {type(error) for error in ERRORS} == {errors.ScarcityError}


def test_a_role_started_twice_keeps_its_state(place: Runtime, role: str) -> None:
    call(place, role, "add", 1)
    place.start([RoleSpec(role, probe.Probe, {"start": 7})])
    assert call(place, role, "all") == [1]
    with pytest.raises(errors.UsageError, match="running already"):
        place.start([RoleSpec(role, probe.Probe)], card="mine")
    assert call(place, role, "all") == [1]


def test_a_call_sees_the_effects_of_the_callers_earlier_calls(place: Runtime, role: str) -> None:
    """Calls of one caller to one role are executed in the order in which they were made."""
    futures = [place.peers.handle(role).call("add", i) for i in range(100)]
    assert call(place, role, "all") == list(range(100))
    assert gather(futures) == list(range(1, 101))


def test_each_node_has_memory(place: Runtime) -> None:
    assert len(place.node_bytes()) == len(place.nodes())
    assert all(2.0**28 < size < 2.0**50 for size in place.node_bytes())


def test_arrays_arrive_read_only_and_unshared(place: Runtime, role: str) -> None:
    small, large = np.ones(3, np.float32), np.ones(300_000)
    fortran = np.asfortranarray(np.ones((300, 300)))
    assert call(place, role, "flags", {"s": small, "l": large, "f": fortran}) == [False] * 3
    for array in (small, large, np.ones(8)[::2]):
        back = call(place, role, "keep", array)
        before = call(place, role, "kept_sum")
        array[:] = 5.0
        assert call(place, role, "kept_sum") == before
        assert back.sum() == array.size
        if array.flags.contiguous:
            with pytest.raises(ValueError, match="read-only"):
                back[0] = 1.0


def test_only_memory_that_nobody_can_write_to_is_shared_in_one_process() -> None:
    place = LocalRuntime()
    place.start([RoleSpec("probe", probe.Probe)])
    open_, sealed, written = np.ones(9), np.ones(9), np.frombuffer(np.ones(9).tobytes())
    view = open_[:]
    sealed.setflags(write=False)
    view.setflags(write=False)  # what it is a view of can be written to
    for array, is_shared in (
        (open_, False),
        (view, False),
        (sealed, True),
        (sealed[1:], True),
        (written, True),
    ):
        assert np.shares_memory(call(place, "probe", "keep", array), array) is is_shared


def test_arguments_and_results_are_copied(place: Runtime, role: str) -> None:
    sent = [1]
    call(place, role, "add", sent)
    sent.append(2)
    got = call(place, role, "all")
    got.append(3)
    assert call(place, role, "all") == [[1]]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_an_exception_keeps_its_type(place: Runtime, role: str, error: Exception) -> None:
    for future in (
        place.peers.handle(role).call("fail", error),
        place.compute.submit(probe.fail_with, error),
    ):
        with pytest.raises(type(error)) as caught:
            future.result()
        assert type(caught.value) is type(error)
        assert caught.value.args == error.args
        assert str(caught.value) == str(error)


def test_an_exception_keeps_its_type_through_two_roles(place: Runtime, role: str) -> None:
    other = "probe:1"
    place.start([RoleSpec(other, probe.Probe)])
    with pytest.raises(errors.TooFewUpdates):
        call(place, role, "ask", other, "fail", errors.TooFewUpdates("krum", 3, 5))
    place.kill(other)
    with pytest.raises(errors.ActorLost) as lost:
        call(place, role, "ask", other, "all")
    assert lost.value.role == other


def test_a_method_that_is_not_there_is_an_error_of_the_future(place: Runtime, role: str) -> None:
    future = place.peers.handle(role).call("no_such_method")
    with pytest.raises(AttributeError):
        future.result()


def test_a_killed_role_answers_actor_lost_until_it_is_started_again(place: Runtime, role: str) -> None:
    handle = place.peers.handle(role)
    handle.call("add", 1).result()
    place.kill(role)
    assert not place.is_alive(role)
    for _ in range(3):
        with pytest.raises(errors.ActorLost) as lost:
            handle.call("all").result()
        assert lost.value.role == role
        assert lost.value.retryable
    place.start([spec_of(place, role)])
    assert place.is_alive(role)
    assert handle.call("all").result() == []


def test_a_role_can_be_killed_and_started_over_and_over(place: Runtime, role: str) -> None:
    for _ in range(3):
        place.kill(role)
        place.start([spec_of(place, role)])
        assert call(place, role, "all") == []


def test_a_role_that_was_never_there_is_lost(place: Runtime) -> None:
    assert not place.is_alive("nobody")
    place.kill("nobody")
    with pytest.raises(errors.ActorLost, match="nobody"):
        call(place, "nobody", "all")


def test_a_role_that_fails_as_it_starts_is_lost_for_good(place: Runtime) -> None:
    with pytest.raises(errors.ActorLost, match="no such luck") as lost:
        place.start([RoleSpec("broken", probe.Broken)])
    assert not lost.value.retryable
    assert not place.is_alive("broken")


@pytest.mark.long
def test_roles_start_beside_one_that_fails(place: Runtime) -> None:
    with pytest.raises(errors.ActorLost, match=r"^broken .*no such luck"):
        place.start([RoleSpec("broken", probe.Broken), RoleSpec("sound", probe.Probe, {"start": 7})])
    gc.collect()
    for _ in range(5):
        assert call(place, "sound", "all") == [7], "it stays, though nobody but the runtime holds it"
        time.sleep(0.1)
    assert not place.is_alive("broken")
    place.kill("sound")


def test_a_federations_first_roles_start_all_or_none(place: Runtime, role: str) -> None:
    first = [RoleSpec("sound", probe.Probe), RoleSpec("broken", probe.Broken)]
    with pytest.raises(errors.ActorLost, match="no such luck"):
        place.start(first, card="mine")
    assert place.names() == (role,)
    with pytest.raises(errors.UsageError, match="running already"):
        place.start([RoleSpec("sound", probe.Probe), RoleSpec(role, probe.Probe)], card="mine")
    assert place.names() == (role,), "what is another's stays, what was made for it goes"
    assert place.card() is None
    assert not place.has_begun


def test_peers_reach_each_other_from_inside(place: Runtime, role: str) -> None:
    place.start([spec_of(place, "probe:1")])
    assert call(place, "probe:1", "ask", role, "add", 5) == 1
    assert call(place, role, "all") == [5]
    place.kill(role)
    with pytest.raises(errors.ActorLost):
        call(place, "probe:1", "ask", role, "all")
    place.start([spec_of(place, role)])
    assert call(place, "probe:1", "ask", role, "add", 6) == 1, "a peer finds the role that came back"
    place.kill("probe:1")


def test_names_are_what_is_there(place: Runtime, role: str) -> None:
    assert place.names() == (role,)
    place.start([RoleSpec("a", probe.Probe)])
    assert place.names() == ("a", role)
    place.kill("a")
    assert place.names() == (role,)


def test_the_card_is_found_until_it_is_withdrawn(place: Runtime) -> None:
    assert place.card() is None
    place.start([RoleSpec("a", probe.Probe)], card={"budget": np.arange(3)})
    np.testing.assert_array_equal(place.card()["budget"], np.arange(3))
    with pytest.raises(errors.UsageError):
        place.start([RoleSpec("a", probe.Probe)], card={"budget": np.zeros(3)})
    np.testing.assert_array_equal(place.card()["budget"], np.arange(3))
    place.kill("a")
    place.withdraw()
    assert place.card() is None


def test_map_tasks_keeps_order_and_stores_the_shared_value_once(place: Runtime, role: str) -> None:
    shared = np.arange(4.0)
    assert map_tasks(place.compute, probe.plus, [1.0, 2.0, 3.0], shared) == [7.0, 8.0, 9.0]
    assert call(place, role, "total", [1, 2, 3], shared) == [7.0, 8.0, 9.0]


def test_tasks_beside_are_begun_while_others_go_on_and_keep_their_order(place: Runtime) -> None:
    beside = TasksBeside(place.compute, probe.plus, [1.0, 2.0, 3.0], np.arange(4.0))
    for _ in range(2):
        beside.go_on()
    assert beside.results() == [7.0, 8.0, 9.0]


def test_a_task_beside_yields_to_others_and_the_next_task_of_its_process_does_not(place: Runtime) -> None:
    is_apart = sys.platform == "linux" and not isinstance(place, LocalRuntime)
    assert place.compute.submit_beside(probe.yields).result() == is_apart
    assert not any(place.compute.submit(probe.yields).result() for _ in range(3))


def test_a_task_cannot_change_what_it_is_given(place: Runtime) -> None:
    array, shared, items = np.ones(4), place.compute.put(np.ones(4)), [0]
    assert place.compute.submit(probe.flags_of, array, shared).result() == [False, False]
    stored = place.compute.put(items)
    for _ in range(2):
        assert place.compute.submit(probe.grow, items).result() == [0, 1]
        assert place.compute.submit(probe.grow, stored).result() == [0, 1]
    assert items == [0]


def test_gather_waits_for_all_and_raises_the_first_exception(place: Runtime, role: str) -> None:
    handle = place.peers.handle(role)
    calls = [
        handle.call("fail", errors.UsageError("first")),
        handle.call("fail", KeyError("second")),
        handle.call("add", 1),
    ]
    with pytest.raises(errors.UsageError, match="first"):
        gather(calls)
    assert call(place, role, "all") == [1]
