"""Calls between roles, and tasks that run beside them.

Roles are plain classes that reach each other by name: ``Call(Accountant.status, now).send(peers,
ACCOUNTANT)`` gives a `Future`. A type checker checks arguments and answer against the method, and the method
against the role's class. The message itself names its method by a string, by which a runtime calls it
(`Handle`). A runtime supplies `Peers` and `Compute`; a role cannot tell which runtime it is.

Contract of a call, in every runtime:

* arguments and results are copied or read-only: neither side can change the other's data afterwards;
* arrays arrive read-only, strided ones as private copies;
* a value in the object store arrives as itself where an argument says so (`HoldsStored`): its reference is
  nested in the argument, since Ray holds up an actor's later calls for a bare pending reference, and fails
  the call for a failed one;
* the callee's exception is raised by `Future.result` with its own type;
* `ActorLost` is raised when the callee's process is gone or the connection to it broke; whether the call was
  executed is then unknown;
* calls of one caller to one role are executed in the order in which they were made.

A connection can break after a role has done a call and before its answer arrives. The caller then repeats
the call under the same `IdempotencyKey`, and the role returns the answer that was lost (`Role.once`). A role
that dies loses its answers together with the effects of the calls, so a repeated call is again done once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar

from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.release import __version__
from scarcity_ray_client.errors import shown

CALLERS = 256
"""Callers whose last answer a role remembers; beyond that the longest silent are forgotten."""

P = ParamSpec("P")
T = TypeVar("T")
Answer = TypeVar("Answer", covariant=True)


@dataclass(frozen=True)
class IdempotencyKey:
    """One call of one caller, however often it is made.

    Attributes:
        caller: Makes one call at a time.
        number: Rises from call to call.
        release: The caller's.
    """

    caller: str
    number: int
    release: str = field(default_factory=lambda: __version__)


@dataclass(frozen=True)
class _Answer:
    number: int
    value: Any = None
    is_known: bool = False


_QUERIES: set[Callable[..., Any]] = set()


def query(method: Callable[P, T]) -> Callable[P, T]:
    """Mark a role's method that changes nothing: it may be repeated, and no answer is kept."""
    _QUERIES.add(method)
    return method


class Role:
    """A role's memory of the last answer to each of its callers.

    Guarantees:
        a_call_made_again_is_answered_and_not_done_again
        a_call_that_failed_is_done_again: A method that raises has changed nothing, or can be resumed.
        an_overtaken_call_is_refused: One that arrives after its caller's next call.
        a_call_of_another_release_is_refused
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[str, _Answer] = OrderedDict()
        self._call: IdempotencyKey | None = None

    def recall(self, call: IdempotencyKey, value: object) -> None:
        """Note the answer that was given to a call before this role was restarted."""
        self._answers[call.caller] = _Answer(call.number, value, True)

    def remembers(self, caller: str) -> bool:
        """Whether the caller's last call would be answered if it came again."""
        return caller in self._answers

    def once(self, call: IdempotencyKey, method: str, *args: object) -> Any:
        """Call `method`, unless this call was answered before; its answer.

        Raises:
            ProtocolViolation: If its caller has made a later call since or is of another release, or for a
                private method.
        """
        release = getattr(call, "release", "0.0")
        if release != __version__:
            raise ProtocolViolation(
                f"{method}: called by release {shown(release)} of scarcity_ray, this actor's is {__version__}"
            )
        if method.startswith("_"):
            raise ProtocolViolation(f"{method} is the role's own")
        last = self._answers.get(call.caller)
        if last is not None and call.number < last.number:
            raise ProtocolViolation(f"{method}: its caller has gone on since it made this call")
        if last is None or call.number > last.number or not last.is_known:
            self._answers[call.caller] = _Answer(call.number)
            self._call = call
            try:
                last = _Answer(call.number, getattr(self, method)(*args), True)
            finally:
                self._call = None
            self._answers[call.caller] = last
        self._answers.move_to_end(call.caller)
        while len(self._answers) > CALLERS:
            self._answers.popitem(last=False)
        return last.value


class HoldsStored(Protocol):
    """An argument of a call some of whose values may still lie in the object store."""

    def fetched(self, get: Callable[[Any], Any]) -> Any:
        """The same with all values here; `get` gives the value of a reference, or None if it is lost."""


def with_values(arguments: Sequence[object], get: Callable[[Any], Any]) -> list[object]:
    """A call's arguments as the role is to see them; a runtime does this where the role lives.

    `HoldsStored` is told by its method: `isinstance` of a protocol took a tenth of a call's time.
    """
    return [value.fetched(get) if hasattr(value, "fetched") else value for value in arguments]


