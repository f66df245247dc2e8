"""The scheduler of a simulated federation: it carries every call between roles, and lets some go wrong.

One thread runs everything. A stack says who acts now: a driver at the bottom, then the role whose method it
has called, then the role that this method calls. Each call has a number in its step, and a `Fault` names the
number at which it happens. So a role can die in the middle of a method (at a call that it makes), or between
its effect and its answer.

What it keeps of the contract of `runtime.rpc`: calls of one caller to one role are done in the order in which
they were made; one that a broken connection left on its way is done before that caller's next call to that
role, or reaches nobody if the role has died since. `Place` is the runtime; roles die as they start, too.

Another driver may act at any call, between roles too. It acts to its end before the first one goes on, or up
to a call to a role that is busy: there it dies, and the call is done once the role is free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from scarcity_ray.errors import ActorLost
from scarcity_ray.runtime import LocalRuntime
from scarcity_ray.runtime.base import RoleSpec
from scarcity_ray.runtime.rpc import Running
from tests.simulation.program import ON_DISK, Fault, Kind


class Gone(BaseException):
    """Who acts is no more: a driver was stopped, or a role's process died. The package may not catch it."""


class DiedAsItStarted(Exception):
    """A role's process died in its constructor."""


@dataclass(frozen=True)
class Answer:
    """A future whose call has ended."""

    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value

    def is_over(self) -> bool:
        return True


@dataclass(eq=False)
class Frame:
    """Who acts: a role's process, or a driver (`process` is None), whose calls are in order.

    Attributes:
        starts: Whether it is a role in its constructor.
    """

    name: str
    process: object = None
    driver: object = None
    is_dead: bool = False
    starts: bool = False

    @property
    def who(self) -> object:
        return self.process or self.driver


@dataclass(eq=False)
class Message:
    """A call on its way."""

    network: Network
    caller: Frame
    role: str
    method: str
    deliver: Callable[[], Running[Any]]
    process: object
    fault: Fault | None
    answer: Running[Any] | None = None

    def result(self) -> Any:
        self.network.work_off(self)
        assert self.answer is not None
        return self.answer.result()

    def is_over(self) -> bool:
        return self.answer is not None


def broken(role: str) -> Answer:
    return Answer(error=ActorLost(role, "the connection broke"))


