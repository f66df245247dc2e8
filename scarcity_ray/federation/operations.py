"""Operations of several calls, which any driver can finish.

The directory decides an operation and keeps it until a driver reports that all its steps are done
(`actors.directory`). Each lookup in the directory returns the pending operation, and a driver that sees one
finishes it first. So a driver may die before or after any call.

An update goes to the basket that the directory named last, without a lookup. A client that has left that
basket since, or is in the midst of an operation that moves it, is refused there as unknown, and looked up.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Concatenate, cast

from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import (
    Admission,
    BasketPlace,
    Begun,
    Fault,
    News,
    Operation,
    Order,
    Overtaken,
    RoutingTable,
)
from scarcity_ray.actors.migration import SealedBox
from scarcity_ray.actors.names import DIRECTORY, basket_actor
from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.baskets.reports import ActivityReport
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.errors import ActorLost, ProtocolViolation
from scarcity_ray.federation.client import RECOVERIES, ActorClient, P, T
from scarcity_ray.runtime.rpc import Call
from scarcity_ray.secagg import IdentityKeyPair, Party

ROUTES = 100_000
"""Clients that a driver keeps the baskets of; once there are more it begins anew."""


class _OvertakenError(Exception):
    """A basket actor has refused an order because its number is too low."""

    def __init__(self, slot: int, number: OrderNumber) -> None:
        super().__init__(slot, number)
        self.slot = slot
        self.number = number


class OperationRunner:
    """Begins operations for one driver, and finishes those that it finds pending.

    Guarantees:
        a_driver_may_stop_anywhere: Before a call or after it; the next driver finishes the operation.
        finishing_twice_changes_nothing: Nor do two drivers that finish one operation at the same time.
    """

    def __init__(self, client: ActorClient, operator: IdentityKeyPair | None = None) -> None:
        self.client = client
        self.operator = operator
        self._routes: dict[str, tuple[str, int]] = {}

    def run(
        self, method: Callable[Concatenate[Directory, P], Begun[T]], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Begin an operation in the directory, and do its steps; the directory's answer.

        Raises:
            UsageError: If the directory refuses it, which changes nothing.
        """
        while True:
            begun = self.client.call(DIRECTORY, method, *args, **kwargs)
            stands = begun.operation is None or self.finish(begun.operation)
            if begun.is_asked_for and stands:
                return cast(T, begun.answer)

    def finish(self, operation: Operation) -> bool:
        """Do an operation's steps; False if it is void, since the directory that began it died.

        Raises:
            ActorLost: If a basket actor refuses every order.
        """
        self.client.is_up_to_date = False
        refusals: Counter[int] = Counter()
        while True:
            order = operation.order
            identities: dict[int, dict[str, bytes]] = {}
            memories: list[ClientMemory] = []
            seen: list[ActivityReport] = []
            overtaken: OrderNumber | None = None
            try:
                identities = self._admit(operation)
                self._migrate(order, identities)
                self._endorse(operation, identities)
                for place, client_id in operation.leavers:
                    memory = self._step(place.slot, BasketHost.dismiss, place.basket_id, client_id, order)
                    memories += [] if memory is None else [memory]
                for place in operation.closed:
                    seen.append(self._step(place.slot, BasketHost.close_basket, place.basket_id, order))
                if order.round_id is not None:
                    told = Call(BasketHost.advance_round, order.round_id, self.client.now(), order)
                    self._steps(dict.fromkeys(range(operation.num_slots), told))
            except _OvertakenError as error:
                overtaken = error.number
                refusals[error.slot] += 1
                if refusals[error.slot] > RECOVERIES:
                    raise ActorLost(
                        basket_actor(error.slot), "it obeys no order, however high", False
                    ) from None
            closing = self.client.call(
                DIRECTORY, Directory.finish, order, overtaken, identities, memories, seen, self.client.now()
            )
            if closing.again is None:
                if closing.stands:
                    self._learn(operation)
                return closing.stands
            operation = closing.again

    def routing_table(self, *, fresh: bool = True) -> RoutingTable:
        """Round, live baskets and basket actors, after pending operations are finished.

        Args:
            fresh: Whether to ask the directory even if this driver knows of no change.
        """
        client, where = self.client, self.client.routing_table
        while where is None or fresh or not client.is_up_to_date:
            # The table is sent again only if it has changed.
            answer = client.call(DIRECTORY, Directory.routing_table, None if where is None else where.version)
            news = answer if isinstance(answer, News) else answer.news
            if not isinstance(answer, News):
                client.routing_table = where = answer
                client.supervisor.num_slots = where.num_slots
            elif where is None:
                raise ProtocolViolation("the directory has no routing table for a driver that has none")
            client.heed(news)
            if news.pending is None:
                client.is_up_to_date, fresh = True, False
            else:
                self.finish(news.pending)
        return where

    def locate(self, client_ids: Collection[str], *, fresh: bool = True) -> Mapping[str, tuple[str, int]]:
        """Basket and slot of each registered client, after pending operations are finished.

        Args:
            fresh: Whether to ask the directory even if it has told this driver of all of them before: a
                client may have moved since, and then its old basket does not know it any more.
        """
        known = {c: route for c in client_ids if (route := self._routes.get(c)) is not None}
        if not fresh and all(client_id in known for client_id in client_ids):
            return known
        asked = tuple(sorted(set(client_ids)))
        for client_id in asked:
            self._routes.pop(client_id, None)
        while True:
            found = self.client.call(DIRECTORY, Directory.locate, asked)
            self.client.heed(found.news)
            if found.news.pending is None:
                self._keep_routes(found.routes)
                return found.routes
            self.finish(found.news.pending)

    def _learn(self, operation: Operation) -> None:
        """Know where clients are that an operation has put there, and that others are gone."""
        for admission in operation.admissions:
            place = admission.place.basket_id, admission.place.slot
            self._keep_routes(dict.fromkeys((m.client_id for m in admission.members), place))
        for _, client_id in operation.leavers:
            self._routes.pop(client_id, None)

    def _keep_routes(self, found: Mapping[str, tuple[str, int]]) -> None:
        if len(self._routes) + len(found) > ROUTES:
            self._routes.clear()
        if len(found) <= ROUTES:
            self._routes |= found

    def _admit(self, operation: Operation) -> dict[int, dict[str, bytes]]:
        """Admit clients to their baskets; the baskets' identity keys, by slot."""
        admissions, source = operation.admissions, operation.order.closing
        if source is not None:
            # The actor of the closing basket is told first: recovery believes no other (`actors.recovery`).
            self._step(source.slot, BasketHost.take, source.basket_id, {}, operation.order)
        self._house([admission.place for admission in admissions])
        by_slot: dict[int, list[Admission]] = defaultdict(list)
        for admission in admissions:
            by_slot[admission.place.slot].append(admission)
        order = operation.order
        answers = self._steps({s: Call(BasketHost.admit, tuple(a), order) for s, a in by_slot.items()})
        keys: dict[int, dict[str, bytes]] = {}
        for slot, asked in by_slot.items():
            stated = answers[slot] if isinstance(answers[slot], dict) else {}
            ids = [admission.place.basket_id for admission in asked]
            keys[slot] = {basket_id: stated[basket_id] for basket_id in ids if basket_id in stated}
            missing = sorted(set(ids) - set(keys[slot]))
            if missing:
                role = basket_actor(slot)
                loss = f"{role} states no key of {', '.join(missing)}, which take part in no session"
                self.client.note_faults([Fault(f"{role}/keyless/{operation.order.operation_id}", loss)])
        return keys

    def _migrate(self, order: Order, identities: Mapping[int, Mapping[str, bytes]]) -> None:
        """Carry the sealed state of the closing basket's clients to their new baskets that exist."""
        source, there = order.closing, {b for keys in identities.values() for b in keys}
        homes = {c: home for c, home in order.homes.items() if home.basket_id in there}
        if source is None or not homes:
            return
        for _ in range(RECOVERIES):
            slots = sorted({home.slot for home in homes.values()})
            keys = self.client.call_baskets(dict.fromkeys(slots, Call(BasketHost.actor_key)))
            told = {c: (home.basket_id, keys[home.slot]) for c, home in homes.items()}
            by_home: dict[tuple[int, str], list[SealedBox]] = defaultdict(list)
            for box in self._step(source.slot, BasketHost.take, source.basket_id, told, order):
                if box.client_id in homes:
                    home = homes[box.client_id]
                    by_home[home.slot, home.basket_id].append(box)
            opened = [
                self._step(slot, BasketHost.put, basket_id, tuple(boxes), order)
                for (slot, basket_id), boxes in sorted(by_home.items())
            ]
            if all(opened):
                return
        raise ActorLost(basket_actor(source.slot), "the actors that its clients move to keep dying", False)

    def _endorse(self, operation: Operation, identities: Mapping[int, Mapping[str, bytes]]) -> None:
        """With an operator's key, have the closing basket vouch for the new baskets of its clients."""
        source = operation.order.closing
        if source is None or self.client.supervisor.identity.config.operator_key is None:
            return
        parties = tuple(
            Party(basket_id, key) for keys in identities.values() for basket_id, key in keys.items()
        )
        endorsed = self.client.call(basket_actor(source.slot), BasketHost.endorse, source.basket_id, parties)
        endorsed = tuple(e for e in endorsed if e.party in parties and e.parent_id == source.basket_id)
        if endorsed:
            self.client.call(DIRECTORY, Directory.record_endorsements, endorsed)
        registry = self.client.call(DIRECTORY, Directory.registry)
        vain = sorted(p.party_id for p in parties if registry.known.get(p.party_id) != p.identity_public)
        if vain and registry.newest is not None and self.operator is None:
            loss = (
                f"nobody who is signed for vouches for {', '.join(vain)}: the key of {source.basket_id} is "
                f"not on the roster ({basket_actor(source.slot)} died?): they await the operator's signature"
            )
            self.client.note_faults([Fault(f"unendorsed/{operation.order.operation_id}", loss)])

    def _step(
        self,
        slot: int,
        method: Callable[Concatenate[BasketHost, P], T | Overtaken],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return _obeyed(slot, self.client.call(basket_actor(slot), method, *args, **kwargs))

    def _steps(self, calls: Mapping[int, Call[BasketHost, T | Overtaken]]) -> dict[int, T]:
        return {slot: _obeyed(slot, answer) for slot, answer in self.client.call_baskets(calls).items()}

    def _house(self, places: Sequence[BasketPlace]) -> None:
        """Start the actors of new baskets."""
        supervisor = self.client.supervisor
        missing = supervisor.missing(place.slot for place in places)
        if missing:
            self.client.recover(*map(basket_actor, missing))
            supervisor.adopt(missing)
        supervisor.num_slots = max([supervisor.num_slots, *(place.slot + 1 for place in places)])


def _obeyed(slot: int, answer: T | Overtaken) -> T:
    if isinstance(answer, Overtaken):
        raise _OvertakenError(slot, answer.number)
    return answer
