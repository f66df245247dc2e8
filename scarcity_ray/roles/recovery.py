"""What a directory that comes back makes of what the basket actors know.

A directory dies with the operation that it had begun, which some basket actors may have followed in part, and
takes up where the last operation left them:

* of a split or a disband, each actor that did a step keeps the whole record: it is begun again, from the
  start, for every step may be done twice;
* a round that some actors are in and others not is begun again;
* a client that left, left if its actor knows; one that registered is there if its actor knows. Who asked for
  it is told that the operation is void, and asks again;
* what was done before the last operation, its order says: whoever asked for it may hear so late;
* of an operation that no actor has heard of nothing was done, and nothing will be: as they are asked, the
  actors stop obeying the directory that died (`basket_host.BasketHost.step_down`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scarcity_ray.roles.client_memory import ClientMemory
from scarcity_ray.roles.messages import (
    Admission,
    BasketPlace,
    HostState,
    Member,
    Operation,
    OperationKind,
    Order,
)
from scarcity_ray.roles.order_number import OrderNumber
from scarcity_ray.secagg import Roster


@dataclass(frozen=True, eq=False)
class Recovered:
    """What a directory begins its next life with.

    Attributes:
        round_id: Current round.
        number: Its orders come after this one.
        admissions: The baskets and their members, sorted; a client is in one of them.
        memories: Of clients that left.
        done: Ids of operations that are known to be done.
        pending: The operation to begin again; its number is the directory's to give.
        rosters: The newest epochs of the roster that any of them has pinned.
    """

    round_id: int
    number: OrderNumber
    admissions: tuple[Admission, ...]
    memories: tuple[ClientMemory, ...]
    done: tuple[str, ...] = ()
    pending: Operation | None = None
    rosters: tuple[Roster, ...] = ()


def recovered_from(states: Sequence[HostState]) -> Recovered:
    """Put together what the basket actors know.

    Args:
        states: Of all basket actors that are there, by slot.
    """
    round_id = max((state.round_id for state in states), default=0)
    number = max((state.number for state in states), default=OrderNumber())
    memories = tuple(memory for state in states for memory in state.memories)
    held = {admission.place.basket_id: admission for state in states for admission in state.admissions}
    orders = sorted((s.order for s in states if s.order is not None), key=lambda order: order.number)
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
    rosters = max((s.rosters for s in states if s.rosters), key=lambda kept: kept[-1].epoch, default=())
    return Recovered(round_id, number, admissions, memories, done, pending, rosters)


def _housed(
    held: dict[str, Admission], last: Order | None
) -> tuple[tuple[Admission, ...], tuple[tuple[BasketPlace, str], ...]]:
    """The baskets with each client in one of them, and who is in another one besides.

    A client is where the last rehousing takes it, else in the first basket that has it.
    """
    homes = {} if last is None else last.homes
    closing = None if last is None or last.closing is None else last.closing.basket_id
    places = {place.basket_id: place for place in homes.values()}
    places |= {basket_id: admission.place for basket_id, admission in held.items()}
    members: dict[str, dict[str, Member]] = {basket_id: {} for basket_id in places if basket_id != closing}
    seen: dict[str, str] = {}
    strays = []
    for basket_id, admission in sorted(held.items()):
        for member in admission.members:
            client_id = member.client_id
            home = homes[client_id].basket_id if client_id in homes else basket_id
            if home == closing or basket_id not in (closing, seen.setdefault(client_id, home)):
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


__all__ = ["Recovered", "recovered_from"]
