"""What a directory that comes back makes of what the basket actors know.

A directory dies with the operation that it had begun, which some basket actors may have followed in part, and
takes up where the last operation left them:

* of a split or a disband, each actor that did a step keeps the whole record: it is begun again, from the
  start, for every step may be done twice;
* a round that some actors are in and others not is begun again;
* a client that left, left if its actor knows; one that registered is there if its actor knows. Who asked for
  it is told that the operation is void, and asks again. One that several baskets claim must register again;
* what was done before the last operation, its order says: whoever asked for it may hear so late;
* of an operation that no actor has heard of nothing was done, and nothing will be: as they are asked, the
  actors stop obeying the directory that died (`actors.basket.BasketHost.step_down`).

No one actor is believed in what is another's. It says which baskets are in its own slot; a basket that two
claim is that one's which signs for it with the key on the roster. What a closing basket's clients do says the
actor that holds it, which hears of it first. The roster is what most of the actors have pinned, and what
follows from that; who is on it stays on it until it is closed, by an operation or by its own signature.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scarcity_ray.actors.messages import (
    Admission,
    BasketPlace,
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
    """What one basket actor knows, for a directory that comes back empty.

    Attributes:
        number: From now on it obeys no lower order.
        order: The last operation that it took part in.
        rosters: The newest epochs of the roster that it has pinned.
        endorsements: Of baskets that are not signed for yet.
        proofs: By each of its baskets, a signature that it lives here (`BasketPlace.holding`), 64 bytes.
        closed: By each basket on the roster that was here, a signature that it has closed (`closed`).
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


@dataclass(frozen=True, eq=False)
class Recovered:
    """What a directory begins its next life with.

    Attributes:
        number: Its orders come after this one.
        admissions: The baskets and their members, sorted; a client is in one of them at most.
        done: Ids of operations that are known to be done.
        pending: The operation to begin again; its number is the directory's to give.
        rosters: The newest epochs of the roster that most of them have pinned, and what follows from it.
        endorsements: Of the baskets that are there, as they have heard them.
        dead: Baskets on the roster that nobody holds and nobody has closed, with their keys.
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
    """Put together what all basket actors that are there say."""
    states = [state for _, state in sorted(by_slot.items())]
    round_id = max((state.round_id for state in states), default=0)
    number = max((state.number for state in states), default=OrderNumber())
    memories = tuple(memory for state in states for memory in state.memories)
    rosters, pinned = _pinned_by_most([state.rosters for state in states])
    held = _held(by_slot, pinned)
    believed = [
        o for slot, s in sorted(by_slot.items()) if (o := s.order) and _believed(o, slot, by_slot, held)
    ]
    orders = sorted(believed, key=lambda order: order.number)
    last = orders[-1] if orders else None
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
    elif strays or len({state.round_id for state in states}) > 1:
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
    """The chain that most actors have pinned, with what follows from it, and who is on what most pinned.

    From the epoch that most hold, step by step, to the one after it that most hold; of as many, the later.
    A chain with a broken link counts for nothing, and so does one that does not come by that epoch.
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
    """The baskets that each actor holds in its own slot.

    One that two claim is that one's which signs with the key on the roster that it lives there, else the
    first's.
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
    """Whether an actor may say so: that a basket closes, only who holds it, or with it, if it is there."""
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
    """The baskets with each client in one of them, and who is in another one besides.

    A client is where the last migration takes it, else in the basket that has it. One that several have is
    in none and registers again: its updates would be shown to whoever claims it.
    """
    homes = {} if last is None else last.homes
    closing = None if last is None or last.closing is None else last.closing.basket_id
    places = {place.basket_id: place for place in homes.values()}
    places |= {basket_id: admission.place for basket_id, admission in held.items()}
    members: dict[str, dict[str, Member]] = {basket_id: {} for basket_id in places if basket_id != closing}
    claims: dict[str, set[str]] = defaultdict(set)
    for basket_id, admission in held.items():
        for member in admission.members:
            moves = basket_id == closing and member.client_id in homes
            claims[member.client_id].add(homes[member.client_id].basket_id if moves else basket_id)
    strays = []
    for basket_id, admission in sorted(held.items()):
        for member in admission.members:
            client_id = member.client_id
            moves = basket_id == closing and client_id in homes
            home = homes[client_id].basket_id if moves else basket_id
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
