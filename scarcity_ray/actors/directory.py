"""The directory: who is in which basket, which actor holds it, and what round it is."""

from __future__ import annotations

import os
import uuid
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from scarcity_ray.actors.kept import CODEC, DirectoryChange, DirectoryState, directory_after
from scarcity_ray.actors.messages import (
    Admission,
    BasketPlace,
    Begun,
    Closing,
    Fault,
    FederationIdentity,
    Located,
    News,
    Operation,
    OperationKind,
    Order,
    Registry,
    RoutingTable,
    SlotState,
    operator_key_of,
)
from scarcity_ray.actors.recovery import Recovered
from scarcity_ray.baskets.client_memory import ClientMemories, ClientMemory
from scarcity_ray.baskets.reports import ActivityReport, Member, Registered
from scarcity_ray.config import stream
from scarcity_ray.config.arguments import moment_of
from scarcity_ray.directory import BasketInfo, BasketManager, ClientInfo, check_name
from scarcity_ray.directory.records import FIRST_TRUST, OrderNumber
from scarcity_ray.directory.roster import SlotLoads
from scarcity_ray.errors import UsageError
from scarcity_ray.runtime.collector import collector_paused
from scarcity_ray.runtime.rpc import IdempotencyKey, Role, query
from scarcity_ray.secagg import Endorsement, Party, Roster, RosterChain
from scarcity_ray.storage.snapshots import ChangingState, Snapshots
from scarcity_ray_client.errors import shown
from scarcity_ray_client.identity import PUBLIC_BYTES
from scarcity_ray_client.wire import KeyRequest

T = TypeVar("T")

REMEMBERED = 256
"""Finished operations that a directory remembers, for drivers that report late."""
TOLD = 64
"""Of these, the last ones that each order lists, so that the basket actors remember them too."""


