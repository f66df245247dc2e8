"""A driver's calls to the actors: one that died is brought back, and the call made again."""

from __future__ import annotations

import itertools
import logging
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import Fault, News, RoutingTable
from scarcity_ray.actors.names import DIRECTORY, basket_actor
from scarcity_ray.errors import ActorLost, FaultWarning, warn_caller
from scarcity_ray.federation.supervisor import Supervisor
from scarcity_ray.runtime.rpc import Call, CallId, Role, RoleName

logger = logging.getLogger("scarcity_ray")

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Role)

warnings.simplefilter("always", FaultWarning, append=True)

RECOVERIES = 3
"""Times that one call may bring roles back before it gives up."""


class ActorClient:
    """How one driver calls the actors.

    Guarantees:
        a_call_whose_answer_is_lost_is_done_once: It is made again under its number (`runtime.rpc`).
        a_death_is_told_where_it_is_met: The call that brings a role back warns (`FaultWarning`), and so does
            the next call of every other driver that asks the directory where something is.

    Args:
        supervisor: Brings actors back.
        clock: Gives the time in seconds since the epoch.

    Attributes:
        faults: What was lost with roles that died, oldest first, as far as this driver has heard.
        routing_table: Where the baskets are, as the directory said last.
        is_up_to_date: Whether this driver knows of nothing that has changed since.
    """

    def __init__(self, supervisor: Supervisor, clock: Callable[[], float]) -> None:
        self.supervisor = supervisor
        self.faults: list[str] = []
        self.is_up_to_date = False
        self._heard: dict[str, Fault] = {}
        self.routing_table: RoutingTable | None = None
        self._clock = clock
        self._driver = uuid.uuid4().hex
        self._numbers = itertools.count(1)

    def now(self) -> float:
        """The driver's time."""
        return float(self._clock())

    def call(
        self, role: RoleName[R], method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Have an actor do something, once, or say something; one that died is brought back first.

        Raises:
            ActorLost: If it cannot be brought back.
        """
        call = Call(method, *args, **kwargs)
        return self._answer(role, call if call.is_query else call.numbered(self._next_id()))

    def call_baskets(self, asked: Call[BasketHost, T] | Mapping[int, Call[BasketHost, T]]) -> dict[int, T]:
        """As `call`, for basket actors side by side.

        Args:
            asked: One call for all that this driver knows of, or by slot a call for each.
        """
        if isinstance(asked, Call):
            asked = dict.fromkeys(range(self.supervisor.num_slots), asked)
        peers, number = self.supervisor.peers, self._next_id()
        calls = {slot: call if call.is_query else call.numbered(number) for slot, call in asked.items()}
        pending = {s: peers.handle(basket_actor(s)).call(c.method, *c.args) for s, c in calls.items()}
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
        if lost:
            self.recover(*(death.role for death in lost.values()))
        for slot in lost:
            answers[slot] = self._answer(basket_actor(slot), calls[slot])
        return answers

    def recover(self, *names: str) -> None:
        """Bring roles back that died, after any others that these need; note and log what was lost.

        Raises:
            ActorLost: If one cannot come back (not retryable); the others that can are back.
            LedgerError: If the accountant's ledger is missing or damaged.
        """
        self.is_up_to_date = False
        roles = {name for name in names if self.supervisor.is_role(name)}
        for _ in range(RECOVERIES):
            dead = {name for name in roles if not self.supervisor.runtime.is_alive(name)}
            if not dead:
                return
            try:
                for faults in self.supervisor.recover(dead, self.now(), tuple(self._heard.values())):
                    self.note_faults(faults)
            except ActorLost as other:
                if not other.retryable:
                    raise
                if other.role not in dead:
                    self.recover(other.role)

    def note_faults(self, faults: Sequence[Fault]) -> None:
        """Have the directory keep what was lost, for all drivers, and warn this one's user."""
        if faults:
            # Without a number, as it may interrupt a call to the directory: a fault's id is noted once.
            self._answer(DIRECTORY, Call(Directory.note_faults, tuple(faults)))
        self.hear_faults()

    def hear_faults(self) -> None:
        """Warn of what the directory has noted and this driver has not heard of."""
        known = self._answer(DIRECTORY, Call(Directory.faults))
        new = [fault for fault in known if fault.fault_id not in self._heard]
        self._heard |= {fault.fault_id: fault for fault in new}
        for fault in new:
            self.note_loss(fault.loss)
        for fault in new:
            warn_caller(fault.loss, FaultWarning)

    def note_loss(self, loss: str) -> None:
        """Keep and log what was lost."""
        self.faults.append(loss)
        logger.warning(loss)

    def heed(self, news: News) -> None:
        """Tell the user of faults that other drivers met."""
        if news.last_fault is not None and news.last_fault not in self._heard:
            self.hear_faults()

    def _next_id(self) -> CallId:
        """Each thread is a caller of its own: a role remembers the last answer to each."""
        return CallId(f"{self._driver}/{threading.get_ident()}", next(self._numbers))

    def _answer(self, role: RoleName[R], call: Call[R, T]) -> T:
        for attempt in range(RECOVERIES + 1):
            try:
                return call.send(self.supervisor.peers, role).result()
            except ActorLost as lost:
                if not lost.retryable or attempt == RECOVERIES:
                    raise
                self.recover(lost.role)
        raise ActorLost(role)
