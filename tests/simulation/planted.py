"""Faults that are put into the product, which the simulator must find.

The first three were there once: one client twice, replay after leaving, a driver stopped in mid-operation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.charging import BasketCharges
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import Begun
from scarcity_ray.actors.migration import MigrationDesk
from scarcity_ray.actors.secure_parties import SecureParties
from scarcity_ray.actors.session_terms import SessionTerms
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.baskets.latest_aggregate import LatestAggregate
from scarcity_ray.baskets.update_buffer import BasketBuffer
from scarcity_ray.privacy.ledger.answers import Charge
from scarcity_ray.runtime.rpc import Role

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]


def one_client_twice_in_a_release(patch: Patch) -> None:
    """An aggregate stays fresh when a client in it leaves."""
    patch.setattr(LatestAggregate, "discard_if_of", lambda self, client_id: None)


def replay_after_leaving(patch: Patch) -> None:
    """What a leaving client has sent is forgotten."""
    dismiss = Basket.dismiss

    @functools.wraps(dismiss)
    def forgetful(self: Basket, client_id: str) -> Any:
        memory = dismiss(self, client_id)
        return None if memory is None else replace(memory, accepted=())

    patch.setattr(Basket, "dismiss", forgetful)


def driver_stopped_in_mid_operation(patch: Patch) -> None:
    """The directory forgets an operation once it has told a driver."""
    begin = Directory._begin

    def told_and_forgotten(self: Directory, operation: Any, answer: Any) -> Begun[Any]:
        begun = begin(self, operation, answer)
        self._pending = None
        self._done.append(operation.order.operation_id)
        return begun

    patch.setattr(Directory, "_begin", told_and_forgotten)


def answers_are_not_kept(patch: Patch) -> None:
    """A call that is made again is done again."""

    @functools.wraps(Role.once)
    def always(self: Role, call: Any, method: str, *args: object) -> Any:
        return getattr(self, method)(*args)

    patch.setattr(Role, "once", always)


def replay_keys_stay_behind(patch: Patch) -> None:
    """A client that moves to another basket is not known there by what it has sent."""
    put = BasketBuffer.put_client
    patch.setattr(BasketBuffer, "put_client", lambda self, moved: put(self, replace(moved, accepted=())))


def gossip_charge_is_used_again(patch: Patch) -> None:
    """All of an actor's gossip of one kind has one charge."""
    gossip = BasketCharges.gossip

    def same(self: BasketCharges, kind: str, *args: Any) -> frozenset[str]:
        allowed = gossip(self, kind, *args)
        self._answered[kind] = 0
        return allowed

    patch.setattr(BasketCharges, "gossip", same)


def release_charge_is_used_again(patch: Patch) -> None:
    """All releases have one charge."""
    patch.setattr(SessionTerms, "charge_id", property(lambda self: "layer2"))


def charge_answers_before_the_disk(patch: Patch) -> None:
    """A charge is told as recorded, and is recorded with the next one."""
    charge = Accountant.charge_release

    @functools.wraps(charge)
    def hasty(self: Accountant, charge_id: str, mu: float, now: float, details: Any) -> Charge:
        owed: list[Any] = vars(self).setdefault("owed", [])
        owed.append((charge_id, mu, now, details))
        if len(owed) == 1:
            status = self.status(now)
            return Charge(True, "", status.epsilon_spent, status.head_hash)
        return [charge(self, *one) for one in owed][-1]

    patch.setattr(Accountant, "charge_release", hasty)


def aggregate_is_not_spent(patch: Patch) -> None:
    """An aggregate that was released stays fresh."""
    patch.setattr(LatestAggregate, "spend", lambda self, model: self.take_back(model))


def arrivals_are_added_twice(patch: Patch) -> None:
    """A client that moves is added again by every driver that finishes the operation."""
    put = MigrationDesk.put

    @functools.wraps(put)
    def again(self: MigrationDesk, *args: Any) -> bool:
        self._arrived.clear()
        return put(self, *args)

    patch.setattr(MigrationDesk, "put", again)


def round_reaches_some(patch: Patch) -> None:
    """A basket actor that is restarted begins in round 0."""
    init = BasketHost.__init__

    def first(self: BasketHost, *args: Any, **more: Any) -> None:
        init(self, *args, **{**more, "round_id": 0})

    patch.setattr(BasketHost, "__init__", first)


def aborted_sessions_keep_aggregates(patch: Patch) -> None:
    """What was handed in to a session that released nothing is never used again."""
    patch.setattr(SecureParties, "_resolve", lambda self, models, in_no_release: None)


def dead_directory_is_obeyed(patch: Patch) -> None:
    """Basket actors do what a directory that has died since has ordered."""
    patch.setattr(BasketHost, "_overtaken", lambda self, order: None)


PLANTED: tuple[Plant, ...] = (
    one_client_twice_in_a_release,
    replay_after_leaving,
    driver_stopped_in_mid_operation,
    replay_keys_stay_behind,
    release_charge_is_used_again,
    charge_answers_before_the_disk,
    aggregate_is_not_spent,
    round_reaches_some,
)
FOUND_LATER: tuple[Plant, ...] = (
    answers_are_not_kept,
    gossip_charge_is_used_again,
    arrivals_are_added_twice,
    aborted_sessions_keep_aggregates,
    dead_directory_is_obeyed,
)
"""Found by the same programs, after 36 to 148 of them."""
