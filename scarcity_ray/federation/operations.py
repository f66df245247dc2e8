"""Operations of several calls, which any driver can finish.

The directory decides an operation and keeps it until it is told that all its steps are done
(`actors.directory`). Whoever asks the directory where something is learns in the same answer of an operation
that another driver has left unfinished, or is about to finish, and finishes it first. So a driver may die
before or after any call.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Concatenate, cast

from scarcity_ray.actors.basket_host import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.messages import (
    Admission,
    BasketPlace,
    Begun,
    Fault,
    Operation,
    Order,
    Overtaken,
    Whereabouts,
)
from scarcity_ray.actors.names import DIRECTORY, basket_actor
from scarcity_ray.actors.parcels import ActorKey, Parcel
from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.baskets.reports import ActivityReport
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.errors import ActorLost
from scarcity_ray.federation.calls import RECOVERIES, P, RoleCalls, T
from scarcity_ray.runtime.rpc import Call
from scarcity_ray.secagg import IdentityKeyPair, Party


class _OvertakenError(Exception):
    """A basket actor obeys no order as low as the one that it was given."""

    def __init__(self, slot: int, number: OrderNumber) -> None:
        super().__init__(slot, number)
        self.slot = slot
        self.number = number


class Operations(RoleCalls):
    """How one driver begins operations and finishes those that it finds.

    Guarantees:
        a_driver_may_stop_anywhere: Before a call or after it; the next driver that calls finishes what it
            left.
        finishing_twice_changes_nothing: Nor do two drivers that finish one operation side by side.

    Attributes:
        operator: The operator's identity, where this driver holds it; it signs each new roster.
    """

    operator: IdentityKeyPair | None = None

    def operate(self, begin: Callable[[float], Call[Directory, Begun[T]]]) -> T:
        """Have the directory begin an operation, and do its steps; the directory's answer.

        Args:
            begin: What to ask of the directory at a time, in seconds since the epoch.

        Raises:
            UsageError: If the directory refuses it; then nothing has changed.
        """
        while True:
            begun = self._until_answered(DIRECTORY, begin(self.now()), self._next_call())
            stands = begun.operation is None or self.finish(begun.operation)
            if begun.is_asked_for and stands:
                return cast(T, begun.answer)

    def finish(self, operation: Operation) -> bool:
        """Do an operation's steps; whether it stands, or is void since the directory that began it died.

        Raises:
            ActorLost: If a basket actor obeys no order, however high.
        """
        refusals: Counter[int] = Counter()
        while True:
            identities: dict[int, dict[str, bytes]] = {}
            memories: list[ClientMemory] = []
            seen: list[ActivityReport] = []
            overtaken: OrderNumber | None = None
            try:
                identities = self._admit(operation)
                self._rehouse(operation.order, identities)
                self._endorse(operation, identities)
                memories = self._dismiss(operation)
                seen = self._close(operation)
                self._begin_round(operation)
            except _OvertakenError as error:
                overtaken = error.number
                refusals[error.slot] += 1
                if refusals[error.slot] > RECOVERIES:
                    raise ActorLost(
                        basket_actor(error.slot), "it obeys no order, however high", False
                    ) from None
            order = operation.order
            closing = self.call(
                DIRECTORY, Directory.finish, order, overtaken, identities, memories, seen, self.now()
            )
            if closing.again is None:
                return closing.stands
            operation = closing.again

    def whereabouts(self) -> Whereabouts:
        """Round, live baskets and basket actors, when nothing is pending any more."""
        while True:
            where = super().whereabouts()
            if where.news.pending is None:
                return where
            self.finish(where.news.pending)

    def located(self, client_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
        """Basket and slot of each client that is registered, when nothing is pending any more."""
        while True:
            found = self.ask(DIRECTORY, Directory.locate, tuple(client_ids))
            self.heed(found.news)
            if found.news.pending is None:
                return found.routes
            self.finish(found.news.pending)

    def _admit(self, operation: Operation) -> dict[int, dict[str, bytes]]:
        """Have the actors take clients in; the keys of the baskets that they were asked for, by slot."""
        admissions, source = operation.admissions, operation.order.closing
        if source is not None:
            # Who holds the closing basket hears of it first: nobody else is believed that it closes.
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
                self.note_faults([Fault(f"{role}/keyless/{operation.order.operation_id}", loss)])
        return keys

    def _rehouse(self, order: Order, identities: Mapping[int, Mapping[str, bytes]]) -> None:
        """Carry what belongs to clients of the closing basket to their new ones, sealed.

        Nothing is carried to a basket whose actor does not say that it has it.
        """
        source, there = order.closing, {b for keys in identities.values() for b in keys}
        homes = {c: home for c, home in order.homes.items() if home.basket_id in there}
        if source is None or not homes:
            return
        for _ in range(RECOVERIES):
            keys = self._actor_keys(home.slot for home in homes.values())
            told = {c: (home.basket_id, keys[home.slot]) for c, home in homes.items()}
            by_home: dict[tuple[int, str], list[Parcel]] = defaultdict(list)
            for parcel in self._step(source.slot, BasketHost.take, source.basket_id, told, order):
                if parcel.client_id in homes:
                    home = homes[parcel.client_id]
                    by_home[home.slot, home.basket_id].append(parcel)
            opened = [
                self._step(slot, BasketHost.put, basket_id, tuple(parcels), order)
                for (slot, basket_id), parcels in sorted(by_home.items())
            ]
            if all(opened):
                return
        raise ActorLost(basket_actor(source.slot), "the actors that its clients move to keep dying", False)

    def _actor_keys(self, slots: Iterable[int]) -> Mapping[int, ActorKey]:
        return self.ask_baskets(dict.fromkeys(sorted(set(slots)), Call(BasketHost.actor_key)))

    def _endorse(self, operation: Operation, identities: Mapping[int, Mapping[str, bytes]]) -> None:
        """Where an operator signs for baskets: a closing one vouches for those that its clients move to."""
        source = operation.order.closing
        if source is None or self.assembly.identity.config.operator_key is None:
            return
        parties = tuple(
            Party(basket_id, key) for keys in identities.values() for basket_id, key in keys.items()
        )
        endorsed = self.call(basket_actor(source.slot), BasketHost.endorse, source.basket_id, parties)
        endorsed = tuple(e for e in endorsed if e.party in parties and e.parent_id == source.basket_id)
        if endorsed:
            self.call(DIRECTORY, Directory.record_endorsements, endorsed)
        registry = self.call(DIRECTORY, Directory.registry)
        vain = sorted(p.party_id for p in parties if registry.known.get(p.party_id) != p.identity_public)
        if vain and registry.newest is not None and self.operator is None:
            loss = (
                f"nobody who is signed for vouches for {', '.join(vain)}: the key of {source.basket_id} is "
                f"not on the roster ({basket_actor(source.slot)} died?): they await the operator's signature"
            )
            self.note_faults([Fault(f"unendorsed/{operation.order.operation_id}", loss)])

    def _dismiss(self, operation: Operation) -> list[ClientMemory]:
        order = operation.order
        told = [self._step(p.slot, BasketHost.dismiss, p.basket_id, c, order) for p, c in operation.leavers]
        return [memory for memory in told if memory is not None]

    def _close(self, operation: Operation) -> list[ActivityReport]:
        return [
            self._step(place.slot, BasketHost.close_basket, place.basket_id, operation.order)
            for place in operation.closed
        ]

    def _begin_round(self, operation: Operation) -> None:
        order = operation.order
        if order.round_id is not None:
            told = Call(BasketHost.advance_round, order.round_id, self.now(), order)
            self._steps(dict.fromkeys(range(operation.num_slots), told))

    def _step(
        self,
        slot: int,
        method: Callable[Concatenate[BasketHost, P], T | Overtaken],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return _obeyed(slot, self.call(basket_actor(slot), method, *args, **kwargs))

    def _steps(self, calls: Mapping[int, Call[BasketHost, T | Overtaken]]) -> dict[int, T]:
        return {slot: _obeyed(slot, answer) for slot, answer in self.call_baskets(calls).items()}

    def _house(self, places: Sequence[BasketPlace]) -> None:
        """Start the actors of new baskets."""
        missing = self.assembly.missing(place.slot for place in places)
        self.recover(*map(basket_actor, missing))
        self.assembly.adopt(missing)
        self.num_slots = max([self.num_slots, *(place.slot + 1 for place in places)])


def _obeyed(slot: int, answer: T | Overtaken) -> T:
    if isinstance(answer, Overtaken):
        raise _OvertakenError(slot, answer.number)
    return answer


__all__ = ["Operations"]
