"""Tasks on Ray: each once, where its resources and labels are, with results that stay in the object store."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import cloudpickle
from ray._private.state import available_resources_per_node
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError

from scarcity_ray.runtime.base import TaskEnd, TaskSpec, labelled
from scarcity_ray.runtime.connect import first_line
from scarcity_ray_client import Cause
from scarcity_ray_client.loading import SourceFolder

logger = logging.getLogger("scarcity_ray")

PATIENCE_SECONDS = 10.0
"""Without any task's end for so long, those that no node can run are named."""
FETCH_SECONDS = 120.0
"""A result that was there and does not arrive by then is lost."""
INLINED_BYTES = 100 * 1024
"""Results up to this size Ray sends to the process that started the task, wherever they are wanted."""
MOST_TOLD = 4000


@ray.remote(num_returns=2, max_retries=0)  # type: ignore[untyped-decorator]
def _run(function: Callable[..., tuple[Any, Any]], *args: object) -> tuple[Any, Any]:
    answer, stored = function(*args)
    return (answer, getattr(stored, "nbytes", 0)), stored


@dataclass(frozen=True)
class _Sourced:
    """A pickled value that a process reads once its modules are on its path; there it is the value itself."""

    pickled: bytes
    sources: SourceFolder

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[bytes, SourceFolder]]:
        return _read_sourced, (self.pickled, self.sources)


def _read_sourced(pickled: bytes, sources: SourceFolder) -> Any:
    sources.install()
    return cloudpickle.loads(pickled)


