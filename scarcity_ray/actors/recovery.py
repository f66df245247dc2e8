"""Rebuilds a restarted directory's state from what the basket actors know.

When a directory dies, some basket actors may have done steps of its pending operation. The new one continues:

* A split or a disband is begun again from the start, since every step may be repeated. Each actor that did a
  step keeps the whole order.
* A round that not all actors have reached is begun again, also if they have only heard of it.
* A client has left, or is registered, if its actor says so. The driver that asked for it is told that the
  operation is void, and asks again. A client that several baskets claim must register again.
* Operations that were done before the last one are listed in its order, for drivers that report late.
* An operation that no actor has heard of is void: when asked for their state, the actors stop obeying the
  directory that died (`actors.basket.BasketHost.step_down`).

An actor is believed only about the baskets in its own slot. A basket that two actors claim belongs to the one
that signs with the basket's key on the roster. Where a closing basket's clients go is believed from the actor
that holds it, which is told first. The roster is the one that most actors have pinned, with its successors;
a basket stays on it until it is closed by an operation or by its own signature.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scarcity_ray.actors.messages import (
    Admission,
    BasketPlace,
    Fault,
    Operation,
    OperationKind,
    Order,
    has_closed,
)
from scarcity_ray.baskets.client_memory import ClientMemory
from scarcity_ray.baskets.reports import Member
from scarcity_ray.directory.records import OrderNumber
from scarcity_ray.secagg import Endorsement, IdentityKeyPair, Roster
from scarcity_ray.secagg.roster import KEPT, is_sound


@dataclass(frozen=True, eq=False)
class HostState:
    """What one basket actor knows, for a restarted directory.

    Attributes:
        number: The lowest order that it obeys from now on.
        order: The last operation that it took part in.
        rosters: The newest epochs of the roster that it has pinned.
        endorsements: Of baskets that are not on a signed roster yet.
        proofs: By each of its baskets, a signature of `BasketPlace.holding`, 64 bytes.
        closed: By its former baskets that are still on the roster, a signature that the basket has closed.
        faults: Those that it was told of.
    """

    round_id: int
    number: OrderNumber
    order: Order | None = None
    admissions: tuple[Admission, ...] = ()
    memories: tuple[ClientMemory, ...] = ()
    rosters: tuple[Roster, ...] = ()
    endorsements: tuple[Endorsement, ...] = ()
    proofs: Mapping[str, bytes] = field(default_factory=dict)
    closed: Mapping[str, bytes] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, eq=False)
class Recovered:
    """The state that a restarted directory begins with.

    Attributes:
        number: Its orders come after this one.
        admissions: The baskets and their members, sorted; a client is in at most one of them.
        done: Ids of operations that are known to be done.
        pending: The operation to begin again; the directory gives it a new number.
        rosters: The newest epochs of the roster that most actors have pinned, and its successors.
        endorsements: Of the baskets that exist.
        dead: Baskets on the roster that no actor holds and that are not closed, with their keys.
    """

    round_id: int
    number: OrderNumber
    admissions: tuple[Admission, ...]
    memories: tuple[ClientMemory, ...]
    done: tuple[str, ...] = ()
    pending: Operation | None = None
    rosters: tuple[Roster, ...] = ()
    endorsements: tuple[Endorsement, ...] = ()
    dead: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def contested(self) -> tuple[str, ...]:
        """Clients that several baskets claim, sorted; they are in none."""
        leavers = () if self.pending is None else self.pending.leavers
        claims = Counter(client_id for _, client_id in leavers)
        return tuple(sorted(client_id for client_id, count in claims.items() if count > 1))


def recovered_from(by_slot: Mapping[int, HostState]) -> Recovered:
    """The directory's state, from the states of all basket actors that answer."""
    states = [state for _, state in sorted(by_slot.items())]
    number = max((state.number for state in states), default=OrderNumber())
    memories = tuple(memory for state in states for memory in state.memories)
    rosters, pinned = _pinned_by_most([state.rosters for state in states])
    held = _held(by_slot, pinned)
    believed = [
        o for slot, s in sorted(by_slot.items()) if (o := s.order) and _believed(o, slot, by_slot, held)
    ]
    orders = sorted(believed, key=lambda order: order.number)
    last = orders[-1] if orders else None
    reached = {state.round_id for state in states}
    round_id = max(reached | {0 if last is None or last.round_id is None else last.round_id})
    homes = {} if last is None else last.homes
    admissions, strays = _housed(held, last)
    pending: Operation | None = None
    done = tuple(dict.fromkeys(operation_id for order in orders for operation_id in order.done))
    if last is not None and last.closing is not None:
        pending = Operation(
            last,
            tuple(a for a in admissions if a.place.basket_id in {p.basket_id for p in homes.values()}),
            strays,
            (last.closing,),
        )
    elif strays or reached - {round_id}:
        is_round = last is not None and last.kind is OperationKind.ADVANCE_ROUND
        operation_id = last.operation_id if last is not None and is_round else f"recovery/{number.life}"
        order = Order(number, operation_id, OperationKind.RECOVER, round_id=round_id, done=done)
        pending = Operation(order, leavers=strays)
    elif last is not None and last.kind is not OperationKind.REGISTER:
        done = (*done, last.operation_id)
    keys = {basket_id: admission.place.identity for basket_id, admission in held.items()}
    endorsements = tuple(
        dict.fromkeys(
            e for s in states for e in s.endorsements if keys.get(e.party.party_id) == e.party.identity_public
        )
    )
    dead = {
        basket_id: key
        for basket_id, key in pinned.items()
        if basket_id not in held and not any(has_closed(basket_id, key, state.closed) for state in states)
    }
    return Recovered(round_id, number, admissions, memories, done, pending, rosters, endorsements, dead)


