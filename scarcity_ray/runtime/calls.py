"""Calls to a federation's roles that survive a role's death: it is brought back, and the call made again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from scarcity_ray.errors import ActorLost
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.roles.handles import ACCOUNTANT, DIRECTORY, basket_actor
from scarcity_ray.roles.messages import Whereabouts
from scarcity_ray.runtime.assembly import Assembly

logger = logging.getLogger("scarcity_ray")

RECOVERIES = 3
"""Times that one call may bring roles back before it gives up."""


class RoleCalls:
    """How one driver reaches the roles.

    Args:
        assembly: The federation's roles.
        clock: Gives the time in seconds since the epoch.

    Attributes:
        faults: Roles that died and what was lost with them, oldest first.
        latest: The newest global model that this driver has seen.
        num_slots: Basket actors that this driver knows of.
    """

    def __init__(self, assembly: Assembly, clock: Callable[[], float]) -> None:
        self.assembly = assembly
        self.faults: list[str] = []
        self.latest: GlobalMetaModel | None = None
        self.num_slots = 0
        self._clock = clock

    def now(self) -> float:
        """The driver's time."""
        return float(self._clock())

    def call(self, name: str, method: str, *args: object) -> Any:
        """Call a role; one that died is brought back, and the call made again.

        Raises:
            ActorLost: If it cannot be brought back.
        """
        for attempt in range(RECOVERIES + 1):
            try:
                return self.assembly.handle(name).call(method, *args).result()
            except ActorLost as lost:
                if not lost.retryable or attempt == RECOVERIES:
                    raise
                self.recover(lost.role)
        raise ActorLost(name)

    def call_baskets(self, method: str, arguments: Mapping[int, tuple[object, ...]]) -> dict[int, Any]:
        """Call basket actors side by side, each with its own arguments; those that died are called again."""
        calls = {
            slot: self.assembly.handle(basket_actor(slot)).call(method, *args)
            for slot, args in arguments.items()
        }
        answers: dict[int, Any] = {}
        lost: dict[int, ActorLost] = {}
        failure: Exception | None = None
        for slot, call in calls.items():
            try:
                answers[slot] = call.result()
            except ActorLost as loss:
                lost[slot] = loss
                failure = failure if loss.retryable else failure or loss
            except Exception as error:
                failure = failure or error
        if failure is not None:
            raise failure
        self.recover(*(death.role for death in lost.values()))
        for slot in lost:
            answers[slot] = self.call(basket_actor(slot), method, *arguments[slot])
        return answers

    def tell_baskets(self, method: str, *args: object) -> dict[int, Any]:
        """Call every basket actor with the same arguments, those that other drivers have started too."""
        self.whereabouts()
        return self.call_baskets(method, dict.fromkeys(range(self.num_slots), args))

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
            try:
                for loss in self.assembly.recover(dead, self.num_slots, self.now(), self.latest):
                    self.faults.append(loss)
                    logger.warning(loss)
            except ActorLost as other:
                if not other.retryable:
                    raise
                if other.role not in dead:
                    self.recover(other.role)

    def whereabouts(self) -> Whereabouts:
        """Round, live baskets and basket actors."""
        where: Whereabouts = self.call(DIRECTORY, "whereabouts")
        self.num_slots = where.num_slots
        return where

    def accountant(self, method: str, *args: object) -> Any:
        """Call the accountant."""
        return self.call(ACCOUNTANT, method, *args)
