"""Roles without a runtime: handles that call plain objects, keep a log, and fail on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from scarcity_ray.errors import ActorLost


@dataclass
class Answer:
    """A future that has ended."""

    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value

    def is_over(self) -> bool:
        return True


@dataclass
class FakePeers:
    """Calls plain objects by name.

    Attributes:
        roles: Name to object; a name that is not there is lost.
        log: (role, method, arguments) in the order of the calls.
        faults: (role, method) to what happens instead of the call: a callable that is given the arguments and
            the method itself.
    """

    roles: dict[str, Any] = field(default_factory=dict)
    log: list[tuple[str, str, tuple[Any, ...]]] = field(default_factory=list)
    faults: dict[tuple[str, str], Callable[..., Any]] = field(default_factory=dict)

    def handle(self, name: str) -> FakeHandle:
        return FakeHandle(self, name)

    def lose(self, name: str, method: str, *, after: bool = False) -> None:
        """Lose the role at that method, before or after it has done its work."""

        def lost(args: tuple[Any, ...], work: Callable[..., Any]) -> Any:
            if after:
                work(*args)
            raise ActorLost(name, method)

        self.faults[name, method] = lost

    def say(self, name: str, method: str, answer: Any) -> None:
        """Give `answer`, or what it makes of the honest one, in place of it."""

        def spoken(args: tuple[Any, ...], work: Callable[..., Any]) -> Any:
            return answer(work(*args)) if callable(answer) else answer

        self.faults[name, method] = spoken

    def calls(self, method: str) -> list[int]:
        """Positions of a method's calls in the log."""
        return [i for i, (_, called, _) in enumerate(self.log) if called == method]


@dataclass
class FakeHandle:
    peers: FakePeers
    name: str

    def call(self, method: str, *args: object) -> Answer:
        self.peers.log.append((self.name, method, args))
        role = self.peers.roles.get(self.name)
        if role is None:
            return Answer(error=ActorLost(self.name))
        try:
            fault = self.peers.faults.get((self.name, method))
            work = getattr(role, method)
            return Answer(work(*args) if fault is None else fault(args, work))
        except Exception as error:
            return Answer(error=error)


@dataclass(frozen=True)
class Reference:
    value: Any


@dataclass
class FakeCompute:
    """Runs tasks at once, and keeps what it stored."""

    parallelism: int = 1
    values: list[Any] = field(default_factory=list)
    tasks: int = 0

    @property
    def stored(self) -> int:
        return len(self.values)

    def put(self, value: object) -> Reference:
        self.values.append(value)
        return Reference(value)

    def submit(self, function: Callable[..., Any], *args: object) -> Answer:
        self.tasks += 1
        try:
            return Answer(function(*[a.value if isinstance(a, Reference) else a for a in args]))
        except Exception as error:
            return Answer(error=error)


@pytest.fixture
def peers() -> FakePeers:
    return FakePeers()


@pytest.fixture
def compute_of() -> Callable[[int], FakeCompute]:
    return FakeCompute
