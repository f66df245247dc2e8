"""The interface of a runtime, which starts roles by name and finds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from scarcity_ray.runtime.rpc import Compute, Peers
from scarcity_ray.runtime.samples import Sample
from scarcity_ray_client import Cause
from scarcity_ray_client.loading import SourceFolder


def labelled(labels: Mapping[str, str]) -> str:
    """Labels of nodes in words.

    >>> labelled({"region": "eu", "disk": "ssd"})
    'region=eu, disk=ssd'
    """
    return ", ".join(f"{name}={value}" for name, value in labels.items())


@dataclass(frozen=True)
class RoleSpec:
    """One role to start.

    Attributes:
        name: Unique in the federation.
        factory: The role's class; called as ``factory(**arguments)`` in the role's own process.
        resources: Custom resources that it reserves, beside `cpus`.
        labels: Of the nodes that may hold it.
        spread: Whether to spread such roles over the nodes; otherwise it runs on `node`.
        node: The node that holds its data; None: the runtime's home node.
        gpus: That it reserves; a part of one may do.
    """

    name: str
    factory: Callable[..., Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    cpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)
    spread: bool = False
    node: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    gpus: float = 0.0

    @property
    def demand(self) -> dict[str, float]:
        """What it reserves, by the name of the resource."""
        return demand(self.cpus, self.gpus, self.resources)


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

    @property
    def demand(self) -> dict[str, float]:
        """What it reserves, by the name of the resource."""
        return demand(self.cpus, self.gpus, self.resources)


def demand(cpus: float, gpus: float, resources: Mapping[str, float]) -> dict[str, float]:
    """Resources by Ray's names, without those of which nothing is asked.

    >>> demand(1.0, 0.0, {"gold": 2.0})
    {'CPU': 1.0, 'gold': 2.0}
    """
    asked = {"CPU": cpus, "GPU": gpus, **resources}
    return {name: amount for name, amount in asked.items() if amount}


@dataclass(frozen=True)
class TaskEnd:
    """How a task ended.

    Attributes:
        key: Which.
        answer: The first of its two values.
        stored: Where the second lies: the reference of `baskets.submission.StoredRow`s.
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

    def put(self, value: object, sources: SourceFolder | None = None) -> Any:
        """Store `value` once; the reference may be an argument of any number of tasks.

        Args:
            value: Anything that can be pickled.
            sources: The modules that it needs where it is read, if they are not installed there.
        """

    def fetch(self, stored: Any) -> tuple[Any, int]:
        """The value of a `TaskEnd.stored`, None if it is lost; and the bytes that came here for it now."""

    def start(self, spec: TaskSpec) -> None:
        """Run a task as soon as its resources are free."""

    def ended(self, timeout_seconds: float | None) -> list[TaskEnd]:
        """Wait until a task has ended; all that have. Empty after the time-out, or if there is no task."""

    def stop(self, keys: Iterable[str]) -> None:
        """End tasks at once and forget them, by force where they hang."""

    def why_waiting(self, specs: Sequence[TaskSpec]) -> list[str]:
        """What keeps each task from starting, if no node that is there can run it; else nothing."""


class Runtime(Protocol):
    """A place where the roles of one federation live; `tests/runtime` holds every runtime to it.

    Guarantees:
        a_role_started_twice_keeps_its_state
        a_call_sees_the_effects_of_the_callers_earlier_calls
        arrays_arrive_read_only_and_unshared
        an_exception_keeps_its_type
        A killed role answers ActorLost until it is started again.
        a_role_that_fails_as_it_starts_is_lost_for_good
        roles_start_beside_one_that_fails
        a_federations_first_roles_start_all_or_none
        the_card_is_found_until_it_is_withdrawn
    """

    peers: Peers
    compute: Compute
    has_begun: bool
    """Whether this runtime has started a federation's first roles."""
    home: str
    """The node of this process, for roles with data on one node's disk."""
    driver: str
    """This process, as a driver."""
    serves_metrics: bool
    """Whether anything comes of `publish`."""
    is_one_process: bool
    """Whether all roles are in this process."""

    @property
    def machines(self) -> int:
        """How many machines it spans now, each with disks of its own."""

    def nodes(self) -> tuple[str, ...]:
        """The living nodes, the home node first."""

    def node_bytes(self) -> tuple[float, ...]:
        """Memory of each living node, that of objects included; empty if it is not known."""

    @property
    def gpus(self) -> float | None:
        """GPUs of the living nodes; None: nobody counts them, and a role finds its own."""

    @property
    def default_basket_actors(self) -> int:
        """How many basket actors suit this machine or cluster."""

    def start(self, specs: Sequence[RoleSpec], *, card: object = None) -> None:
        """Start the roles that are not running, in parallel, and wait until they answer.

        Args:
            card: Given with a federation's first roles, none of which may be running yet: what every driver
                that attaches to the federation gets from `card`.

        Raises:
            ActorLost: If a role cannot be placed or fails as it starts. The other roles are started all the
                same; of a federation's first roles none stays.
            UsageError: If a card is given and a role is running already.
        """

    def tasks(self) -> Tasks:
        """Tasks of one caller's own."""

    def is_alive(self, name: str) -> bool:
        """Whether the role is running; one that is busy, or waits for a node, is."""

    def names(self) -> tuple[str, ...]:
        """Names of the running roles, sorted."""

    def kill(self, name: str) -> None:
        """End a role at once, as a crash would; nothing happens if it is not running."""

    def holder_of(self, path: str) -> str | None:
        """The living node on whose disk a file is; None if none has it.

        Where several have one, that which was written last.
        """

    def card(self) -> Any:
        """The card that the federation was started with; None if there is none."""

    def withdraw(self) -> None:
        """Remove the card."""

    def is_driver_alive(self, driver: str) -> bool:
        """Whether the process that is `driver` is there."""

    def publish(self, samples: Iterable[Sample]) -> None:
        """Give metrics to whatever serves the runtime's own to a scraper; nothing where there is none."""

    def close(self) -> None:
        """Release what this runtime opened; roles are ended by `kill`, not here."""
