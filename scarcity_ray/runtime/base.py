"""What a runtime is: it starts roles by name, and says what is alive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scarcity_ray.runtime.rpc import Compute, Peers
from scarcity_ray_client import Cause


@dataclass(frozen=True)
class RoleSpec:
    """One role to start.

    Attributes:
        name: Unique in the federation.
        factory: The role's class; called as ``factory(**arguments)`` in the role's own process.
        resources: Custom resources that it reserves, beside `cpus`.
        spread: Whether to place it away from its like; otherwise it runs on `node`.
        node: The node it must run on (its data lie there); None: the runtime's home node.
    """

    name: str
    factory: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    cpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    spread: bool = False
    node: str | None = None


@dataclass(frozen=True)
class TaskSpec:
    """One function to run where its data lies.

    Attributes:
        key: Unique among the tasks that have not ended.
        function: Importable where it runs; it gives two values: a small one, which comes to this process, and
            one that stays in the object store.
        arguments: Those made by `Tasks.put` arrive as their values.
        cpus: That it reserves while it runs, and so the others.
        gpus: A part of one may do.
        resources: Custom resources.
        labels: Of the nodes that may run it.
    """

    key: str
    function: Callable[..., tuple[Any, Any]]
    arguments: Sequence[Any] = ()
    cpus: float = 1.0
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskEnd:
    """How a task ended.

    Attributes:
        key: Which.
        answer: The first of its two values.
        stored: Where the second lies: the reference of a `baskets.submission.StoredRow`.
        num_bytes: What came to this process.
        cause: Why it gave nothing; None if it gave its values.
        detail: What happened then, in one line.
        traceback: The end of an error's traceback.
    """

    key: str
    answer: Any = None
    stored: Any = None
    num_bytes: int = 0
    cause: Cause | None = None
    detail: str = ""
    traceback: str = ""


class Tasks(Protocol):
    """Tasks that run where their resources are, each once: one that dies is told of and not tried again."""

    parallelism: int
    """CPUs for them."""

    def put(self, value: object) -> Any:
        """Store `value` once; the reference may be an argument of any number of tasks."""

    def start(self, spec: TaskSpec) -> None:
        """Run a task as soon as its resources are free."""

    def ended(self, timeout_seconds: float | None) -> list[TaskEnd]:
        """Wait until a task has ended; all that have. Empty after the time-out, or if there is no task."""

    def stop(self, keys: Iterable[str]) -> None:
        """End tasks at once and forget them, by force where they hang."""

    def why_waiting(self, specs: Sequence[TaskSpec]) -> list[str]:
        """What keeps each task from starting, if no node that is there can run it; else nothing."""


class Runtime(Protocol):
    """A place where the roles of one federation live.

    Guarantees (one contract suite, `tests/runtime`, runs on every runtime):
        A role started twice keeps its state.
        A call sees the effects of the caller's earlier calls.
        Arrays arrive read-only and unshared.
        An exception keeps its type.
        A killed role answers ActorLost until it is started again.
        A role that fails as it starts is lost for good.
        Roles start beside one that fails.
        A federation's first roles start all or none.
        The card is found until it is withdrawn.
    """

    peers: Peers
    compute: Compute
    has_begun: bool
    """Whether a federation's first roles were started here, so that they are this runtime's to end."""
    home: str
    """The node of this process, for roles whose data lie on one node's disk."""

    @property
    def machines(self) -> int:
        """How many machines it spans now, each with disks of its own."""

    @property
    def default_basket_actors(self) -> int:
        """How many basket actors suit this machine or cluster."""

    def start(self, specs: Sequence[RoleSpec], *, card: object = None) -> None:
        """Start the roles that are not alive, side by side, and wait until they answer.

        Args:
            specs: The roles.
            card: Given with a federation's first roles, none of which may be there yet: what every driver of
                it finds from now on.

        Raises:
            ActorLost: If a role cannot be placed or fails as it starts; the error says why. The others are
                started all the same, but of a federation's first roles none stays.
            UsageError: If a role is there already and a card is given.
        """

    def tasks(self) -> Tasks:
        """Tasks of one caller's own."""

    def is_alive(self, name: str) -> bool:
        """Whether the role is there: one that is busy, or waits for a node, is alive."""

    def names(self) -> tuple[str, ...]:
        """Names of the roles that are there, sorted."""

    def kill(self, name: str) -> None:
        """End a role at once, as a crash would; nothing happens if it is not there."""

    def card(self) -> Any:
        """The card that the federation was started with, for as long as the cluster runs; else None."""

    def withdraw(self) -> None:
        """Take the card away."""

    def close(self) -> None:
        """Let go of what this runtime opened; roles are ended by `kill`, not here."""
