"""What a role sees of the others: handles to call, and a place to run tasks.

Roles are plain classes. They reach each other through a `Handle` (call a method, get a `Future`) that they
look up by name in `Peers`, and run functions beside themselves through `Compute`. A runtime supplies all
three; which one it is, a role cannot tell.

Contract of a call, in every runtime:

* arguments and results are copied or read-only: neither side can change the other's data afterwards;
* arrays arrive read-only, strided ones as private copies: whoever wants to change one makes a copy;
* the callee's exception is raised by `Future.result` with its own type;
* `ActorLost` is raised when the callee's process is gone or the connection to it broke; whether the call was
  executed is then unknown, and `roles.role.Role.once` is how to make it again;
* calls of one caller to one role are executed in the order in which they were made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

ACCOUNTANT = "accountant"
DIRECTORY = "directory"
GLOBAL = "global"


def basket_actor(slot: int) -> str:
    """The name of the basket actor with number `slot`.

    >>> basket_actor(3)
    'basket:3'
    """
    return f"basket:{slot}"


class Future(Protocol):
    """The answer of a call that may still be running."""

    def result(self) -> Any:
        """Wait for the answer and return it, or raise the callee's exception."""


class Handle(Protocol):
    """A role that can be called."""

    name: str

    def call(self, method: str, *args: object) -> Future:
        """Start `method` with `args` on the role; never blocks and never raises."""


class Peers(Protocol):
    """The roles of one federation, by name. Picklable."""

    def handle(self, name: str) -> Handle:
        """The role called `name`; one that is not there answers every call with `ActorLost`."""


class Compute(Protocol):
    """A place to run functions beside the caller. Picklable."""

    parallelism: int
    """Tasks that run at once."""

    def put(self, value: object) -> Any:
        """Store `value` once; the reference may be given to any number of `submit` calls."""

    def submit(self, function: Callable[..., Any], *args: object) -> Future:
        """Run a module-level function; arguments made by `put` arrive as their values."""


def gather(futures: Iterable[Future]) -> list[Any]:
    """All results, in order; the first exception is raised after every call has ended."""
    results: list[Any] = []
    failure: BaseException | None = None
    for future in futures:
        try:
            results.append(future.result())
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return results


def map_tasks(
    compute: Compute, function: Callable[..., Any], items: Sequence[Any], *shared: object
) -> list[Any]:
    """``[function(item, *shared) for item in items]`` as tasks, with `shared` stored once."""
    references = [compute.put(value) for value in shared]
    return gather([compute.submit(function, item, *references) for item in items])