Named = TypeVar("Named", bound=Role, covariant=True)
Called = TypeVar("Called", bound=Role, contravariant=True)


class RoleName(str, Generic[Named]):
    """The name of a role, with its class for the type checker; pickled, it is a plain string."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class Future(Protocol[Answer]):
    """The answer of a call that may still be running."""

    def result(self) -> Answer:
        """Wait for the answer and return it, or raise the callee's exception."""


class Running(Future[Answer], Protocol[Answer]):
    """The answer of a call or a task, which can be looked for without waiting."""

    def is_over(self) -> bool:
        """Whether `result` would answer at once."""


class Handle(Protocol):
    """A role whose methods can be called by their names; how a runtime sends a `Call`."""

    def call(self, method: str, *args: object) -> Running[Any]:
        """Start `method` with `args` on the role; never blocks and never raises."""


class Peers(Protocol):
    """The roles of one federation, by name. Picklable."""

    def handle(self, name: str) -> Handle:
        """The role called `name`; one that is not running answers every call with `ActorLost`."""


class Call(Generic[Called, Answer]):
    """A call that can be sent: a method of a role, such as ``Directory.locate``, with its arguments.

    Raises:
        TypeError: For an argument by name, which the types allow: a message has positions alone.
    """

    __slots__ = ("args", "is_query", "method")

    def __init__(
        self, method: Callable[Concatenate[Called, P], Answer], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        if kwargs:
            raise TypeError(f"{method.__name__}: arguments to a role go by position: {', '.join(kwargs)}")
        self.method = method.__name__
        self.is_query = method in _QUERIES
        self.args: tuple[object, ...] = args

    def send(
        self, peers: Peers, role: RoleName[Called], number: IdempotencyKey | None = None
    ) -> Running[Answer]:
        """Start the call; never blocks and never raises.

        Args:
            number: With it the call is executed once, however often it is sent (`Role.once`). A `query` needs
                none.
        """
        if number is None or self.is_query:
            return peers.handle(role).call(self.method, *self.args)
        return peers.handle(role).call(Role.once.__name__, number, self.method, *self.args)


class Compute(Protocol):
    """A place to run functions beside the caller. Picklable."""

    parallelism: int
    """Tasks that run at once."""

    def put(self, value: object) -> Any:
        """Store `value` once; the reference may be given to any number of `submit` calls."""

    def submit(self, function: Callable[..., T], *args: object) -> Running[T]:
        """Run a module-level function; arguments made by `put` arrive as their values."""

    def submit_beside(self, function: Callable[..., T], *args: object) -> Running[T]:
        """As `submit`, for what nobody waits for yet: it reserves no CPU, and yields to all other work."""

    def on(self, labels: Mapping[str, str]) -> Compute:
        """The same, which runs functions on nodes with these labels alone."""


def gather(futures: Iterable[Future[T]]) -> list[T]:
    """All results, in order; the first exception is raised after every call has ended."""
    results: list[T] = []
    failure: BaseException | None = None
    for future in futures:
        try:
            results.append(future.result())
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return results


def map_tasks(compute: Compute, function: Callable[..., T], items: Sequence[Any], *shared: object) -> list[T]:
    """``[function(item, *shared) for item in items]`` as tasks, with `shared` stored once."""
    return TasksBeside(compute, function, items, *shared).results()


class TasksBeside(Generic[T]):
    """``[function(item, *shared) for item in items]`` as tasks, some of them made while the caller works on.

    Args:
        shared: Values that are stored once.
    """

    def __init__(
        self, compute: Compute, function: Callable[..., T], items: Sequence[Any], *shared: object
    ) -> None:
        self._compute, self._function, self._items = compute, function, items
        self._shared = [compute.put(value) for value in shared]
        self._begun: list[Running[T]] = []

    def go_on(self) -> None:
        """Begin the next ones, of which up to half as many as there are CPUs run at once; to be called often.

        They run at the lowest priority. One CPU has no time left beside other work: none is begun.
        """
        running = sum(not task.is_over() for task in self._begun)
        for item in self._items[len(self._begun) :][: self._compute.parallelism // 2 - running]:
            self._begun.append(self._compute.submit_beside(self._function, item, *self._shared))

    def results(self) -> list[T]:
        """All results, in order; those that are not begun yet are made now, on all CPUs.

        Raises:
            Exception: The first that a task raised, after every task has ended.
        """
        rest = self._items[len(self._begun) :]
        self._begun += [self._compute.submit(self._function, item, *self._shared) for item in rest]
        return gather(self._begun)