def _pinned_by_most(chains: Sequence[tuple[Roster, ...]]) -> tuple[tuple[Roster, ...], Mapping[str, bytes]]:
    """The chain of rosters that most actors have pinned, and the keys on the last one that a majority has.

    It goes from the epoch that most actors hold (the later one of equals) on to its successors, at each step
    the one that most hold. A chain with a broken link, or without that epoch, is ignored.
    """
    sound = [chain for chain in chains if chain and _is_linked(chain)]
    votes = Counter(roster.digest() for chain in sound for roster in chain)
    rosters = {roster.digest(): roster for chain in sound for roster in chain}
    if not votes:
        return (), {}
    tip = best = max(rosters, key=lambda d: (votes[d], rosters[d].epoch))
    ahead = [best]
    while following := [d for d in rosters if rosters[d].previous == tip]:
        tip = max(following, key=lambda d: votes[d])
        ahead.append(tip)
    behind: list[bytes] = []
    while (best := rosters[best].previous) in rosters:
        behind.insert(0, best)
    pinned = next(d for d in reversed(ahead) if d == ahead[0] or 2 * votes[d] > len(sound))
    return tuple(rosters[d] for d in (*behind, *ahead))[-KEPT:], rosters[pinned].keys()


def _is_linked(chain: Sequence[Roster]) -> bool:
    return all(map(is_sound, chain)) and all(
        later.previous == earlier.digest() and later.epoch == earlier.epoch + 1
        for earlier, later in itertools.pairwise(chain)
    )


def _held(by_slot: Mapping[int, HostState], pinned: Mapping[str, bytes]) -> dict[str, Admission]:
    """The baskets that the actors hold in their own slots.

    A basket that two actors claim belongs to the one that signs for it with the key on the roster, else to
    the first.
    """
    held: dict[str, Admission] = {}
    for slot, state in sorted(by_slot.items()):
        for admission in state.admissions:
            place = admission.place
            if place.slot != slot:
                continue
            key, proof = pinned.get(place.basket_id, b""), state.proofs.get(place.basket_id, b"")
            if place.basket_id not in held or (
                place.identity == key and IdentityKeyPair.verify_with(key, place.holding(), proof)
            ):
                held[place.basket_id] = admission
    return held


def _believed(
    order: Order, slot: int, by_slot: Mapping[int, HostState], held: Mapping[str, Admission]
) -> bool:
    """Whether an actor's order is believed: that a basket closes, only if the basket's own actor agrees."""
    closing = order.closing
    if closing is None:
        return True
    known = held.get(closing.basket_id)
    source = by_slot.get(closing.slot)
    if known is not None and known.place.slot != closing.slot:
        return False
    if slot == closing.slot or source is None:
        return True
    return source.order is not None and source.order.operation_id == order.operation_id


def _housed(
    held: dict[str, Admission], last: Order | None
) -> tuple[tuple[Admission, ...], tuple[tuple[BasketPlace, str], ...]]:
    """The baskets with each client in at most one of them, and clients to remove from baskets.

    A client is in the basket to which the last migration takes it, else in the one that has it. A client that
    several baskets claim is in none and must register again, so that a false claim gets none of its updates.
    """
    homes = {} if last is None else last.homes
    closing = None if last is None or last.closing is None else last.closing.basket_id
    places = {place.basket_id: place for place in homes.values()}
    places |= {basket_id: admission.place for basket_id, admission in held.items()}
    members: dict[str, dict[str, Member]] = {basket_id: {} for basket_id in places if basket_id != closing}
    claims: dict[str, set[str]] = defaultdict(set)

    def home_of(basket_id: str, client_id: str) -> str:
        moves = basket_id == closing and client_id in homes
        return homes[client_id].basket_id if moves else basket_id

    for basket_id, admission in held.items():
        for member in admission.members:
            claims[member.client_id].add(home_of(basket_id, member.client_id))
    strays = []
    for basket_id, admission in sorted(held.items()):
        for member in admission.members:
            client_id, home = member.client_id, home_of(basket_id, member.client_id)
            if home == closing or len(claims[client_id]) > 1:
                strays.append((admission.place, client_id))
                continue
            known = members[home].get(client_id)
            members[home][client_id] = member if known is None or basket_id == closing else known
    return (
        tuple(
            Admission(places[basket_id], tuple(m for _, m in sorted(members[basket_id].items())))
            for basket_id in sorted(members)
        ),
        tuple(strays),
    )
