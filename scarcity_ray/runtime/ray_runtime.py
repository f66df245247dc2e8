"""Roles as named Ray actors of one namespace, calls as references, functions as tasks."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import ray
from ray import cloudpickle
from ray._private.state import jobs
from ray.core.generated.gcs_pb2 import ActorTableData
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_put
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scarcity_ray.errors import ActorLost, ScarcityError, UsageError
from scarcity_ray.release import __version__
from scarcity_ray.runtime.base import RoleSpec, Tasks, labelled
from scarcity_ray.runtime.card import opened, sealed
from scarcity_ray.runtime.connect import connect, first_line
from scarcity_ray.runtime.ray_metrics import RayMetrics
from scarcity_ray.runtime.ray_tasks import RayTasks, fetch, has_labels, listed, why_unplaceable
from scarcity_ray.runtime.rpc import (
    Compute,
    Handle,
    IdempotencyKey,
    Peers,
    Role,
    Running,
    with_values,
)
from scarcity_ray.runtime.samples import Sample
from scarcity_ray_client.errors import shown

logger = logging.getLogger("scarcity_ray")

TASK_CPUS = 0.8
"""CPUs of one task: two tasks and the idle actors fit on two cores."""
START_TIMEOUT_SECONDS = 120.0
"""After this time without a node, a role is given up."""
PATIENCE_SECONDS = 10.0
"""After this time without a node, a warning names the role."""
DEATH_TIMEOUT_SECONDS = 60.0
"""Time that a cluster may take to notice a death: at once for a process, about 17 s for a node."""
POLL_SECONDS = 0.005
START_ATTEMPTS = 3
_CARDS = b"scarcity_ray"


class RayRuntime:
    """A `Runtime` on a Ray cluster: one that runs already, or one that it starts on this machine.

    Args:
        namespace: The Ray namespace of the federation's actors.
        address: A cluster's address. Without one, an open connection or ``RAY_ADDRESS`` is used, else a
            cluster is started on this machine, which `close` ends.
        detached: Whether the actors outlive this process; otherwise they end with this runtime, which keeps
            the handles to them.

    Raises:
        UsageError: If there is no cluster at the address.
    """

    serves_metrics = True
    is_one_process = False

    def __init__(self, namespace: str, *, address: str | None = None, detached: bool = False) -> None:
        self._namespace = namespace
        self._metrics = RayMetrics()
        self._detached = detached
        self.has_begun = False
        self._kept: dict[str, Any] = {}
        self._owns_connection = connect(address)
        try:
            self.home = ray.get_runtime_context().get_node_id()
            self.driver = ray.get_runtime_context().get_job_id()
            self.peers: Peers = _RayPeers(namespace)
            self.compute: Compute = _RayCompute(self.default_basket_actors)
        except BaseException:
            self.close()
            raise

    @property
    def default_basket_actors(self) -> int:
        """The cluster's CPUs."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    @property
    def gpus(self) -> float:
        """The cluster's GPUs, as Ray counts them."""
        return float(ray.cluster_resources().get("GPU", 0.0))

    @property
    def machines(self) -> int:
        """How many machines the living nodes are on; several nodes may share one."""
        living = (node for node in ray.nodes() if node["Alive"])
        return len({(node["NodeManagerAddress"], node["NodeManagerHostname"]) for node in living})

    def nodes(self) -> tuple[str, ...]:
        """The living nodes, the home node first."""
        living = (node["NodeID"] for node in ray.nodes() if node["Alive"])
        return tuple(sorted(living, key=lambda node: (node != self.home, node)))

    def node_bytes(self) -> tuple[float, ...]:
        """Memory of each living node, that of objects included."""
        living = (node["Resources"] for node in ray.nodes() if node["Alive"])
        return tuple(has.get("memory", 0.0) + has.get("object_store_memory", 0.0) for has in living)

    def start(self, specs: Sequence[RoleSpec], *, card: object = None) -> None:
        """Start the roles that are not running, in parallel, and wait until they answer."""
        if card is None:
            self._await([(spec, self._found(spec) or self._create(spec)) for spec in specs])
            return
        made: list[tuple[RoleSpec, Any]] = []
        is_published = False
        try:
            for spec in specs:
                made.append((spec, self._create(spec, get_if_exists=False)))
            key, value = self._namespace.encode(), sealed(cloudpickle.dumps(card))
            _internal_kv_put(key, value, overwrite=True, namespace=_CARDS)
            is_published = True
            self._await(made)
        except BaseException as failure:
            self._undo(made)
            if is_published:
                self.withdraw()
            if isinstance(failure, ValueError):
                raise UsageError(f"a role is running already: {first_line(failure)}") from None
            raise
        self.has_begun = True

    def tasks(self) -> Tasks:
        """Tasks of one caller's own."""
        return RayTasks(self.default_basket_actors)

    def is_alive(self, name: str) -> bool:
        """Whether the role is running; one that is busy, or waits for a node, is."""
        deadline = time.monotonic() + DEATH_TIMEOUT_SECONDS
        while ray.is_initialized() and time.monotonic() < deadline:
            try:
                actor = find_actor(self._namespace, name)
                ray.get(actor.__ray_ready__.remote(), timeout=DEATH_TIMEOUT_SECONDS)
            except GetTimeoutError:
                return True
            except ActorUnavailableError:
                time.sleep(POLL_SECONDS)
            except ActorDiedError:
                forget(actor)
            except (ValueError, RayActorError):
                return False
            else:
                return True
        return False

    def names(self) -> tuple[str, ...]:
        """Names of the running roles, sorted."""
        if not ray.is_initialized():
            return ()
        actors = ray.util.list_named_actors(all_namespaces=True)
        return tuple(sorted(a["name"] for a in actors if a["namespace"] == self._namespace))

    def kill(self, name: str) -> None:
        """End a role at once; nothing happens if it is not running."""
        self._kept.pop(name, None)
        if not ray.is_initialized():
            return
        try:
            actor = find_actor(self._namespace, name)
            ray.kill(actor)
        except ValueError:
            return
        self._wait_until_gone(name, actor)

    def holder_of(self, path: str) -> str | None:
        """The living node on whose disk a file is; None if none has it."""
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        asked = {
            node: _time_of.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(path)
            for node in nodes
        }
        found: dict[str, int] = {}
        for node, answer in asked.items():
            try:
                written = ray.get(answer, timeout=DEATH_TIMEOUT_SECONDS)
            except (RayError, GetTimeoutError):
                continue  # It died meanwhile.
            if written is not None:
                found[node] = written
        return max(found, key=lambda node: found[node], default=None)

    def card(self) -> Any:
        """The card that the federation was started with, while the cluster runs; else None.

        Raises:
            UsageError: If another release of this package started it.
        """
        card = _internal_kv_get(self._namespace.encode(), namespace=_CARDS)
        return None if card is None else cloudpickle.loads(opened(card))

    def withdraw(self) -> None:
        """Remove the card."""
        if ray.is_initialized():
            _internal_kv_del(self._namespace.encode(), namespace=_CARDS)

    def is_driver_alive(self, driver: str) -> bool:
        """Whether a job of the cluster has not ended."""
        return any(job["JobID"] == driver and not job["IsDead"] for job in jobs())

    def publish(self, samples: Iterable[Sample]) -> None:
        """Give metrics to this node's agent."""
        self._metrics.publish(samples)

    def close(self) -> None:
        """End the cluster if this runtime started it, else only this connection if it opened it."""
        self._kept.clear()
        if self._owns_connection and ray.is_initialized():
            ray.shutdown()

    def _undo(self, made: Sequence[tuple[RoleSpec, Any]]) -> None:
        """End the roles that a failed start had made."""
        for spec, actor in made:
            self._kept.pop(spec.name, None)
            ray.kill(actor)
            self._wait_until_gone(spec.name, actor)

    def _found(self, spec: RoleSpec) -> Any:
        """The actor of this name, which may be dying; None if there is none."""
        try:
            return find_actor(self._namespace, spec.name)
        except ValueError:
            return None

    def _create(self, spec: RoleSpec, *, get_if_exists: bool = True) -> Any:
        strategy: Any = "SPREAD"
        if not spec.spread:
            node = spec.node or self.home
            found = next((n for n in ray.nodes() if n["Alive"] and n["NodeID"] == node), None)
            if found is None:
                raise ActorLost(spec.name, f"it must run on node {node}, which is not in the cluster", False)
            if not has_labels(found, spec.labels):
                lacks = f"it must run on node {node}, which lacks the labels {labelled(spec.labels)}"
                raise ActorLost(spec.name, lacks, False)
            strategy = NodeAffinitySchedulingStrategy(node, soft=False)
        options: dict[str, Any] = {
            "name": spec.name,
            "namespace": self._namespace,
            "num_cpus": spec.cpus,
            "num_gpus": spec.gpus,
            "resources": dict(spec.resources),
            "scheduling_strategy": strategy,
            "get_if_exists": get_if_exists,
        }
        if self._detached:
            options["lifetime"] = "detached"
        if spec.labels and spec.spread:
            options["label_selector"] = dict(spec.labels)
        factory, arguments = on_ray(spec.factory, spec.arguments)
        return ray.remote(factory).options(**options).remote(**arguments)

    def _await(self, started: Sequence[tuple[RoleSpec, Any]]) -> None:
        """Wait until the actors answer, and keep their handles; one that turns out dead is created again.

        Once no actor has come up for a while, all that still wait for a node are given up.
        """
        waiting = {actor.__ray_ready__.remote(): (spec, actor, 1) for spec, actor in started}
        failure: ActorLost | None = None
        warned: set[str] = set()
        is_late = False
        while waiting:
            patience = START_TIMEOUT_SECONDS if is_late else PATIENCE_SECONDS
            ready, _ = ray.wait(list(waiting), timeout=patience)
            if not ready and is_late:
                failure = failure or self._give_up([(spec, actor) for spec, actor, _ in waiting.values()])
                break
            is_late = not ready
            for spec, _, _ in waiting.values() if is_late else ():
                if spec.name not in warned:
                    logger.warning("%s has not started yet: %s", spec.name, _why_waiting(spec))
                warned.add(spec.name)
            for answer in ready:
                spec, actor, attempt = waiting.pop(answer)
                try:
                    again = self._answered(spec, actor, answer, attempt)
                except ActorLost as lost:
                    failure = failure or lost
                    continue
                if again is not None:
                    waiting[again.__ray_ready__.remote()] = spec, again, attempt + 1
        if failure is not None:
            raise failure

    def _answered(self, spec: RoleSpec, actor: Any, answer: Any, attempt: int) -> Any:
        """Keep the handle of an actor that answered (None), or return the actor to wait for in its place."""
        try:
            ray.get(answer)
        except ActorUnschedulableError as error:
            raise ActorLost(spec.name, first_line(error), False) from None
        except ActorUnavailableError:
            return actor
        except RayActorError as error:
            if error.actor_init_failed:
                why = str(error).strip().rsplit("\n", 1)[-1].strip()
                raise ActorLost(spec.name, f"it failed as it started: {why}", False) from None
            forget(actor)
            if attempt == START_ATTEMPTS:
                died = f"it died {attempt} times as it started: {first_line(error)}"
                raise ActorLost(spec.name, died, False) from None
            self._wait_until_gone(spec.name, actor)
            return self._create(spec)
        # Ray keeps the actor alive for this handle; one that was looked up by name would not do.
        if self._kept.get(spec.name) != actor:
            self._kept[spec.name] = actor
        return None

    def _give_up(self, waiting: Sequence[tuple[RoleSpec, Any]]) -> ActorLost:
        """End actors that no node takes; the error for the first."""
        for _, actor in waiting:
            ray.kill(actor)
        spec, _ = waiting[0]
        waited = PATIENCE_SECONDS + START_TIMEOUT_SECONDS
        return ActorLost(spec.name, f"{_why_waiting(spec)}, for {waited:.0f} s", False)

    def _wait_until_gone(self, name: str, actor: Any) -> None:
        """Wait until the name no longer stands for this actor."""
        deadline = time.monotonic() + DEATH_TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            try:
                if find_actor(self._namespace, name) != actor:
                    return
            except ValueError:
                return
            time.sleep(POLL_SECONDS)


