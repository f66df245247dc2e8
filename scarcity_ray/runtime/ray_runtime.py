"""Roles as named Ray actors, functions as Ray tasks, arrays in the object store."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    OwnerDiedError,
    RayActorError,
    RayTaskError,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from scarcity_ray.errors import ActorLost, ScarcityError, UsageError
from scarcity_ray.roles.handles import Compute, Future, Handle, Peers
from scarcity_ray.runtime.base import RoleSpec

TASK_CPUS = 0.8
"""CPUs of one task: two of them and the idle actors beside them fit on two cores."""
START_TIMEOUT_SECONDS = 120.0


class _RayFuture:
    """A pending actor call or task; Ray's errors become ours."""

    def __init__(self, name: str, reference: Any, on_loss: Callable[[], None] | None = None) -> None:
        self._name = name
        self._reference = reference
        self._on_loss = on_loss

    def result(self) -> Any:
        try:
            return ray.get(self._reference)
        except RayTaskError as error:
            raise _cause(error) from None
        except (RayActorError, ActorDiedError, ActorUnavailableError, OwnerDiedError) as error:
            if self._on_loss is not None:
                self._on_loss()
            raise ActorLost(self._name, _first_line(error)) from None


class _Failed:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> Any:
        raise self._error


class _RayHandle:
    """A named actor, looked up when first called and again after it was lost."""

    def __init__(self, namespace: str, name: str) -> None:
        self._namespace = namespace
        self.name = name
        self._actor: Any = None

    def __reduce__(self) -> tuple[type[_RayHandle], tuple[str, str]]:
        return _RayHandle, (self._namespace, self.name)

    def call(self, method: str, *args: object) -> Future:
        try:
            if self._actor is None:
                self._actor = ray.get_actor(self.name, namespace=self._namespace)
            reference = getattr(self._actor, method).remote(*args)
        except (ValueError, RayActorError) as error:
            self._forget()
            return _Failed(ActorLost(self.name, _first_line(error)))
        return _RayFuture(self.name, reference, self._forget)

    def _forget(self) -> None:
        self._actor = None


class _RayPeers:
    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._handles: dict[str, Handle] = {}

    def __reduce__(self) -> tuple[type[_RayPeers], tuple[str]]:
        return _RayPeers, (self._namespace,)

    def handle(self, name: str) -> Handle:
        return self._handles.setdefault(name, _RayHandle(self._namespace, name))


@ray.remote(num_cpus=TASK_CPUS)  # type: ignore[untyped-decorator]
def _run(function: Callable[..., Any], *args: object) -> Any:
    return function(*args)


class _RayCompute:
    def __init__(self, parallelism: int) -> None:
        self.parallelism = parallelism

    def put(self, value: object) -> Any:
        return ray.put(value)

    def submit(self, function: Callable[..., Any], *args: object) -> Future:
        return _RayFuture(f"task {function.__name__}", _run.remote(function, *args))


class RayRuntime:
    """A `Runtime` on a Ray cluster: one that runs already, or one that it starts on this machine.

    Args:
        namespace: The Ray namespace of the federation's actors.
        address: A cluster's address. Without one, and without ``RAY_ADDRESS`` or a connection that exists
            already, a cluster is started on this machine and ended by `close`.
        detached: Whether the actors outlive this process; otherwise they end with the last handle to them,
            which this runtime keeps.
    """

    def __init__(self, namespace: str, *, address: str | None = None, detached: bool = False) -> None:
        self._namespace = namespace
        self._detached = detached
        self._kept: dict[str, Any] = {}
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _connect(address)
        self.home = ray.get_runtime_context().get_node_id()
        self.peers: Peers = _RayPeers(namespace)
        self.compute: Compute = _RayCompute(self.default_basket_actors)

    @property
    def default_basket_actors(self) -> int:
        """The cluster's CPUs."""
        return max(1, int(ray.cluster_resources().get("CPU", 1)))

    def start(self, specs: list[RoleSpec]) -> None:
        """Start the roles that are not alive, side by side, and wait until they answer."""
        pending = {spec.name: self._create(spec) for spec in specs if not self.is_alive(spec.name)}
        for name, actor in pending.items():
            try:
                ray.get(actor.__ray_ready__.remote(), timeout=START_TIMEOUT_SECONDS)
            except GetTimeoutError:
                ray.kill(actor)
                raise ActorLost(
                    name,
                    f"no node could place it within {START_TIMEOUT_SECONDS:.0f} s: {_demand(specs, name)}",
                    False,
                ) from None
            except RayActorError as error:
                raise _constructor_error(name, error) from None
        self._kept.update(pending)

    def is_alive(self, name: str) -> bool:
        """Whether the role answers calls."""
        try:
            actor = ray.get_actor(name, namespace=self._namespace)
            ray.get(actor.__ray_ready__.remote(), timeout=START_TIMEOUT_SECONDS)
        except (ValueError, RayActorError, GetTimeoutError):
            return False
        return True

    def kill(self, name: str) -> None:
        """End a role at once; nothing happens if it is not there."""
        self._kept.pop(name, None)
        try:
            ray.kill(ray.get_actor(name, namespace=self._namespace))
        except ValueError:
            return

    def close(self) -> None:
        """End the cluster if this runtime started it, else only this connection if it opened it."""
        if self._owns_ray and ray.is_initialized():
            ray.shutdown()

    def _create(self, spec: RoleSpec) -> Any:
        strategy: Any = "SPREAD"
        if not spec.spread:
            strategy = NodeAffinitySchedulingStrategy(self._living_node(spec), soft=False)
        options: dict[str, Any] = {
            "name": spec.name,
            "namespace": self._namespace,
            "num_cpus": spec.cpus,
            "resources": dict(spec.resources),
            "scheduling_strategy": strategy,
            "get_if_exists": True,
        }
        if self._detached:
            options["lifetime"] = "detached"
        return ray.remote(spec.factory).options(**options).remote(**spec.arguments)

    def _living_node(self, spec: RoleSpec) -> str:
        node = spec.node or self.home
        if not any(n["Alive"] and n["NodeID"] == node for n in ray.nodes()):
            raise ActorLost(spec.name, f"it must run on node {node}, which is not in the cluster", False)
        return node


def _connect(address: str | None) -> None:
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options["include_dashboard"] = False
    try:
        ray.init(address=address, **options)
    except ConnectionError as error:
        raise UsageError(f"no Ray cluster answers at {address!r}: {_first_line(error)}") from None


def _cause(error: RayTaskError) -> Exception:
    cause = error.cause
    if isinstance(cause, RayTaskError):
        return _cause(cause)
    return cause if isinstance(cause, Exception) else error


def _constructor_error(name: str, error: RayActorError) -> Exception:
    cause = error.__cause__
    if isinstance(cause, ScarcityError):
        return cause
    return ActorLost(name, _first_line(error), False)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]


def _demand(specs: list[RoleSpec], name: str) -> Mapping[str, float]:
    spec = next(spec for spec in specs if spec.name == name)
    return {"CPU": spec.cpus, **spec.resources}
