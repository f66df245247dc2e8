"""Faults that are put into the product, which the simulator must find.

The first three were there once: one client twice, replay after leaving, a driver stopped in mid-operation.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.charging import BasketCharges
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.global_aggregator import GlobalAggregator
from scarcity_ray.actors.messages import Begun
from scarcity_ray.actors.migration import MigrationDesk
from scarcity_ray.actors.secure_parties import SecureParties
from scarcity_ray.actors.session_terms import SessionTerms
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.baskets.latest_aggregate import AggregateRecord, LatestAggregate
from scarcity_ray.baskets.update_buffer import BasketBuffer
from scarcity_ray.federation import supervisor
from scarcity_ray.federation.client import ActorClient, BegunCalls
from scarcity_ray.federation.pipeline import Pipeline
from scarcity_ray.layers.models import GlobalMetaModel
from scarcity_ray.privacy.ledger.answers import Charge
from scarcity_ray.runtime.rpc import Role
from scarcity_ray.storage.journal import Journal
from scarcity_ray.storage.snapshots import Snapshots, Store
from tests.simulation.disk import SimulatedOs
from tests.simulation.program import Act, Fault, Kind, Program, Setting, Step

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


def journal_is_a_call_late(patch: Patch) -> None:
    """What a call has changed is written with the next one."""
    save = BasketHost._save

    def late(self: BasketHost, *, sync: bool = True) -> None:
        vars(self)["calls"] = vars(self).get("calls", 0) + 1
        if vars(self)["calls"] % 2 == 0:
            save(self, sync=sync)

    patch.setattr(BasketHost, "_save", late)


def journal_keeps_what_was_consumed(patch: Patch) -> None:
    """An aggregate is written, and the updates in it are not dropped."""
    patch.setattr(Journal, "consume", lambda self, basket: None)


def journal_is_not_told_of_sessions(patch: Patch) -> None:
    """What is handed in and spent is written with the next change."""
    patch.setattr(BasketHost, "_saved_or_no_part", lambda self: contextlib.nullcontext())


def journal_forgets_replays(patch: Patch) -> None:
    """The keys of updates that are in an aggregate are not read again."""
    patch.setattr(Basket, "remember", lambda self, key: None)


def journal_forgets_answers(patch: Patch) -> None:
    """A batch whose answer was lost with its actor is judged again."""
    keep = BasketHost._keep

    def forgetful(self: BasketHost, kind: str, name: str, value: object) -> None:
        if kind != "answer":
            keep(self, kind, name, value)

    patch.setattr(BasketHost, "_keep", forgetful)


def journal_believes_a_session_ended(patch: Patch) -> None:
    """An aggregate that was handed in is fresh after a death, whatever was charged."""
    restore = LatestAggregate.restore

    def fresh(self: LatestAggregate, record: AggregateRecord) -> None:
        restore(self, replace(record, charge_id=""))

    patch.setattr(LatestAggregate, "restore", fresh)


def stopped_restore_leaves_journals(patch: Patch) -> None:
    """A restore that was stopped is forgotten, with the journals that it had taken over."""
    write = supervisor.write_record
    patch.setattr(supervisor, "write_record", lambda kept, identity, continued=(): write(kept, identity))


def aggregates_are_not_synced(patch: Patch) -> None:
    """With ``durability: round`` nothing is ever synced."""
    save = BasketHost._save
    patch.setattr(BasketHost, "_save", lambda self, *, sync=True: save(self, sync=self._syncs_updates))


def lost_updates_are_named_by_one_driver(patch: Patch) -> None:
    """A driver names what another has seen die as if it had sent nothing."""
    patch.setattr(ActorClient, "_with_own", lambda self, fault, homes: fault)


def snapshot_of_an_older_epoch_is_taken(patch: Patch) -> None:
    """The highest version counts, whichever opening wrote it."""
    found = Snapshots._found

    def highest(self: Snapshots, store: Store, name: str) -> list[tuple[int, int]]:
        return sorted(found(self, store, name), key=lambda place: (place[1], place[0]))[-1:]

    patch.setattr(Snapshots, "_found", highest)


def snapshots_are_not_synced(patch: Patch) -> None:
    """A snapshot has its name before it is on the disk."""
    patch.setattr(SimulatedOs, "fsync", lambda self, number: None)


def release_is_answered_before_it_is_stored(patch: Patch) -> None:
    """A release is stored as the next one is made."""
    stored = GlobalAggregator._stored

    def late(self: GlobalAggregator, model: GlobalMetaModel) -> GlobalMetaModel:
        kept, self._kept = self._kept, None
        try:
            return stored(self, model)
        finally:
            self._kept = kept

    patch.setattr(GlobalAggregator, "_stored", late)


def directory_answers_before_it_is_stored(patch: Patch) -> None:
    """Who is where is stored with every second operation."""
    once = Directory.once

    def late(self: Directory, call: Any, method: str, *args: object) -> Any:
        vars(self)["calls"] = vars(self).get("calls", 0) + 1
        if (vars(self)["calls"] - 1) // 2 % 2 == 0:
            return once(self, call, method, *args)
        kept, self._kept = self._kept, None
        try:
            return once(self, call, method, *args)
        finally:
            self._kept = kept

    patch.setattr(Directory, "once", late)


def what_was_sent_without_waiting_is_sent_again_as_new(patch: Patch) -> None:
    """A message whose answer was not waited for gets another number when it is sent again."""
    answers = ActorClient.answers

    @functools.wraps(answers)
    def renumbered(self: ActorClient, begun: BegunCalls[Any]) -> Any:
        return answers(self, replace(begun, number=self._next_id()))

    patch.setattr(ActorClient, "answers", renumbered)


def what_waits_at_the_end_is_forgotten(patch: Patch) -> None:
    """A driver that leaves neither sends what waits nor says that it did not."""
    patch.setattr(Pipeline, "close", lambda self: None)


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
STORED: tuple[Plant, ...] = (
    journal_is_a_call_late,
    journal_keeps_what_was_consumed,
    journal_forgets_replays,
)
"""Found by programs of stored federations."""


def _stored(*steps: Step) -> Program:
    return Program(steps, Setting(stored=True))


_DIES_IN_SESSION = _stored(Step(Act.SEND_ALL), Step(Act.AGGREGATE, faults=(Fault(Kind.OTHER_DIES, 21, 1),)))
"""A basket actor dies as the release is charged."""
BY_A_PROGRAM: tuple[tuple[Plant, Program], ...] = (
    (journal_is_not_told_of_sessions, _DIES_IN_SESSION),
    (journal_believes_a_session_ended, _DIES_IN_SESSION),
    (journal_forgets_answers, _stored(Step(Act.SEND_ALL, faults=(Fault(Kind.CALLEE_DIES_AFTER, 1),)))),
    (
        stopped_restore_leaves_journals,
        _stored(
            Step(Act.SEND_ALL), Step(Act.RESTORE, faults=(Fault(Kind.LOST_ANSWER, 5),)), Step(Act.AGGREGATE)
        ),
    ),
    (
        release_is_answered_before_it_is_stored,
        _stored(Step(Act.SEND_ALL), Step(Act.AGGREGATE), Step(Act.RESTORE)),
    ),
    (
        snapshots_are_not_synced,
        _stored(
            Step(Act.SEND_ALL), Step(Act.AGGREGATE, faults=(Fault(Kind.DISK_TORN, 33, 3),)), Step(Act.RESTORE)
        ),
    ),
    (directory_answers_before_it_is_stored, _stored(Step(Act.LEAVE), Step(Act.RESTORE))),
    (
        aggregates_are_not_synced,
        Program(
            (
                Step(Act.SEND_ALL),
                Step(Act.AGGREGATE),
                Step(Act.STATS, faults=(Fault(Kind.POWER_FAILS, k=4),)),
            ),
            Setting(stored=True, durability="round"),
        ),
    ),
    (
        lost_updates_are_named_by_one_driver,
        _stored(Step(Act.SEND_ALL), Step(Act.STATS, driver=1, faults=(Fault(Kind.DISK_IS_LOST),))),
    ),
    (
        snapshot_of_an_older_epoch_is_taken,
        _stored(
            Step(Act.RESTORE),
            Step(Act.LEAVE),
            Step(Act.STATS, faults=(Fault(Kind.LATE_SNAPSHOT),)),
            Step(Act.RESTORE),
        ),
    ),
    (
        what_was_sent_without_waiting_is_sent_again_as_new,
        _stored(Step(Act.SEND_LATER, faults=(Fault(Kind.LOST_ANSWER, 2),)), Step(Act.RECEIPTS)),
    ),
    (
        what_waits_at_the_end_is_forgotten,
        Program((Step(Act.SEND_LATER), Step(Act.CLOSE)), Setting(lazy=True)),
    ),
)
"""Rarer ones, each with a program that finds it, and finds nothing without it."""
FOUND_LATER: tuple[Plant, ...] = (
    answers_are_not_kept,
    gossip_charge_is_used_again,
    arrivals_are_added_twice,
    aborted_sessions_keep_aggregates,
    dead_directory_is_obeyed,
)
"""Found by the same programs, later."""