def _why_waiting(spec: RoleSpec) -> str:
    """Why a role has not started, by the resources of the cluster's nodes."""
    if why := why_unplaceable(spec.demand, spec.labels):
        return why
    if not spec.demand:
        return "its process was slow to start"
    return f"it waited for a node with {listed(spec.demand)} free, or its process was slow to start"


class _OnRay(Role):
    """What a role's class is on Ray: of its driver's release, it fetches references nested in arguments.

    A node may have another release than the driver, whose class it then finds under the same name.
    """

    def __init__(self, *, drivers_release: str, **arguments: Any) -> None:
        if drivers_release != __version__:
            raise UsageError(
                f"this node has release {__version__} of scarcity_ray, the driver {shown(drivers_release)}: "
                "install the same on all nodes"
            )
        super().__init__(**arguments)

    def once(self, call: IdempotencyKey, method: str, *args: object) -> Any:
        return super().once(call, method, *with_values(args, fetch))


def on_ray(
    factory: Callable[..., Any], arguments: Mapping[str, Any]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The class to start in the place of a role's, and its arguments; any other factory stays as it is."""
    if not (isinstance(factory, type) and issubclass(factory, Role)):
        return factory, dict(arguments)
    made = type(factory.__name__, (_OnRay, factory), {"__doc__": factory.__doc__})
    return made, {**arguments, "drivers_release": __version__}


def find_actor(namespace: str, name: str) -> Any:
    """The living (or starting, or dying) actor of this name.

    Ray caches names in each process, and keeps dead actors that are not detached there, so that a restarted
    actor would not be found. Actors that this process knows to be dead are removed from the cache.

    Raises:
        ValueError: If there is none.
    """
    while True:
        actor = ray.get_actor(name, namespace=namespace)
        if not _is_known_dead(actor):
            return actor
        forget(actor)
        time.sleep(0.002)


def forget(actor: Any) -> None:
    """Remove a dead actor from this process's cache, so that its name finds its successor."""
    ray.kill(actor)


def _is_known_dead(actor: Any) -> bool:
    """Whether Ray has told this process that an actor died.

    Ray has no public way to ask that without a call to the actor. If this private one is missing the answer
    is False; the next call then raises `ActorLost` (`_RayFuture`), and a later lookup finds the successor.
    """
    state = getattr(actor, "_get_local_state", None)
    return state is not None and state() == ActorTableData.DEAD


def is_death(error: BaseException) -> bool:
    """Whether an error says that the called actor is dead, and not another one that it called in turn."""
    return isinstance(error, ActorDiedError) and not isinstance(error, RayTaskError)


@dataclass
class _RayFuture:
    """A pending call of `actor`, or a task if that is None; Ray's errors are `translated`."""

    name: str
    reference: Any
    actor: Any = None

    def result(self) -> Any:
        try:
            return ray.get(self.reference)
        except RayError as error:
            if self.actor is not None and is_death(error):
                forget(self.actor)
            raise translated(self.name, error) from None

    def is_over(self) -> bool:
        if self.actor is not None:
            return bool(self._end.done())
        ready, _ = ray.wait([self.reference], timeout=0, fetch_local=False)
        return bool(ready)

    @cached_property
    def _end(self) -> Any:
        """What Ray tells when the call ends, and so fetches the answer; asking it takes 0.1 ms each time."""
        return self.reference.future()


@dataclass(frozen=True)
class _Failed:
    """A call that could not be made."""

    error: Exception

    def result(self) -> Any:
        raise self.error

    def is_over(self) -> bool:
        return True


@dataclass(frozen=True)
class _RayHandle:
    """A named actor, looked up at each call (30 us from Ray's cache), so that a restarted one is found."""

    namespace: str
    name: str

    def call(self, method: str, *args: object) -> Running[Any]:
        if not ray.is_initialized():
            return _Failed(ActorLost(self.name, "this process is not connected to Ray any more", False))
        try:
            actor = find_actor(self.namespace, self.name)
        except ValueError:
            return _Failed(ActorLost(self.name, "it is not running"))
        except RayError as error:
            return _Failed(translated(self.name, error))
        try:
            # Its name in Ray's tools, such as ``basket.submit``, also within `Role.once`.
            shown = f"{self.name.partition(':')[0]}.{args[1] if method == 'once' else method}"
            return _RayFuture(self.name, getattr(actor, method).options(name=shown).remote(*args), actor)
        except RayError as error:
            return _Failed(translated(self.name, error))
        except Exception as error:
            return _Failed(error)


@dataclass(frozen=True)
class _RayPeers:
    namespace: str

    def handle(self, name: str) -> Handle:
        return _RayHandle(self.namespace, name)


@ray.remote(num_cpus=TASK_CPUS)  # type: ignore[untyped-decorator]
def _run(function: Callable[..., Any], *args: object) -> Any:
    return function(*args)


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _run_beside(function: Callable[..., Any], *args: object) -> Any:
    """Run a function in a thread of its own: what one has yielded it cannot take back for a next task."""
    with ThreadPoolExecutor(1, initializer=_yield_to_others) as thread:
        return thread.submit(function, *args).result()


def _yield_to_others() -> None:
    """Have this thread run only where a processor has nothing else to do, if the system can."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


@ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
def _time_of(path: str) -> int | None:
    """When a file on this node, or SQLite's log beside it, was written last; None: there is none."""
    times = [os.stat(name).st_mtime_ns for name in (path, f"{path}-wal") if os.path.exists(name)]
    return max(times) if os.path.exists(path) else None


@dataclass
class _RayCompute:
    """Functions as tasks, which Ray retries three times if they die; values in the object store."""

    parallelism: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def put(self, value: object) -> Any:
        return ray.put(value)

    def submit(self, function: Callable[..., Any], *args: object) -> Running[Any]:
        return self._submitted(_run, function, *args)

    def submit_beside(self, function: Callable[..., Any], *args: object) -> Running[Any]:
        return self._submitted(_run_beside, function, *args)

    def _submitted(self, run: Any, function: Callable[..., Any], *args: object) -> Running[Any]:
        options = {"label_selector": dict(self.labels)} if self.labels else {}
        return _RayFuture(f"task {function.__name__}", run.options(**options).remote(function, *args))

    def on(self, labels: Mapping[str, str]) -> Compute:
        return replace(self, labels=labels)


def translated(name: str, error: RayError) -> Exception:
    """The callee's own exception, or `ActorLost` for any error of Ray's.

    One that is no `ScarcityError` gets the callee's traceback as a note.
    """
    while isinstance(error, RayTaskError):
        cause = error.cause
        if not isinstance(cause, RayError):
            if not isinstance(cause, ScarcityError):
                cause.add_note(f"in {name}: {error}")
            return cause if isinstance(cause, Exception) else error
        error = cause
    return ActorLost(name, first_line(error))
