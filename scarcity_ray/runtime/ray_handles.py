"""What a role sees of the others on Ray: actors by name, calls as references, functions as tasks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.core.generated.gcs_pb2 import ActorTableData
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from scarcity_ray.errors import ActorLost, ScarcityError
from scarcity_ray.runtime.rpc import Future, Handle

TASK_CPUS = 0.8
"""CPUs of one task: two of them and the idle actors beside them fit on two cores."""


def find_actor(namespace: str, name: str) -> Any:
    """The living (or starting, or dying) actor of this name.

    Ray's per-process cache of names keeps the dead ones of actors that are not detached, so that one that
    came back would not be found; those that this process knows to be dead are forgotten.

    Raises:
        ValueError: If there is none.
    """
    while True:
        actor = ray.get_actor(name, namespace=namespace)
        if not _is_known_dead(actor):
            return actor
        forget(actor)
        time.sleep(0.002)


def forget(actor: Any) -> None:
    """Make this process forget a dead actor, so that its name stands for its successor."""
    ray.kill(actor)


def _is_known_dead(actor: Any) -> bool:
    """Whether Ray has told this process that an actor died.

    Ray has no public way to ask that without a call to the actor. Where this one is missing the answer is
    False: a call finds out then (`RayFuture`), as `ActorLost`, and the next lookup finds the successor.
    """
    state = getattr(actor, "_get_local_state", None)
    return state is not None and state() == ActorTableData.DEAD


def is_death(error: BaseException) -> bool:
    """Whether an error says that the actor called is dead: not one that it met itself in calling another."""
    return isinstance(error, ActorDiedError) and not isinstance(error, RayTaskError)


class RayFuture:
    """A pending actor call or task; Ray's errors become ours.

    Args:
        name: Who was called.
        reference: Ray's reference to the answer.
        actor: The actor called; None for a task.
    """

    def __init__(self, name: str, reference: Any, actor: Any = None) -> None:
        self._name = name
        self._reference = reference
        self._actor = actor

    def result(self) -> Any:
        """Wait for the answer and return it, or raise the callee's exception."""
        try:
            return ray.get(self._reference)
        except RayError as error:
            if self._actor is not None and is_death(error):
                forget(self._actor)
            raise translated(self._name, error) from None


class Failed:
    """A call that could not be made."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> Any:
        """Raise why."""
        raise self._error


class RayHandle:
    """A named actor.

    It is looked up at each call (30 us, Ray remembers), so that a role that came back is found at once.
    """

    def __init__(self, namespace: str, name: str) -> None:
        self._namespace = namespace
        self.name = name

    def call(self, method: str, *args: object) -> Future[Any]:
        """Start `method` with `args` on the role; never blocks and never raises."""
        if not ray.is_initialized():
            return Failed(ActorLost(self.name, "this process is not connected to Ray any more", False))
        try:
            actor = find_actor(self._namespace, self.name)
        except ValueError:
            return Failed(ActorLost(self.name, "it is not running"))
        except RayError as error:
            return Failed(translated(self.name, error))
        try:
            reference = getattr(actor, method).options(name=self._shown(method, args)).remote(*args)
            return RayFuture(self.name, reference, actor)
        except RayError as error:
            return Failed(translated(self.name, error))
        except Exception as error:
            return Failed(error)

    def _shown(self, method: str, args: Sequence[object]) -> str:
        """What Ray's tools call it: ``basket.submit``, however it is called."""
        return f"{self.name.partition(':')[0]}.{args[1] if method == 'once' else method}"


class RayPeers:
    """The roles of one federation, by name."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace

    def handle(self, name: str) -> Handle:
        """The role called `name`; one that is not there answers every call with `ActorLost`."""
        return RayHandle(self._namespace, name)


@ray.remote(num_cpus=TASK_CPUS)  # type: ignore[untyped-decorator]
def _run(function: Callable[..., Any], *args: object) -> Any:
    return function(*args)


class RayCompute:
    """Functions as tasks, values in the object store.

    Args:
        parallelism: Tasks that run at once.
    """

    def __init__(self, parallelism: int) -> None:
        self.parallelism = parallelism

    def put(self, value: object) -> Any:
        """Store `value` once."""
        return ray.put(value)

    def submit(self, function: Callable[..., Any], *args: object) -> Future[Any]:
        """Run a module-level function; a task that dies is tried again by Ray, three times."""
        return RayFuture(f"task {function.__name__}", _run.remote(function, *args))


def translated(name: str, error: RayError) -> Exception:
    """The callee's own exception, or `ActorLost` for whatever Ray has to say.

    One that nobody raised on purpose keeps its traceback on the other side, as a note.
    """
    while isinstance(error, RayTaskError):
        cause = error.cause
        if not isinstance(cause, RayError):
            if not isinstance(cause, ScarcityError):
                cause.add_note(f"in {name}: {error}")
            return cause if isinstance(cause, Exception) else error
        error = cause
    return ActorLost(name, first_line(error))


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that follow."""
    return str(error).strip().split("\n", 1)[0]
