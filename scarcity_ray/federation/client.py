"""A driver's calls to the actors: a dead actor is restarted, and the call repeated."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Concatenate, Generic, ParamSpec, TypeVar

from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import Fault, News, RoutingTable
from scarcity_ray.actors.names import DIRECTORY, basket_actor
from scarcity_ray.config.arguments import moment_of
from scarcity_ray.errors import ActorLost, FaultWarning, warn_caller
from scarcity_ray.federation.supervisor import Supervisor, named_updates
from scarcity_ray.runtime.rpc import Call, IdempotencyKey, Peers, Role, RoleName, Running

logger = logging.getLogger("scarcity_ray")

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R", bound=Role)

warnings.simplefilter("always", FaultWarning, append=True)

RECOVERIES = 3
"""Times that one call may restart roles before it gives up."""


@dataclass(frozen=True)
class BegunCalls(Generic[T]):
    """Calls to basket actors, by slot, all under one number; those in `pending` are on their way."""

    calls: Mapping[int, Call[BasketHost, T]]
    number: IdempotencyKey
    pending: dict[int, Running[T]] = field(default_factory=dict)

    def send(self, peers: Peers) -> None:
        """Send those that were not sent yet: an interruption may have come in between."""
        for slot, call in self.calls.items():
            if slot not in self.pending:
                self.pending[slot] = call.send(peers, basket_actor(slot), self.number)

    def are_answered(self) -> bool:
        """Whether all answers are here, or lost."""
        return len(self.pending) == len(self.calls) and all(one.is_over() for one in self.pending.values())


class ActorClient:
    """How one driver calls the actors.

    Guarantees:
        a_call_whose_answer_is_lost_is_done_once: It is repeated under its number (`runtime.rpc`).
        a_death_is_told_where_it_is_met: The call that restarts a role warns (`FaultWarning`), and so does the
            next lookup of every other driver in the directory, or its next submission to a basket actor that
            was told.

    Attributes:
        faults: What was lost with roles that died, oldest first, as far as this driver knows.
        routing_table: As the directory sent it last.
        is_up_to_date: Whether this driver has made no change since.
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
        """The driver's time.

        Raises:
            UsageError: If the clock gives no finite number: the directory would keep it for all drivers.
        """
        seconds = self._clock()
        is_moment = type(seconds) is float and math.isfinite(seconds)
        return seconds if is_moment else moment_of("what clock() gives", seconds)

    def call(
        self, role: RoleName[R], method: Callable[Concatenate[R, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Call an actor's method, which is executed once; a dead actor is restarted first.

        Raises:
            ActorLost: If it cannot be restarted.
        """
        return self._answer(role, Call(method, *args, **kwargs), self._next_id())

    def call_baskets(self, asked: Call[BasketHost, T] | Mapping[int, Call[BasketHost, T]]) -> dict[int, T]:
        """As `call`, for several basket actors in parallel; answers by slot.

        Args:
            asked: One call for all actors that this driver knows of, or a call for each slot.
        """
        if isinstance(asked, Call):
            asked = dict.fromkeys(range(self.supervisor.num_slots), asked)
        return self.answers(self.numbered(asked))

    def numbered(self, asked: Mapping[int, Call[BasketHost, T]], *, beside: bool = False) -> BegunCalls[T]:
        """Calls that are to be sent.

        Args:
            beside: Whether this driver makes others before they are answered; one such at a time.
        """
        number = IdempotencyKey(f"{self._driver}/begun", next(self._numbers)) if beside else self._next_id()
        return BegunCalls(asked, number)

    def send(self, begun: BegunCalls[T]) -> None:
        """Send calls, and wait for no answer."""
        begun.send(self.supervisor.peers)

    def answers(self, begun: BegunCalls[T]) -> dict[int, T]:
        """Wait for the answers to calls; by slot."""
        begun.send(self.supervisor.peers)
        answers: dict[int, T] = {}
        lost: dict[int, ActorLost] = {}
        failure: Exception | None = None
        for slot, answer in begun.pending.items():
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
            answers[slot] = self._answer(basket_actor(slot), begun.calls[slot], begun.number)
        return answers

    def recover(self, *names: str) -> None:
        """Restart dead roles, and others that these need first; note and log what was lost.

        Raises:
            ActorLost: If a role cannot be restarted (not retryable); the others are.
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
        """Store faults in the directory, for all drivers, and warn this driver's user.

        The basket actors that are there keep them, too, in case that the directory dies.
        """
        if faults:
            # Without a call number, as it may interrupt a numbered call; a fault's id is noted once anyway.
            self._answer(DIRECTORY, Call(Directory.note_faults, tuple(faults)))
        new = self._new_faults()
        self.supervisor.tell_faults([self._heard[fault.fault_id] for fault in new])
        _warn(new)

    def recall_faults(self) -> None:
        """Know the faults of a federation that is restored, which drivers before this one have warned of."""
        known = self._answer(DIRECTORY, Call(Directory.faults))
        self._heard |= {fault.fault_id: fault for fault in known}
        self.faults += [fault.loss for fault in known]

    def hear_faults(self) -> None:
        """Warn of the directory's faults that this driver has not warned of yet."""
        _warn(self._new_faults())

    def note_loss(self, loss: str) -> None:
        """Keep and log what was lost."""
        self.faults.append(loss)
        logger.warning(loss)

    def heed(self, news: News) -> None:
        """Warn of faults that other drivers noted."""
        if not self.has_heard(news.last_fault):
            self.hear_faults()

    def has_heard(self, fault_id: str | None) -> bool:
        """Whether this driver has warned of a fault, if there is one."""
        return fault_id is None or fault_id in self._heard

    def _new_faults(self) -> list[Fault]:
        """The directory's faults that this driver has not heard of yet; they are kept and logged."""
        known = self._answer(DIRECTORY, Call(Directory.faults))
        new = [fault for fault in known if fault.fault_id not in self._heard]
        is_lost = any(fault.survivors is not None for fault in new)
        sent = self.supervisor.acknowledged.clients() if is_lost else []
        homes = self._answer(DIRECTORY, Call(Directory.locate, sent)).routes if sent else {}
        self._heard |= {fault.fault_id: fault for fault in new}
        told = [self._with_own(fault, homes) for fault in new]
        for fault in told:
            self.note_loss(fault.loss)
        return told

    def _with_own(self, fault: Fault, homes: Mapping[str, tuple[str, int]]) -> Fault:
        """A fault that names, too, what this driver had sent to baskets that another one saw die."""
        acknowledged, survivors = self.supervisor.acknowledged, fault.survivors
        if survivors is None:
            lost = acknowledged.lose(fault.baskets, fault.clients)
        else:
            there = [client_id for client_id, (basket_id, _) in homes.items() if basket_id in survivors]
            lost = acknowledged.lose_all_but(survivors, there)
        return (
            replace(fault, loss=f"{fault.loss}; of this driver's: {named_updates(lost)}") if lost else fault
        )

    def _next_id(self) -> IdempotencyKey:
        """The next call's id; each thread is a caller of its own (`runtime.rpc.IdempotencyKey`)."""
        return IdempotencyKey(f"{self._driver}/{threading.get_ident()}", next(self._numbers))

    def _answer(self, role: RoleName[R], call: Call[R, T], number: IdempotencyKey | None = None) -> T:
        for attempt in range(RECOVERIES + 1):
            try:
                return call.send(self.supervisor.peers, role, number).result()
            except ActorLost as lost:
                if not lost.retryable or attempt == RECOVERIES:
                    raise
                self.recover(lost.role)
        raise ActorLost(role)


def _warn(faults: Sequence[Fault]) -> None:
    for fault in faults:
        warn_caller(fault.loss, FaultWarning)
