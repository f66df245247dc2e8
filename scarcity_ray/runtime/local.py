"""All roles in this process, one call after the other: the debugger, and the oracle of the tests."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from scarcity_ray.errors import ActorLost, UsageError
from scarcity_ray.runtime.base import RoleSpec, TaskEnd, Tasks, TaskSpec, labelled
from scarcity_ray.runtime.rpc import Compute, Handle, Peers, Running, with_values
from scarcity_ray.runtime.samples import Sample
from scarcity_ray_client import Cause
from scarcity_ray_client.loading import SourceFolder

logger = logging.getLogger("scarcity_ray")


class _Stored:
    """A value as the object store keeps it: pickled, with arrays as bytes that all loaded copies share."""

    def __init__(self, value: Any) -> None:
        buffers: list[pickle.PickleBuffer] = []
        self._head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
        self._buffers = [bytes(buffer.raw()) for buffer in buffers]

    def load(self) -> Any:
        return pickle.loads(self._head, buffers=self._buffers)


def _isolated(value: Any) -> Any:
    """A deep copy as another process would see it, with contiguous arrays read-only."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(head, buffers=[_fixed(buffer) for buffer in buffers])


def _fixed(buffer: pickle.PickleBuffer) -> bytes | pickle.PickleBuffer:
    """Memory that nobody can write to: bytes, that of a read-only array which owns it, or such an array's.

    NumPy asks for large pages, where ``bytes`` would take a page fault every 4 KB.
    """
    owner: object = buffer
    while True:
        if isinstance(owner, pickle.PickleBuffer):
            owner = owner.raw().obj
        elif isinstance(owner, memoryview):
            owner = owner.obj
        elif isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        else:
            break
    is_fixed = isinstance(owner, np.ndarray) and owner.flags.owndata and not owner.flags.writeable
    if is_fixed or isinstance(owner, bytes):
        return buffer
    copied = np.array(np.frombuffer(buffer.raw(), np.uint8))
    copied.setflags(write=False)
    return pickle.PickleBuffer(copied.data)


@dataclass(frozen=True)
class _Done:
    """A future whose call has already ended."""

    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value

    def is_over(self) -> bool:
        return True


class Network(Protocol):
    """What carries the calls between roles; the tests' one delays and loses some (`tests/simulation`)."""

    def carry(self, role: str, method: str, deliver: Callable[[], Running[Any]]) -> Running[Any]:
        """Have a call done: `deliver` does it, now or later, once or never; its answer."""


@dataclass(frozen=True)
class _LocalHandle:
    roles: dict[str, Any]
    name: str
    network: Network | None

    def call(self, method: str, *args: object) -> Running[Any]:
        try:
            sent = _isolated(args)
        except Exception as error:
            return _Done(error=error)
        if self.network is None:
            return self._deliver(method, sent)
        return self.network.carry(self.name, method, partial(self._deliver, method, sent))

    def _deliver(self, method: str, sent: tuple[object, ...]) -> Running[Any]:
        role = self.roles.get(self.name)
        if role is None:
            return _Done(error=ActorLost(self.name, "it is not running"))
        try:
            return _Done(_isolated(getattr(role, method)(*with_values(sent, _itself))))
        except Exception as error:
            return _Done(error=error)


class _LocalPeers:
    def __init__(self, network: Network | None) -> None:
        self.roles: dict[str, Any] = {}
        self._network = network

    def handle(self, name: str) -> Handle:
        return _LocalHandle(self.roles, name, self._network)


class _LocalCompute:
    parallelism = 1

    def put(self, value: object) -> Any:
        return _Stored(value)

    def submit(self, function: Callable[..., Any], *args: object) -> Running[Any]:
        try:
            loaded = [arg.load() if isinstance(arg, _Stored) else _isolated(arg) for arg in args]
            return _Done(_isolated(function(*loaded)))
        except Exception as error:
            return _Done(error=error)

    submit_beside = submit

    def on(self, labels: Mapping[str, str]) -> Compute:
        return self


def _itself(reference: Any) -> Any:
    return reference