@dataclass
class Network:
    """Carries the calls of one federation.

    Attributes:
        lazy: Whether calls wait until an answer is asked for.
        events: What to do where a fault happens that is none of the call.
        passed: Calls made in this step.
        happened: What went wrong where, in words.
    """

    place: Place
    lazy: bool
    events: Mapping[Kind, Callable[[Fault], None]]
    stack: list[Frame] = field(default_factory=list)
    passed: int = 0
    faults: dict[int, list[Fault]] = field(default_factory=dict)
    happened: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    _waiting: list[Message] = field(default_factory=list)
    _late: list[tuple[int, Message]] = field(default_factory=list)
    _clock: int = 0

    def expect(self, faults: Sequence[Fault]) -> None:
        """Begin a step in which these go wrong."""
        self.passed, self.faults = 0, {}
        for fault in faults:
            if fault.kind not in ON_DISK:
                self.faults.setdefault(fault.at, []).append(fault)

    def carry(self, role: str, method: str, deliver: Callable[[], Running[Any]]) -> Running[Any]:
        caller = self._alive()
        fault = self._point(f"{role}.{method}")
        message = Message(self, caller, role, method, deliver, self.place.process(role), fault)
        if self.lazy and (fault is None or fault.kind not in _OF_THE_CALLER):
            self._waiting.append(message)
            return message
        self._in_order(message)
        self._do(message)
        self._alive()
        assert message.answer is not None
        return message.answer

    def work_off(self, asked: Message) -> None:
        """Do what one caller has sent, up to an answer that it asks for: what went to other roles, first.

        A driver that asks for what it sent in an earlier act dies of it if the role is busy.
        """
        self._alive()
        sent = [m for m in self._waiting if m.caller.who is asked.caller.who]
        for role in dict.fromkeys([*(m.role for m in reversed(sent) if m.role != asked.role), asked.role]):
            for message in sent:
                if message.role == role and asked.answer is None:
                    self._take(message)
        for entry in list(self._late):
            if entry in self._late and asked.answer is None and _same_way(entry[1], asked):
                self._late.remove(entry)
                self._arrive(entry[1])
        if asked.answer is None:
            self.die(self._alive())
        self._alive()

    def quiet(self) -> None:
        """Do everything that is still on its way."""
        while self._waiting or self._late:
            for message in list(self._waiting):
                self._take(message)
            late, self._late = self._late, []
            for _, message in late:
                self._arrive(message)

    def left(self, frame: Frame) -> None:
        """What a caller has sent without waiting goes on its way when the caller ends.

        A driver may ask for the answer in a later act.
        """
        self._late += [(self._clock + 2, m) for m in self._waiting if m.caller is frame]
        self._waiting = [m for m in self._waiting if m.caller is not frame]

    def point(self, what: str) -> Fault | None:
        """A place where something may go wrong that is no call."""
        self._alive()
        return self._point(what)

    def die(self, frame: Frame) -> None:
        """End who acts."""
        if frame.starts:
            raise DiedAsItStarted(frame.name)
        if frame.process is None:
            frame.is_dead = True
            raise Gone(frame.name)
        self.place.crash(frame.name)
        raise Gone(frame.name)

    def _point(self, what: str) -> Fault | None:
        number, self.passed, self._clock = self.passed, self.passed + 1, self._clock + 1
        caller = self.stack[-1]
        self.trace.append(f"{caller.name} > {what}")
        left: Fault | None = None
        for fault in self.faults.pop(number, ()):
            self.happened.append(f"{caller.name} calls {what}: {fault}")
            match fault.kind:
                case kind if kind in self.events:
                    self.events[kind](fault)
                case Kind.OTHER_DIES:
                    self.place.crash_kth(fault.k)
                case Kind.INTERRUPTED:
                    if len(self.stack) == 1:
                        raise Gone("interrupted")
                case _:
                    left = fault
        self._alive()
        for due, message in list(self._late):
            if due <= self._clock and (due, message) in self._late:
                self._late.remove((due, message))
                self._arrive(message)
        self._alive()
        return left

    def _alive(self) -> Frame:
        frame = self.stack[-1]
        if frame.is_dead or (
            frame.process is not None and self.place.process(frame.name) is not frame.process
        ):
            raise Gone(frame.name)
        return frame

    def _take(self, message: Message) -> None:
        if message in self._waiting:
            self._in_order_late(message)
            self._waiting.remove(message)
            self._do(message)

    def _in_order(self, message: Message) -> None:
        """First do what the same caller sent to the same role before."""
        for earlier in [m for m in self._waiting if _same_way(m, message)]:
            self._take(earlier)
        self._in_order_late(message)

    def _in_order_late(self, message: Message) -> None:
        for entry in list(self._late):
            _, earlier = entry
            if entry in self._late and _same_way(earlier, message):
                self._late.remove(entry)
                self._arrive(earlier)

    def _arrive(self, message: Message) -> None:
        """A message arrives whose sender does not wait for the answer, or does not yet."""
        if self._is_busy(message.role):
            self._late.append((self._clock, message))
        elif message.answer is None:
            self._do(message)
        elif self.place.process(message.role) is message.process:
            self._execute(message)

    def _is_busy(self, role: str) -> bool:
        return any(frame.name == role for frame in self.stack)

    def _do(self, message: Message) -> None:
        fault, role = message.fault, message.role
        message.answer = broken(role)
        match None if fault is None else fault.kind:
            case Kind.LOST_CALL:
                return
            case Kind.LATE:
                assert fault is not None
                self._late.append((self._clock + 3 * fault.k, message))
                return
            case Kind.CALLER_DIES_LATE:
                assert fault is not None
                self._late.append((self._clock + 3 * fault.k, message))
                self.die(message.caller)
            case Kind.CALLER_DIES:
                self.die(message.caller)
            case Kind.CALLEE_DIES:
                self.place.crash(role)
        answer = self._execute(message)
        match None if fault is None else fault.kind:
            case Kind.LOST_ANSWER:
                return
            case Kind.CALLEE_DIES_AFTER:
                self.place.crash(role)
                return
            case Kind.CALLER_DIES_AFTER:
                self.die(message.caller)
        message.answer = answer

    def _execute(self, message: Message) -> Running[Any]:
        role, process = message.role, self.place.process(message.role)
        if process is None or process is not message.process:
            return broken(role)
        if self._is_busy(role):
            self._late.append((self._clock, message))
            if message.caller.process is None and message.caller is self.stack[-1]:
                self.die(message.caller)
            return broken(role)
        self.stack.append(Frame(role, process))
        try:
            answer = message.deliver()
        except Gone:
            answer = broken(role)
            self.place.unwound()
        finally:
            frame = self.stack.pop()
        self.left(frame)
        return answer if self.place.process(role) is process else broken(role)