class Directory(Role):
    """`BasketManager` as a role, with the place of each basket and the clients' public keys.

    A change of membership takes calls to several roles. The directory decides it in one step and keeps it as
    the pending operation until a driver reports that all its steps are done. Drivers that ask anything
    meanwhile get the operation and finish it first.

    Guarantees:
        one_operation_at_a_time: A request for another one returns the pending one.
        an_operation_outlives_the_directory: It is begun again from what the basket actors know of it. If no
            step of it was done, it is void.
        an_actor_speaks_for_the_baskets_in_its_slot_alone: Keys that it states for others are ignored.
        a_change_of_membership_is_durable_before_it_is_answered: Where the federation has a storage_path.
        no_epoch_is_made_halfway_through_an_operation: The roster stays as it is while one is pending.

    Args:
        num_slots: Basket actors to fill evenly; more are started only with ``runtime.baskets_per_actor``.
        recovered: What the basket actors know, if the directory is restarted.
        kept: Where it keeps its state; one that is there is taken over, unless there is something to recover.
    """

    def __init__(
        self,
        identity: FederationIdentity,
        num_slots: int,
        now: float = 0.0,
        recovered: Recovered | None = None,
        faults: Sequence[Fault] = (),
        kept: Snapshots | None = None,
    ) -> None:
        super().__init__()
        config, self._federation_id = identity.config, identity.federation_id
        self._kept = None if kept is None else ChangingState(kept, "directory", CODEC)
        self._config = config
        self._now = 0.0
        self._manager = BasketManager(
            config.basket, clock=lambda: self._now, rng=stream(config.seed, "directory")
        )
        self._slots: dict[str, int] = {}
        self._dead: dict[str, bytes] = {}
        self._loads = SlotLoads(num_slots, config.runtime.baskets_per_actor)
        self._identities: dict[str, bytes] = {}
        self._keys: dict[str, bytes | None] = {}
        self._examples: dict[str, int] = {}
        self._round_id = 0
        self._unknown = 0
        self._incarnation = os.urandom(8).hex()
        self._changes = 0
        self._told: RoutingTable | None = None
        self._number = OrderNumber()
        self._pending: Operation | None = None
        self._done: deque[str] = deque(maxlen=REMEMBERED)
        self._memories = ClientMemories()
        self._faults = {fault.fault_id: fault for fault in faults}
        operator_key = operator_key_of(config)
        self._is_signed = operator_key is not None
        pinned = () if recovered is None else recovered.rosters
        self._chain = RosterChain(identity.federation_id, operator_key, pinned)
        self._endorsements: dict[str, Endorsement] = {}
        self._num_finished = self._num_moved = 0
        self._tick(now)
        self._touched_clients: set[str] = set()
        self._touched_baskets: set[str] = set()
        self._stored_change = self._change()
        if recovered is not None:
            self._restore(recovered)
        elif self._kept is not None:
            stored, changes = self._kept.read()
            if stored is not None:
                self._take_over(directory_after(stored, changes))

    def once(self, call: IdempotencyKey, method: str, *args: object) -> Any:
        """As `Role.once`; a change of who is where is durable before it is answered."""
        answer = super().once(call, method, *args)
        self._store()
        return answer

    def _store(self) -> None:
        change = self._change()
        if self._kept is not None and change != self._stored_change:
            if change[1:] == self._stored_change[1:]:
                self._kept.change(self._changed(), self._state)
            else:
                self._kept.write(self._state())
            self._stored_change = change
            self._touched_clients.clear()
            self._touched_baskets.clear()

    @query
    def routing_table(self, known: str | None = None) -> RoutingTable | News:
        """Round, live baskets and basket actors; only the news if the version is still `known`."""
        version = f"{self._incarnation}/{self._changes}"
        if known == version:
            return self._news()
        if self._told is None or self._told.version != version:
            places = tuple(self._place(basket_id) for basket_id in self._manager.live_basket_ids())
            self._told = RoutingTable(self._round_id, places, len(self._loads), version)
        return replace(self._told, news=self._news())

    def _news(self) -> News:
        return News(self._pending, next(reversed(self._faults), None))

    def note_faults(self, faults: Sequence[Fault]) -> None:
        """Keep faults for all drivers, each once; durably, where there is a storage_path."""
        for fault in faults:
            self._faults.setdefault(fault.fault_id, fault)
        self._store()

    @query
    def faults(self) -> tuple[Fault, ...]:
        """What was lost with roles that died, oldest first."""
        return tuple(self._faults.values())

    @query
    def current_round(self) -> int:
        """The current round."""
        return self._round_id

    @query
    def locate(self, client_ids: Sequence[str]) -> Located:
        """Basket and slot of each client that is registered."""
        found: dict[str, tuple[str, int]] = {}
        for client_id in client_ids:
            basket_id = self._manager.get_client_basket(client_id)
            if basket_id is not None:
                found[client_id] = basket_id, self._slots[basket_id]
        return Located(found, self._news())

    def count_unknown(self, count: int) -> None:
        """Count updates of clients that are not registered."""
        self._unknown += count

    @collector_paused()
    def register(self, clients: Sequence[Member], now: float) -> Begun[tuple[str, ...]]:
        """Assign clients to baskets; the answer names the basket of each.

        Raises:
            UsageError: For an id that cannot be one, a client registered in another domain or under another
                key; then no client of the call is registered.
        """
        if self._pending is not None:
            return Begun(self._pending, False)
        self._tick(now)
        for member in clients:
            self._check(member)
        joined: dict[str, list[str]] = defaultdict(list)
        baskets: list[str] = []
        for member in clients:
            is_new = self._manager.get_client_basket(member.client_id) is None
            basket_id = self._manager.add_client(member.client_id, member.domain_id, member.features)
            memory = self._memories.get(member.client_id)
            if is_new and memory is not None:
                self._manager.record_trust(member.client_id, memory.trust)
            self._keys[member.client_id] = member.public_key
            if member.num_examples is not None:
                self._examples[member.client_id] = member.num_examples
            self._settle(basket_id)
            self._touch(member.client_id, basket_id)
            joined[basket_id].append(member.client_id)
            baskets.append(basket_id)
        admissions = tuple(self._admission(b, ids) for b, ids in joined.items())
        return self._begin(Operation(self._order(OperationKind.REGISTER), admissions), tuple(baskets))

    def unregister(self, client_id: str, now: float) -> Begun[bool]:
        """Remove a client; the answer is whether it was registered."""
        if self._pending is not None:
            return Begun(self._pending, False)
        self._tick(now)
        basket_id = self._manager.get_client_basket(client_id)
        if basket_id is None:
            return Begun(None, answer=False)
        info = self._manager.get_client(client_id)
        trust = FIRST_TRUST if info is None else info.trust_score
        self._manager.remove_client(client_id)
        self._keys.pop(client_id, None)
        self._examples.pop(client_id, None)
        place, order = self._place(basket_id), self._order(OperationKind.UNREGISTER)
        # In case that the basket actor, which remembers more, dies before it has reported.
        self._memories.note([ClientMemory(client_id, place.slot, trust, number=order.number)])
        self._touch(client_id, basket_id)
        return self._begin(Operation(order, leavers=((place, client_id),)), True)

    def change_key(self, client_id: str, asked: KeyRequest, now: float) -> Begun[None]:
        """Have a client sign with another key from now on, as the old key and the new one have signed.

        Raises:
            UsageError: If no such client is registered with a key, or a proof is missing.
        """
        if self._pending is not None:
            return Begun(self._pending, False)
        self._tick(now)
        basket_id, known = self._manager.get_client_basket(client_id), self._keys.get(client_id)
        if basket_id is None or known is None:
            raise UsageError(f"client {shown(client_id)} is not registered with a key")
        if known != asked.public_key and not asked.is_valid(known, self._federation_id, client_id):
            raise UsageError(f"client {client_id!r}: its old key and the new one have not both signed this")
        self._keys[client_id] = asked.public_key
        self._touch(client_id, basket_id)
        admission = self._admission(basket_id, (client_id,))
        return self._begin(Operation(self._order(OperationKind.REGISTER), (admission,)), None)

    def registry(self, since: int = 0) -> Registry:
        """The registered baskets: the roster's epochs after `since`, or the newest alone.

        All live baskets are registered under their last keys, even if their actors do not answer. A change
        since the last epoch makes a new one, once no operation is pending: halfway through a split neither
        the basket nor its halves would be on it. With an operator's key the new epoch waits for a signature.
        """
        parties = self._parties()
        draft = None
        changed = self._chain.newest is None or self._chain.newest.parties != tuple(parties)
        if changed and self._pending is None:
            draft = self._chain.next(parties) if parties or self._chain.newest is not None else None
        if draft is not None and not self._is_signed:
            self._chain.follow((draft,))
            draft = None
        endorsements = tuple(self._endorsements.values())
        self._chain.endorse(endorsements)
        known = self._chain.known()
        return Registry(self._chain.since(since), endorsements, known, draft, self._number.life)

    @query
    def registered(self, signs: bool) -> Registered:
        """The baskets that count as registered in the next release; this begins no epoch.

        Args:
            signs: Whether the caller holds the operator's key, and so signs each new roster.
        """
        parties, newest = self._parties(), self._chain.newest
        if newest is None or signs or not self._is_signed:
            has_roster = signs or not self._is_signed
            return Registered(len(parties), frozenset(p.party_id for p in parties), has_roster=has_roster)
        self._chain.endorse(self._endorsements.values())
        keys = self._chain.known()
        known = {p.party_id for p in parties if keys.get(p.party_id) == p.identity_public}
        return Registered(len(newest.parties), frozenset(known), len(known - newest.keys().keys()))

    def adopt_roster(self, roster: Roster) -> str:
        """Adopt the next epoch with the operator's signature; why not, or empty."""
        return self._chain.follow((roster,))

    def record_endorsements(self, endorsements: Sequence[Endorsement]) -> None:
        """Store endorsements of new baskets by the baskets that they came from."""
        self._endorsements.update({endorsed.party.party_id: endorsed for endorsed in endorsements})

    def split(self, basket_id: str, now: float) -> Begun[tuple[str, str]]:
        """Split a basket in two, whose ids are the answer."""
        if self._pending is not None:
            return Begun(self._pending, False)
        self._tick(now)
        basket_id = self._manager.resolve(basket_id)
        halves = self._manager.split_basket(basket_id)
        return self._begin(self._migration(OperationKind.SPLIT, basket_id), halves)

    def disband(self, basket_id: str, now: float) -> Begun[None]:
        """Close a basket; its clients go to others of their domain.

        A basket that no actor holds any more is only removed from the roster.
        """
        if self._pending is not None:
            return Begun(self._pending, False)
        self._tick(now)
        if self._dead.pop(basket_id, None) is not None:
            return Begun(None)
        basket_id = self._manager.resolve(basket_id)
        self._manager.disband_basket(basket_id)
        return self._begin(self._migration(OperationKind.DISBAND, basket_id), None)

    def advance_round(self, now: float) -> Begun[int]:
        """Begin the next round, whose number is the answer; emptied baskets are removed."""
        if self._pending is not None:
            return Begun(self._pending, False)
        self._tick(now)
        self._round_id += 1
        self._changes += 1
        self._num_moved += 1
        self._memories.forget_before(self._round_id - self._config.buffer.max_staleness, self._now)
        before = {basket_id: self._place(basket_id) for basket_id in self._manager.live_basket_ids()}
        emptied = self._manager.cleanup()
        for basket_id in emptied:
            self._loads.remove(self._slots[basket_id])
        closed = tuple(before[basket_id] for basket_id in emptied)
        order = self._order(OperationKind.ADVANCE_ROUND, round_id=self._round_id)
        return self._begin(Operation(order, closed=closed), self._round_id)

    def finish(
        self,
        order: Order,
        overtaken: OrderNumber | None,
        identities: Mapping[int, Mapping[str, bytes]],
        memories: Sequence[ClientMemory],
        seen: Sequence[ActivityReport],
        now: float,
    ) -> Closing:
        """Note that a driver has done an operation's steps.

        Args:
            order: The operation's.
            overtaken: If a basket actor refused the order: the lowest that it obeys.
            identities: Public keys of the baskets that were opened, by slot, as the actors stated them.
            memories: What must be remembered of the clients that left.
            seen: The last activity of the baskets that were closed.
            now: Seconds since the epoch.
        """
        self.note_activity(seen, now)
        pending = self._pending
        if pending is not None and pending.order.operation_id == order.operation_id:
            if overtaken is not None:
                self.outlive(overtaken)
                return Closing(False, self._pending)
            if pending.order.number != order.number:
                return Closing(False, pending)
            for slot, keys in identities.items():
                self.record_identities(slot, keys)
            self._memories.note(memories)
            self._num_finished += bool(memories or pending.closed)
            self._num_moved += bool(pending.closed)
            self._touched_clients.update(memory.client_id for memory in memories)
            for place in pending.closed:  # A basket's id is never used again.
                self._slots.pop(place.basket_id, None)
                self._identities.pop(place.basket_id, None)
            self._pending = None
            self._done.append(order.operation_id)
        return Closing(order.operation_id in self._done)

    def outlive(self, number: OrderNumber) -> None:
        """Begin a new life after `number`, which an actor obeys, and the pending operation again.

        So it is if a restart of the directory failed after the actors had stepped down from this one.
        """
        self._number = OrderNumber(max(self._number, number).life + 1)
        if self._pending is not None:
            order = replace(self._pending.order, number=self._next_number())
            self._pending = replace(self._pending, order=order)

    def record_identities(self, slot: int, identities: Mapping[str, bytes]) -> None:
        """Store the identity keys of baskets, as the actor of their slot states them; others are ignored."""
        own = {
            basket_id: key
            for basket_id, key in identities.items()
            if self._slots.get(basket_id) == slot and type(key) is bytes and len(key) == PUBLIC_BYTES
        }
        self._changes += any(self._identities.get(b) != key for b, key in own.items())
        self._identities.update(own)
        self._touched_baskets.update(own)
        for basket_id in own:
            self._dead.pop(basket_id, None)

    @query
    def resolve(self, basket_id: str) -> BasketPlace:
        """The place of a basket, named by its id or by a domain that has one basket."""
        return self._place(self._manager.resolve(basket_id))

    @query
    def slot_state(self, slot: int) -> SlotState:
        """All that a basket actor needs to know when it starts, or is restarted."""
        baskets = [b for b in self._manager.live_basket_ids() if self._slots[b] == slot]
        admissions = tuple(self._admission(b, sorted(self._manager.get_basket_clients(b))) for b in baskets)
        number = replace(self._number, count=self._number.count + 1)
        if self._pending is not None:
            number = self._pending.order.number
            baskets += [place.basket_id for place in self._pending.closed if place.slot == slot]
        return SlotState(
            admissions=admissions,
            memories=tuple(m for m in self._memories.all() if m.slot == slot),
            number=number,
            order=None if self._pending is None else self._pending.order,
            baskets=tuple(baskets),
            keys=tuple(self._identities[b] for b in baskets if b in self._identities),
            placed_domain=self._loads.domain(slot),
            faults=tuple(self._faults.values()),
        )

    def note_activity(self, reports: Sequence[ActivityReport], now: float) -> None:
        """Record the activity that basket actors report."""
        self._tick(now)
        for report in reports:
            for client_id, activity in report.clients.items():
                self._manager.record_trust(client_id, activity.trust)
                self._touched_clients.add(client_id)
                if activity.accepted and self._manager.get_client_basket(client_id) is not None:
                    self._manager.touch_client(client_id, n_updates=activity.accepted, at=activity.seen)
            for basket_id, at in report.baskets.items():
                if self._manager.is_live(basket_id):
                    self._manager.touch_basket(basket_id, at=at)
                    self._touched_baskets.add(basket_id)

    @query
    def client(self, client_id: str, now: float) -> ClientInfo | None:
        """What is known of a client."""
        self._tick(now)
        return self._manager.get_client(client_id)

    @query
    def clients(self, limit: int, now: float) -> list[ClientInfo]:
        """What is known of up to `limit` clients, the first by id, without their features."""
        self._tick(now)
        return self._manager.get_clients(limit)

    @query
    def basket(self, basket_id: str, now: float) -> BasketInfo | None:
        """What is known of a basket."""
        self._tick(now)
        return self._manager.get_basket(basket_id)

    @query
    def stale_baskets(self, threshold: float | None, now: float) -> list[str]:
        """Baskets without activity for `threshold` seconds (the configured time if None)."""
        self._tick(now)
        return list(self._manager.get_stale_baskets(threshold))

    @query
    def stats(self, now: float) -> dict[str, Any]:
        """The manager's statistics, the round, and each live basket's status and size."""
        self._tick(now)
        live = self._manager.live_baskets()
        return {
            **self._manager.get_stats(),
            "current_round": self._round_id,
            "statuses": {info.basket_id: info.status.value for info in live},
            "sizes": {info.basket_id: len(info.clients) for info in live},
            "unknown_clients": self._unknown,
            "trusts_dropped": self._memories.num_dropped,
        }

    def _parties(self) -> list[Party]:
        """All live baskets, and dead ones that were not closed, under their last keys; sorted by id."""
        live = self._manager.live_basket_ids()
        keys = {b: self._identities[b] for b in live if b in self._identities}
        return sorted(Party(basket_id, key) for basket_id, key in {**self._dead, **keys}.items())

    def _change(self) -> tuple[object, ...]:
        """What differs once there is something to store; clients' activity alone is not.

        If only the first differs, `_changed` tells of it all.
        """
        come_and_gone = self._number, self._num_finished
        rest = self._chain.epoch, len(self._endorsements), len(self._dead), len(self._faults)
        return come_and_gone, self._num_moved, *rest

    def _touch(self, client_id: str, basket_id: str) -> None:
        self._touched_clients.add(client_id)
        self._touched_baskets.add(basket_id)

    def _changed(self) -> DirectoryChange:
        """What has changed since it was last stored, as clients came and left."""
        clients, baskets = sorted(self._touched_clients), self._touched_baskets
        memories = (self._memories.get(client_id) for client_id in clients)
        return DirectoryChange(
            manager=self._manager.change_of(clients, baskets),
            slots={b: self._slots[b] for b in baskets if b in self._slots},
            num_slots=len(self._loads),
            identities={b: self._identities[b] for b in baskets if b in self._identities},
            keys={c: self._keys[c] for c in clients if c in self._keys},
            examples={c: self._examples[c] for c in clients if c in self._examples},
            unknown=self._unknown,
            number=self._number,
            memories=tuple(memory for memory in memories if memory is not None),
            pending=self._pending,
        )

    def _state(self) -> DirectoryState:
        return DirectoryState(
            round_id=self._round_id,
            manager=self._manager.kept(),
            slots=self._slots,
            num_slots=len(self._loads),
            identities=self._identities,
            dead=self._dead,
            keys=self._keys,
            examples=self._examples,
            unknown=self._unknown,
            number=self._number,
            memories=self._memories.all(),
            faults=tuple(self._faults.values()),
            rosters=self._chain.kept,
            endorsements=tuple(self._endorsements.values()),
            pending=self._pending,
        )

    def _take_over(self, state: DirectoryState) -> None:
        """Continue from a stored state; the operation that was pending is begun again."""
        self._manager.restore(state.manager)
        live = set(self._manager.live_basket_ids())
        self._slots = {basket_id: slot for basket_id, slot in state.slots.items() if basket_id in live}
        self._loads.extend(state.num_slots)
        for basket_id, slot in self._slots.items():
            self._loads.add(slot, self._placed(basket_id))
        self._identities = {b: key for b, key in state.identities.items() if b in live}
        self._dead, self._keys = dict(state.dead), dict(state.keys)
        self._examples, self._unknown = dict(state.examples), state.unknown
        self._round_id, self._number = state.round_id, OrderNumber(state.number.life + 1)
        self._memories.note(state.memories)
        self._faults = {fault.fault_id: fault for fault in state.faults} | self._faults
        self._chain.follow(state.rosters)
        self._endorsements = {endorsed.party.party_id: endorsed for endorsed in state.endorsements}
        if state.pending is not None:
            self._begin_again(state.pending)

    def _begin_again(self, operation: Operation) -> None:
        order = replace(operation.order, number=self._next_number())
        self._pending = replace(operation, order=order, num_slots=len(self._loads))
        self._slots.update({place.basket_id: place.slot for place in operation.closed})

    def _restore(self, recovered: Recovered) -> None:
        for admission in recovered.admissions:
            place = admission.place
            members = [(m.client_id, m.domain_id, m.features) for m in admission.members]
            self._manager.restore_basket(place.basket_id, place.domain_id, members)
            for member in admission.members:
                self._manager.record_trust(member.client_id, member.trust)
            self._slots[place.basket_id] = place.slot
            self._loads.add(place.slot, self._placed(place.basket_id))
            if place.identity:
                self._identities[place.basket_id] = place.identity
            self._keys.update({m.client_id: m.public_key for m in admission.members})
            told = {m.client_id: m.num_examples for m in admission.members if m.num_examples is not None}
            self._examples.update(told)
        self._dead = dict(recovered.dead)
        self._endorsements = {endorsed.party.party_id: endorsed for endorsed in recovered.endorsements}
        self._memories.note(recovered.memories)
        self._round_id = recovered.round_id
        self._number = recovered.number
        self._done.extend(recovered.done)
        if recovered.pending is not None:
            self._begin_again(recovered.pending)

    def _begin(self, operation: Operation, answer: T) -> Begun[T]:
        self._pending = replace(operation, num_slots=len(self._loads))
        return Begun(self._pending, answer=answer)

    def _order(self, kind: OperationKind, round_id: int | None = None) -> Order:
        done = tuple(self._done)[-TOLD:]
        return Order(self._next_number(), uuid.uuid4().hex, kind, round_id=round_id, done=done)

    def _next_number(self) -> OrderNumber:
        self._number = replace(self._number, count=self._number.count + 1)
        return self._number

    def _tick(self, now: float) -> None:
        self._now = max(self._now, moment_of("now", now))  # For good, so that what is no time stays out.

    def _check(self, member: Member) -> None:
        check_name("client id", member.client_id)
        check_name("domain id", member.domain_id)
        known = self._manager.get_client(member.client_id)
        if known is None:
            return
        where = ""
        if known.domain_id != member.domain_id:
            where = f"in domain {known.domain_id!r}"
        elif self._keys.get(member.client_id) != member.public_key:
            where = "under another key"
        if where:
            raise UsageError(f"client {member.client_id!r} is registered {where}; unregister it first")

    def _settle(self, basket_id: str) -> None:
        """Assign an actor to a new basket (`SlotLoads.take`)."""
        if basket_id not in self._slots:
            self._slots[basket_id] = self._loads.take(self._placed(basket_id))
            self._changes += 1

    def _placed(self, basket_id: str) -> str | None:
        """The domain of a basket, if ``runtime.placement`` names it."""
        domain_id = self._manager.domain_of(basket_id)
        return domain_id if domain_id in self._config.runtime.placement else None

    def _place(self, basket_id: str) -> BasketPlace:
        domain_id, key = self._manager.domain_of(basket_id) or "", self._identities.get(basket_id, b"")
        return BasketPlace(basket_id, domain_id, self._slots[basket_id], key)

    def _admission(self, basket_id: str, clients: Iterable[str]) -> Admission:
        return Admission(self._place(basket_id), tuple(map(self._member, clients)))

    def _member(self, client_id: str) -> Member:
        info, key = self._manager.get_client(client_id), self._keys.get(client_id)
        if info is None:
            return Member(client_id, "", key)
        examples, memory = self._examples.get(client_id), self._memories.get(client_id)
        return Member(client_id, info.domain_id, key, info.features, info.trust_score, examples, memory)

    def _migration(self, kind: OperationKind, closed: str) -> Operation:
        self._loads.remove(self._slots[closed])
        self._changes += 1
        self._num_moved += 1
        moved: dict[str, list[str]] = defaultdict(list)
        for move in self._manager.moves_from(closed):
            moved[move.to_basket].append(move.client_id)
        targets = [basket_id for basket_id in self._manager.live_basket_ids() if basket_id in moved]
        for basket_id in targets:
            self._settle(basket_id)
        closing, homes = self._place(closed), {b: self._place(b) for b in targets}
        order = replace(
            self._order(kind),
            closing=closing,
            homes={client_id: homes[b] for b in targets for client_id in moved[b]},
        )
        admissions = tuple(self._admission(b, moved[b]) for b in targets)
        return Operation(order, admissions, closed=(closing,))
