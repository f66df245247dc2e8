"""What a role sees of the others: handles to call, and a place to run tasks.

Roles are plain classes that reach each other by name:
``Call(Accountant.status, now).send(peers, ACCOUNTANT)`` gives a `Future`. A type checker holds the
arguments and the answer to the method, and the method to the class of the role that has the name. The message
itself names its method by a string, by which a runtime calls it (`Handle`). Functions run beside a role
through `Compute`. A runtime supplies `Peers` and `Compute`; which one it is, a role cannot tell.

Contract of a call, in every runtime:

* arguments and results are copied or read-only: neither side can change the other's data afterwards;
* arrays arrive read-only, strided ones as private copies: whoever wants to change one makes a copy;
* a value that lies in the object store arrives as itself where an argument says so (`HoldsStored`): its
  reference travels nested in the argument, since Ray holds up an actor's later calls for a bare one that is
  pending, and fails the call for one that failed;
* the callee's exception is raised by `Future.result` with its own type;
* `ActorLost` is raised when the callee's process is gone or the connection to it broke; whether the call was
  executed is then unknown, and `Role.once` is how to make it again;
* calls of one caller to one role are executed in the order in which they were made.

A connection can break when a role has done what it was asked and its answer is on the way; the caller cannot
tell that from a call that never arrived (Ray's ``ActorUnavailableError`` says nothing about it). It makes the
call again under the same `CallId`, and a role that has done it gives the answer that was lost (`Role.once`).
What a role remembers dies with it, and so does what the call did: whoever finds it back, or made anew, makes
the call again and has it done once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, runtime_checkable

from scarcity_ray.errors import ProtocolViolation

CALLERS = 256
"""Callers whose last answer a role remembers; beyond them the longest silent are forgotten."""

P = ParamSpec("P")
T = TypeVar("T")
Answer = TypeVar("Answer", covariant=True)


@dataclass(frozen=True)
class CallId:
    """One call of one caller, however often it is made.

    Attributes:
        caller: Who calls; it makes its next call when it has the answer to the last, or has given it up.
        number: Rises from call to call.
    """

    caller: str
    number: int


@dataclass(frozen=True)
class _Answer:
    number: int
    value: Any = None
    is_known: bool = False


_QUERIES: set[Callable[..., Any]] = set()


def query(method: Callable[P, T]) -> Callable[P, T]:
    """Mark a role's method that changes nothing, so that it may be done again and no answer is kept."""
    _QUERIES.add(method)
    return method


class Role:
    """A role's memory of the last answer to each of its callers.

    Guarantees:
        a_call_made_again_is_answered_and_not_done_again
        a_call_that_failed_is_done_again: What raises has changed nothing, or can go on from where it stopped.
        an_overtaken_call_is_refused: One that arrives after its caller has made the next.
    """

    def __init__(self) -> None:
        self._answers: OrderedDict[str, _Answer] = OrderedDict()

    def once(self, call: CallId, method: str, *args: object) -> Any:
        """Call `method`, unless this call was answered before; its answer.

        Raises:
            ProtocolViolation: If its caller has made a later call since, or for a method that is private.
        """
        if method.startswith("_"):
            raise ProtocolViolation(f"{method} is the role's own")
        last = self._answers.get(call.caller)
        if last is not None and call.number < last.number:
            raise ProtocolViolation(f"{method}: its caller has gone on since it made this call")
        if last is None or call.number > last.number or not last.is_known:
            self._answers[call.caller] = _Answer(call.number)
            last = _Answer(call.number, getattr(self, method)(*args), True)
            self._answers[call.caller] = last
        self._answers.move_to_end(call.caller)
        while len(self._answers) > CALLERS:
            self._answers.popitem(last=False)
        return last.value


@runtime_checkable
class HoldsStored(Protocol):
    """An argument of a call some of whose values may still lie in the object store."""

    def fetched(self, get: Callable[[Any], Any]) -> Any:
        """The same with all values here; `get` gives the value of a reference, or None if it is lost."""


def with_values(arguments: Sequence[object], get: Callable[[Any], Any]) -> list[object]:
    """A call's arguments as the role is to see them; a runtime does this where the role lives."""
    return [value.fetched(get) if isinstance(value, HoldsStored) else value for value in arguments]


Named = TypeVar("Named", bound=Role, covariant=True)
Called = TypeVar("Called", bound=Role, contravariant=True)


class RoleName(str, Generic[Named]):
    """The name of a role, of which a type checker knows the class; it arrives elsewhere as a plain string."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


class Future(Protocol[Answer]):
    """The answer of a call that may still be running."""

    def result(self) -> Answer:
        """Wait for the answer and return it, or raise the callee's exception."""


class Handle(Protocol):
    """A role that can be called, by the name of its method: what a runtime does with a `Call`."""

    def call(self, method: str, *args: object) -> Future[Any]:
        """Start `method` with `args` on the role; never blocks and never raises."""


class Peers(Protocol):
    """The roles of one federation, by name. Picklable."""

    def handle(self, name: str) -> Handle:
        """The role called `name`; one that is not there answers every call with `ActorLost`."""


class Call(Generic[Called, Answer]):
    """A method of a role with its arguments, which has not been made yet.

    Args:
        method: The role's method, as its class has it: ``Directory.locate``; one that is decorated has kept
            its name (`functools.wraps`).
        *args: What it is given, by position.
        **kwargs: None, though a type checker would take them: a message has no names for its arguments.

    Raises:
        TypeError: For an argument by name.
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

    def send(self, peers: Peers, role: RoleName[Called]) -> Future[Answer]:
        """Make it; never blocks and never raises."""
        return peers.handle(role).call(self.method, *self.args)

    def numbered(self, number: CallId) -> Call[Called, Answer]:
        """The same call, done once however often it is sent (`Role.once`); a `query` needs no number."""
        once: Call[Called, Answer] = copy(self)
        once.method, once.args = Role.once.__name__, (number, self.method, *self.args)
        return once


class Compute(Protocol):
    """A place to run functions beside the caller. Picklable."""

    parallelism: int
    """Tasks that run at once."""

    def put(self, value: object) -> Any:
        """Store `value` once; the reference may be given to any number of `submit` calls."""

    def submit(self, function: Callable[..., T], *args: object) -> Future[T]:
        """Run a module-level function; arguments made by `put` arrive as their values."""


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
    references = [compute.put(value) for value in shared]
    return gather([compute.submit(function, item, *references) for item in items])
