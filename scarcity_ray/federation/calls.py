"""Calls to a federation's roles that survive a role's death: it is brought back, and the call made again."""

from __future__ import annotations

import itertools
import logging
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Concatenate, ParamSpec, TypeVar

from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import Fault, News, Whereabouts
from scarcity_ray.actors.names import DIRECTORY, basket_actor
from scarcity_ray.errors import ActorLost, FaultWarning, ProtocolViolation
from scarcity_ray.federation.supervisor import Assembly
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.runtime.rpc import Call, CallId, Role, RoleName

logger = logging.getLogger("scarcity_ray")

_PACKAGE = "scarcity_ray."

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Role)

warnings.simplefilter("always", FaultWarning, append=True)

RECOVERIES = 3
"""Times that one call may bring roles back before it gives up."""


class RoleCalls:
    """How one driver reaches the roles.

    Guarantees:
        a_call_whose_answer_is_lost_is_done_once: It is made again under its number (`runtime.rpc`).
        a_death_is_told_where_it_is_met: The call that brings a role back warns (`FaultWarning`), and so does
            the next call of every other driver that asks the directory where something is.

    Args:
        assembly: The federation's roles.
        clock: Gives the time in seconds since the epoch.

    Attributes:
        faults: What was lost with roles that died, oldest first, as far as this driver has heard.
        latest: The newest global model that this driver has seen.
        num_slots: Basket actors that this driver knows of.
    """

    def __init__(self, assembly: Assembly, clock: Callable[[], float]) -> None:
        self.assembly = assembly
        self.faults: list[str] = []
        self._heard: dict[str, Fault] = {}
        self.latest: GlobalMetaModel | None = None
        self.num_slots = 0
        self._whereabouts: Whereabouts | None = None
        self._clock = clock
        self._driver = uuid.uuid4().hex
        self._numbers = itertools.count(1)

    def now(self) -> float:
        """The driver's time."""
        return float(self._clock())

    def call(
        self, role: RoleName[R], method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Have a role do something, once; one that died is brought back first.

        Raises:
            ActorLost: If it cannot be brought back.
        """
        return self._until_answered(role, Call(method, *args, **kwargs), self._next_call())

    def ask(
        self, role: RoleName[R], method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Ask a role for what it knows, which changes nothing however often it is asked.

        Raises:
            ActorLost: If it died and cannot be brought back.
        """
        return self._until_answered(role, Call(method, *args, **kwargs))

    def call_baskets(self, calls: Mapping[int, Call[BasketHost, T]]) -> dict[int, T]:
        """As `call`, for basket actors side by side, each with a call of its own."""
        return self._all_answered(calls, self._next_call())

    def ask_baskets(self, calls: Mapping[int, Call[BasketHost, T]]) -> dict[int, T]:
        """As `ask`, for basket actors side by side, each with a call of its own."""
        return self._all_answered(calls)

    def tell_baskets(
        self, method: Callable[Concatenate[BasketHost, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> dict[int, T]:
        """Call every basket actor with the same arguments, those that other drivers have started too."""
        self.whereabouts()
        return self.call_baskets(dict.fromkeys(range(self.num_slots), Call(method, *args, **kwargs)))

    def poll_baskets(
        self, method: Callable[Concatenate[BasketHost, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> dict[int, T]:
        """Ask every basket actor the same, those that other drivers have started too."""
        self.whereabouts()
        return self.ask_baskets(dict.fromkeys(range(self.num_slots), Call(method, *args, **kwargs)))

    def recover(self, *names: str) -> None:
        """Bring roles back that died, after any others that these need; note and log what was lost.

        Raises:
            ActorLost: If one cannot come back (not retryable); the others that can are back.
            LedgerError: If the accountant's ledger is missing or damaged.
        """
        roles = {name for name in names if self.assembly.is_role(name)}
        for _ in range(RECOVERIES):
            dead = {name for name in roles if not self.assembly.runtime.is_alive(name)}
            if not dead:
                return
            known = tuple(self._heard.values())
            try:
                for faults in self.assembly.recover(dead, self.num_slots, self.now(), self.latest, known):
                    self.note_faults(faults)
            except ActorLost as other:
                if not other.retryable:
                    raise
                if other.role not in dead:
                    self.recover(other.role)

    def note_faults(self, faults: Sequence[Fault]) -> None:
        """Have the directory keep what was lost, for all drivers, and warn this one's user."""
        if faults:
            self.call(DIRECTORY, Directory.note_faults, tuple(faults))
        self.hear_faults()

    def hear_faults(self) -> None:
        """Warn of what the directory has noted and this driver has not heard of."""
        known = self.ask(DIRECTORY, Directory.faults)
        new = [fault for fault in known if fault.fault_id not in self._heard]
        self._heard |= {fault.fault_id: fault for fault in new}
        self.faults += [fault.loss for fault in new]
        for fault in new:
            logger.warning(fault.loss)
        for fault in new:
            _warn(fault.loss)

    def whereabouts(self) -> Whereabouts:
        """Round, live baskets and basket actors; sent again only when they have changed."""
        known = self._whereabouts
        answer = self.ask(DIRECTORY, Directory.whereabouts, known.version if known else None)
        where, news = (answer, answer.news) if isinstance(answer, Whereabouts) else (known, answer)
        if where is None:
            raise ProtocolViolation("the directory has no news for a driver that knows nothing")
        self._whereabouts = where = replace(where, news=news)
        self.num_slots = where.num_slots
        self.heed(news)
        return where

    def heed(self, news: News) -> None:
        """Tell the user of faults that other drivers met."""
        if news.last_fault is not None and news.last_fault not in self._heard:
            self.hear_faults()

    def _next_call(self) -> CallId:
        """Each thread is a caller of its own: a role remembers the last answer to each."""
        return CallId(f"{self._driver}/{threading.get_ident()}", next(self._numbers))

    def _until_answered(self, role: RoleName[R], call: Call[R, T], number: CallId | None = None) -> T:
        for attempt in range(RECOVERIES + 1):
            try:
                return call.send(self.assembly, role, number).result()
            except ActorLost as lost:
                if not lost.retryable or attempt == RECOVERIES:
                    raise
                self.recover(lost.role)
        raise ActorLost(role)

    def _all_answered(
        self, calls: Mapping[int, Call[BasketHost, T]], number: CallId | None = None
    ) -> dict[int, T]:
        pending = {slot: call.send(self.assembly, basket_actor(slot), number) for slot, call in calls.items()}
        answers: dict[int, T] = {}
        lost: dict[int, ActorLost] = {}
        failure: Exception | None = None
        for slot, answer in pending.items():
            try:
                answers[slot] = answer.result()
            except ActorLost as loss:
                lost[slot] = loss
                failure = failure if loss.retryable else failure or loss
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
        self.recover(*(death.role for death in lost.values()))
        for slot in lost:
            answers[slot] = self._until_answered(basket_actor(slot), calls[slot], number)
        return answers


def _warn(loss: str) -> None:
    """Warn, in the name of the line that called this package."""
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(_PACKAGE):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(loss, FaultWarning, stacklevel=depth)