class _LocalTasks:
    """Each task runs while it is waited for, and cannot be ended before it ends by itself."""

    parallelism = 1

    def __init__(self) -> None:
        self._waiting: dict[str, TaskSpec] = {}

    def put(self, value: object, sources: SourceFolder | None = None) -> Any:
        return copy.deepcopy(value)

    def fetch(self, stored: Any) -> tuple[Any, int]:
        return stored, 0

    def start(self, spec: TaskSpec) -> None:
        self._waiting[spec.key] = spec

    def ended(self, timeout_seconds: float | None) -> list[TaskEnd]:
        if not self._waiting or (timeout_seconds is not None and timeout_seconds <= 0):
            return []
        key = next(iter(self._waiting))
        spec = self._waiting.pop(key)
        try:
            answer, stored = spec.function(*copy.deepcopy(tuple(spec.arguments)))
        except Exception as error:
            return [TaskEnd(key, cause=Cause.RAISED, detail=repr(error), traceback=traceback.format_exc())]
        return [TaskEnd(key, answer, stored)]

    def stop(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._waiting.pop(key, None)

    def why_waiting(self, specs: Sequence[TaskSpec]) -> list[str]:
        return [""] * len(specs)


class LocalRuntime:
    """A `Runtime` without processes, clocks or threads: same calls, same results, every time.

    Args:
        network: Carries the calls; None: each is done as it is made.
    """

    default_basket_actors = 1
    gpus = None
    home = driver = "local"
    machines = 1
    serves_metrics = False
    is_one_process = True

    def __init__(self, network: Network | None = None) -> None:
        self.has_begun = False
        self._peers = _LocalPeers(network)
        self.peers: Peers = self._peers
        self.compute: Compute = _LocalCompute()
        self._card: _Stored | None = None

    def start(self, specs: Sequence[RoleSpec], *, card: object = None) -> None:
        """Start the roles that are not alive."""
        if card is None:
            self._start(specs)
            return
        taken = [spec.name for spec in specs if spec.name in self._peers.roles]
        if taken:
            raise UsageError(f"role {taken[0]!r} is running already")
        try:
            self._start(specs)
        except BaseException:
            for spec in specs:
                self.kill(spec.name)
            raise
        self._card = _Stored(card)
        self.has_begun = True

    def nodes(self) -> tuple[str, ...]:
        """This process's one."""
        return (self.home,)

    def node_bytes(self) -> tuple[float, ...]:
        """This machine's memory, or what a container may have of it."""
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        limit = Path("/sys/fs/cgroup/memory.max")
        allowed = limit.read_text().strip() if limit.is_file() else ""
        return (float(min(machine, int(allowed)) if allowed.isdigit() else machine),)

    def tasks(self) -> Tasks:
        """Tasks of one caller's own."""
        return _LocalTasks()

    def is_alive(self, name: str) -> bool:
        """Whether the role is there."""
        return name in self._peers.roles

    def names(self) -> tuple[str, ...]:
        """Names of the roles that are there, sorted."""
        return tuple(sorted(self._peers.roles))

    def kill(self, name: str) -> None:
        """Drop the role; what the operating system would free at the end of a process is freed."""
        role = self._peers.roles.pop(name, None)
        if hasattr(role, "close"):
            role.close()

    def holder_of(self, path: str) -> str | None:
        """This process's node, if the file is there."""
        return self.home if os.path.exists(path) else None

    def card(self) -> Any:
        """The card that the federation was started with; None if there is none."""
        return None if self._card is None else self._card.load()

    def withdraw(self) -> None:
        """Take the card away."""
        self._card = None

    def is_driver_alive(self, driver: str) -> bool:
        """All drivers are this process."""
        return driver == self.driver

    def publish(self, samples: Iterable[Sample]) -> None:
        """Do nothing: nobody scrapes this process."""

    def close(self) -> None:
        """Do nothing: this runtime opens nothing."""

    def _start(self, specs: Sequence[RoleSpec]) -> None:
        failure: ActorLost | None = None
        for spec in specs:
            try:
                if spec.name not in self._peers.roles:
                    if spec.labels:
                        logger.warning(
                            "%s is placed on nodes with %s: not heeded, as all is in this process",
                            spec.name,
                            labelled(spec.labels),
                        )
                    self._peers.roles[spec.name] = spec.factory(**spec.arguments)
            except Exception as error:
                if failure is None:
                    failure = ActorLost(spec.name, f"it failed as it started: {error!r}", False)
                    failure.__cause__ = error
        if failure is not None:
            raise failure
