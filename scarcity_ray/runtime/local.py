"""All roles in this process, one call after the other: the debugger, and the oracle of the tests."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from scarcity_ray.errors import ActorLost
from scarcity_ray.roles.handles import Compute, Future, Handle, Peers
from scarcity_ray.runtime.base import RoleSpec


def _isolated(value: Any) -> Any:
    """A deep copy as another process would see it: pickled, with arrays read-only."""
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(head, buffers=[bytes(b.raw()) for b in buffers])


@dataclass(frozen=True)
class _Done:
    """A future whose call has already ended."""

    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class _LocalHandle:
    def __init__(self, roles: dict[str, Any], name: str) -> None:
        self._roles = roles
        self.name = name

    def call(self, method: str, *args: object) -> Future:
        role = self._roles.get(self.name)
        if role is None:
            return _Done(error=ActorLost(self.name, "it is not running"))
        try:
            return _Done(_isolated(getattr(role, method)(*_isolated(args))))
        except Exception as error:
            return _Done(error=error)


class _LocalPeers:
    def __init__(self) -> None:
        self.roles: dict[str, Any] = {}

    def handle(self, name: str) -> Handle:
        return _LocalHandle(self.roles, name)


class _LocalCompute:
    parallelism = 1

    def put(self, value: object) -> Any:
        return value

    def submit(self, function: Callable[..., Any], *args: object) -> Future:
        try:
            return _Done(function(*args))
        except Exception as error:
            return _Done(error=error)


class LocalRuntime:
    """A `Runtime` without processes, clocks or threads: same calls, same results, every time."""

    default_basket_actors = 1
    home = "local"

    def __init__(self) -> None:
        self._peers = _LocalPeers()
        self.peers: Peers = self._peers
        self.compute: Compute = _LocalCompute()

    def start(self, specs: list[RoleSpec]) -> None:
        """Start the roles that are not alive."""
        for spec in specs:
            if spec.name not in self._peers.roles:
                self._peers.roles[spec.name] = spec.factory(**spec.arguments)

    def is_alive(self, name: str) -> bool:
        """Whether the role is there."""
        return name in self._peers.roles

    def kill(self, name: str) -> None:
        """Drop the role and all it held."""
        self._peers.roles.pop(name, None)

    def close(self) -> None:
        """Nothing was opened."""