def _same_way(one: Message, other: Message) -> bool:
    return one.caller.who is other.caller.who and one.role == other.role


_OF_THE_CALLER = {Kind.CALLER_DIES, Kind.CALLER_DIES_AFTER, Kind.CALLER_DIES_LATE}


class Place:
    """A local runtime whose roles can die, and die as they are started.

    Args:
        dying: Told of a role that dies, with its process; then has the role ended.
        unwound: Told when a process that died in a method has left it.
    """

    def __init__(
        self, dying: Callable[[str, Any, Callable[[], None]], None], unwound: Callable[[], None]
    ) -> None:
        self.network: Network
        self.unwound = unwound
        self._dying = dying
        self.default_basket_actors, self.machines, self.driver, self.gpus = 1, 1, "local", None
        self.begin()

    def begin(self) -> None:
        """Have nothing there."""
        self.inner = LocalRuntime(self)
        self.peers, self.compute, self.home = self.inner.peers, self.inner.compute, self.inner.home
        self.is_one_process, self.node_bytes = True, self.inner.node_bytes

    def carry(self, role: str, method: str, deliver: Callable[[], Running[Any]]) -> Running[Any]:
        return self.network.carry(role, method, deliver)

    @property
    def has_begun(self) -> bool:
        return self.inner.has_begun

    def process(self, name: str) -> Any:
        """The role's object, which stands for its process; None if it is not running."""
        return self.inner._peers.roles.get(name)

    def start(self, specs: Sequence[RoleSpec], *, card: object = None) -> None:
        fault = self.network.point("start " + ", ".join(spec.name for spec in specs)) if specs else None
        kind = None if fault is None else fault.kind
        caller = self.network.stack[-1]
        if kind in (Kind.CALLER_DIES, Kind.CALLER_DIES_LATE):
            self.network.die(caller)
        self.inner.start([replace(s, factory=partial(self._born, s)) for s in specs], card=card)
        if kind is Kind.CALLEE_DIES_AFTER:
            self.crash(specs[0].name)
        if kind is Kind.CALLER_DIES_AFTER:
            self.network.die(caller)

    def _born(self, spec: RoleSpec, **arguments: Any) -> Any:
        self.network.stack.append(Frame(spec.name, starts=True))
        try:
            return spec.factory(**arguments)
        except Exception:  # its process ends
            self._dying(spec.name, None, lambda: None)
            raise
        finally:
            self.network.stack.pop()

    def crash(self, name: str) -> None:
        """End a role as SIGKILL does."""
        if self.process(name) is not None:
            self._dying(name, self.process(name), lambda: self.inner.kill(name))

    def crash_kth(self, k: int) -> None:
        names = self.names()
        if names:
            self.crash(names[k % len(names)])

    kill = crash

    def names(self) -> tuple[str, ...]:
        return self.inner.names()

    def holder_of(self, path: str) -> str | None:
        return self.inner.holder_of(path)

    def is_alive(self, name: str) -> bool:
        return self.inner.is_alive(name)

    def tasks(self) -> Any:
        return self.inner.tasks()

    def card(self) -> Any:
        return self.inner.card()

    def is_driver_alive(self, driver: str) -> bool:
        return self.inner.is_driver_alive(driver)

    def withdraw(self) -> None:
        self.inner.withdraw()

    def close(self) -> None:
        self.inner.close()