class RayTasks:
    """`runtime.base.Tasks` on a cluster.

    The driver holds references to what stays in the store, and reads the small answers only; `ray.wait` tells
    which tasks are over, and pulls no result here.
    """

    def __init__(self, parallelism: int) -> None:
        self.parallelism = parallelism
        self._running: dict[Any, tuple[TaskSpec, Any]] = {}
        self._refused: list[TaskEnd] = []
        self._warned: set[str] = set()

    def put(self, value: object, sources: SourceFolder | None = None) -> Any:
        """Store `value` once, with the modules that it needs where it is read."""
        return ray.put(value if sources is None else _Sourced(cloudpickle.dumps(value), sources))

    def fetch(self, stored: Any) -> tuple[Any, int]:
        """What a task has stored, None if it is lost; and the bytes that came here for it now."""
        value = fetch(stored)
        size = getattr(value, "nbytes", 0)
        return value, size if size > INLINED_BYTES else 0

    def start(self, spec: TaskSpec) -> None:
        """Run a task as soon as its resources are free."""
        options: dict[str, Any] = {
            "name": f"{spec.function.__name__}.{spec.key}",
            "num_cpus": spec.cpus,
            "num_gpus": spec.gpus,
            "resources": {name: amount for name, amount in spec.resources.items() if amount},
        }
        if spec.labels:
            options["label_selector"] = dict(spec.labels)
        try:
            answer, stored = _run.options(**options).remote(spec.function, *spec.arguments)
        except ValueError as error:
            why = f"Ray does not take what it needs of a node: {first_line(error)}"
            self._refused.append(TaskEnd(spec.key, cause=Cause.RAISED, detail=why[:500]))
            return
        self._running[answer] = spec, stored

    def ended(self, timeout_seconds: float | None) -> list[TaskEnd]:
        """Wait until a task has ended; all that have."""
        if self._refused:
            refused, self._refused = self._refused, []
            return refused
        references = list(self._running)
        if not references or (timeout_seconds is not None and timeout_seconds <= 0):
            return []
        patience = PATIENCE_SECONDS if timeout_seconds is None else min(PATIENCE_SECONDS, timeout_seconds)
        ready, _ = ray.wait(references, timeout=patience, fetch_local=False)
        if ready:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0, fetch_local=False)
        else:
            self._warn()
        return [self._end(reference) for reference in ready]

    def stop(self, keys: Iterable[str]) -> None:
        """End tasks at once, by force where they hang, and forget them."""
        ending = set(keys)
        for reference in [ref for ref, (spec, _) in self._running.items() if spec.key in ending]:
            del self._running[reference]
            ray.cancel(reference, force=True)

    def why_waiting(self, specs: Sequence[TaskSpec]) -> list[str]:
        """What keeps each task from starting, if no node that is there can run it."""
        nodes = ray.nodes()
        beside = self._beside_actors(nodes)
        told: list[str] = []
        for spec in specs:
            why = why_unplaceable(spec.demand, spec.labels, nodes)
            if not why and beside and why_unplaceable(spec.demand, spec.labels, beside):
                why = (
                    f"no node has {listed(spec.demand)} free beside the actors that are on it: add a node "
                    "with more CPUs, or ask for less (num_cpus of its client, runtime.cpus_per_actor)"
                )
            told.append(why)
        return told

    def _beside_actors(self, nodes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The nodes with what is free on them, if what is taken is less than any task here would take."""
        least = min((spec.cpus for spec, _ in self._running.values()), default=0.0)
        free = available_resources_per_node()
        left = [{**node, "Resources": free.get(node["NodeID"], {})} for node in nodes if node["Alive"]]
        total = {node["NodeID"]: node["Resources"].get("CPU", 0.0) for node in nodes}
        taken = [total[node["NodeID"]] - node["Resources"].get("CPU", 0.0) for node in left]
        return left if max(taken, default=least) < least else []

    def _end(self, reference: Any) -> TaskEnd:
        spec, stored = self._running.pop(reference)
        try:
            answer, size = ray.get(reference)
        except RayError as error:
            text, is_raised = str(error).strip(), isinstance(error, RayTaskError)
            return TaskEnd(
                spec.key,
                cause=_cause(error),
                detail=(text.rpartition("\n")[2] if is_raised else first_line(error))[:500],
                traceback=text[-MOST_TOLD:] if is_raised else "",
            )
        inlined = size if size <= INLINED_BYTES else 0
        return TaskEnd(spec.key, answer, stored, len(pickle.dumps(answer)) + inlined)

    def _warn(self) -> None:
        specs = [spec for spec, _ in self._running.values() if spec.key not in self._warned]
        for spec, why in zip(specs, self.why_waiting(specs), strict=True):
            if why:
                logger.warning("%s waits: %s", spec.key, why)
                self._warned.add(spec.key)


def _cause(error: RayError) -> Cause:
    if isinstance(error, OutOfMemoryError):
        return Cause.OUT_OF_MEMORY
    return Cause.RAISED if isinstance(error, RayTaskError) else Cause.LOST


def fetch(reference: Any) -> Any:
    """The value of a reference whose task has ended; None if it is lost."""
    try:
        return ray.get(reference, timeout=FETCH_SECONDS)
    except RayError:
        return None


def listed(demand: Mapping[str, float]) -> str:
    """Resources in words."""
    return ", ".join(f"{name} {amount:g}" for name, amount in demand.items())


def why_unplaceable(
    demand: Mapping[str, float],
    labels: Mapping[str, str] | None = None,
    nodes: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Why no node can run what demands this; nothing if one can. `nodes` are Ray's, those of now if None."""
    living = [node for node in (ray.nodes() if nodes is None else nodes) if node["Alive"]]
    wanted = labelled(labels or {})
    named = [node for node in living if has_labels(node, labels or {})]
    if not named:
        return f"no node has the labels {wanted} (ray start --labels {wanted.replace(', ', ',')})"
    if any(all(node["Resources"].get(n, 0.0) >= amount for n, amount in demand.items()) for node in named):
        return ""
    return f"no node{f' with {wanted}' if wanted else ''} offered {listed(demand)}"


def has_labels(node: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether one of Ray's nodes has all these labels."""
    named = node.get("Labels", {})
    return all(named.get(name) == value for name, value in labels.items())
